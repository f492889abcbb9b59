//! The permissions of a program: as published (`--print-sandbox=json`), as enforced by its threads' filters,
//! and as tried by an attacker inside a thread.

pub mod attack;
pub mod call;
pub mod filter;
pub mod table;

use rustix::process::Pid;

/// Returns the role of a thread of `program` by the thread's name; the main thread has the program's name.
///
/// # Panics
/// If no role is known for it.
pub fn role(program: &str, thread: &str) -> &'static str {
    match thread {
        "log" => "log",
        "volt-opener" => "opener",
        main if main == program => "main",
        pair if pair.starts_with("pair") => "frames",
        _ => match program {
            "volt-netd" => netd_role(thread),
            _ => vmm_role(thread),
        },
    }
}

fn netd_role(thread: &str) -> &'static str {
    match thread {
        "descriptors" => "descriptors",
        "metrics" | "metrics-client" => "metrics",
        vring if vring.starts_with("vring") => "control",
        other => panic!("a thread called {other}"),
    }
}

fn vmm_role(thread: &str) -> &'static str {
    match thread {
        "maker" | "device" | "net-port" | "net-change" => "main",
        "serial" => "serial",
        "signals" => "signals",
        "net" | "net-timer" => "back-end",
        "disk" | "rng" | "net-control" => "worker",
        api if api.starts_with("api") => "main",
        vcpu if vcpu.starts_with("vcpu") => "vcpu",
        other => panic!("a thread called {other}"),
    }
}

/// A thread of a program under test.
#[derive(Debug)]
pub struct Thread {
    /// Thread ID.
    pub id: Pid,
    /// Process ID.
    pub process: u32,
    /// The thread's name.
    pub name: String,
    /// Its own role, and those of the threads that created it.
    pub roles: Vec<&'static str>,
}

impl Thread {
    /// Returns the threads of `process`; `roles` maps their names to roles.
    pub fn of(process: u32, roles: impl Fn(&str) -> Vec<&'static str>) -> Vec<Thread> {
        let entries = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
        let thread = |id: &str| {
            let comm = std::fs::read_to_string(format!("/proc/{process}/task/{id}/comm")).ok()?;
            let name = comm.trim_end().to_owned();
            Some(Thread { id: Pid::from_raw(id.parse().ok()?)?, process, roles: roles(&name), name })
        };
        entries.filter_map(|entry| thread(entry.file_name().to_str()?)).collect()
    }

    /// Returns its `status` of proc(5); empty if it has ended.
    pub fn status(&self) -> String {
        let path = format!("/proc/{}/task/{}/status", self.process, self.id.as_raw_nonzero());
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Returns the number of filters in force.
    pub fn filters(&self) -> u32 {
        let status = self.status();
        let count = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// Checks that it can gain no privilege, has a filter, and has a capability only if its role keeps some.
    ///
    /// # Panics
    /// If one of these is false.
    #[track_caller]
    pub fn assert_without_privilege(&self) {
        let status = self.status();
        for wanted in
            ["NoNewPrivs:\t1", "Seccomp:\t2", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000"]
        {
            assert!(status.contains(wanted), "{} lacks {wanted}:\n{status}", self.name);
        }
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            let none = status.contains(&format!("{set}:\t0000000000000000"));
            assert_eq!(none, self.roles != ["opener"], "{}: {set}\n{status}", self.name);
        }
    }
}
