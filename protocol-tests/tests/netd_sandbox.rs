//! volt-netd's threads may do what the published table says, and nothing else: the filters in force are read
//! back, and calls that are in no table are made from inside running threads.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use protocol_tests::confinement::{Call, Fate, I386, Table, X32, X86_64, fate, function, threads};
use protocol_tests::daemon::poll_until;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::{Session, Setup};
use protocol_tests::succession::SUPERVISED;
use protocol_tests::trace::{Made, Traced};
use protocol_tests::wire::feature;
use rustix::process::Pid;
use serde_json::Value;

/// The user of that name.
const NOBODY: u32 = 65_534;
/// Beyond the last number that any kernel has.
const NUMBERS: u32 = 600;

/// The threads of a process that serves.
const SERVING: [&str; 5] = ["log", "pair0", "pair1", "volt-netd", "vring4"];

/// A thread of a daemon, or of what belongs to it.
struct Thread {
    id: Pid,
    name: String,
    process: u32,
    /// Its own role, and those of its makers.
    roles: Vec<&'static str>,
}

/// A daemon that serves two pairs and a control queue.
struct Confined {
    rig: Rig,
    session: Session,
    threads: Vec<Thread>,
    supervisor: Option<u32>,
}

impl Confined {
    /// `None` where threads cannot be traced.
    fn new(test: &str, arguments: &[&str]) -> Option<Confined> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP {test}: reading filters takes root");
            return None;
        }
        let rig = Rig::new(test, &[&["--queues", "2"], arguments].concat())?;
        let base = Setup::pairs(2);
        let setup = Setup { control: Some(4), features: base.features | feature::CTRL_VQ, ..base };
        let session = rig.session(&setup);
        let mut confined = Confined { rig, session, threads: Vec::new(), supervisor: None };
        confined.look();
        Some(confined)
    }

    /// Finds the threads, as soon as all are there and confined: a thread is known by the name that it gives
    /// itself, and then enters its list.
    fn look(&mut self) {
        self.session.frontend.sync().expect("served");
        let daemon = self.rig.daemon.pid();
        let found = poll_until(LIMIT, || {
            let children = std::fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).ok()?;
            let mut processes = vec![daemon];
            processes.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            self.supervisor = (processes.len() > 2).then_some(daemon);
            self.threads = processes.iter().flat_map(|process| of(*process, self.supervisor)).collect();
            let mut names: Vec<_> = self.serving().map(|thread| thread.name.as_str()).collect();
            names.sort_unstable();
            let main = self.serving().find(|thread| thread.name == "volt-netd").map(Thread::filters)?;
            let own = |thread: &Thread| thread.roles.len() == 1 || thread.filters() > main;
            (names == SERVING && self.serving().all(own)).then_some(())
        });
        let names: Vec<_> = self.threads.iter().map(|thread| (&thread.name, thread.filters())).collect();
        assert!(found.is_some(), "{names:?}");
    }

    /// The threads that share a guest's memory.
    fn serving(&self) -> impl Iterator<Item = &Thread> {
        let serves =
            |thread: &&Thread| !thread.roles.contains(&"opener") && Some(thread.process) != self.supervisor;
        self.threads.iter().filter(serves)
    }
}

/// The threads of `process`.
fn of(process: u32, supervisor: Option<u32>) -> Vec<Thread> {
    let thread = |(id, name): (Pid, String)| {
        let roles = match name.as_str() {
            "log" => vec!["log"],
            "volt-opener" => vec!["opener"],
            "volt-netd" if supervisor == Some(process) => vec!["supervisor"],
            "volt-netd" => vec!["main"],
            name if name.starts_with("pair") => vec!["frames", "main"],
            name if name.starts_with("vring") => vec!["control", "main"],
            other => panic!("a thread called {other}"),
        };
        Thread { id, name, process, roles }
    };
    threads(process).into_iter().map(thread).collect()
}

impl Thread {
    fn status(&self) -> String {
        let path = format!("/proc/{}/task/{}/status", self.process, self.id.as_raw_nonzero());
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// How many filters are in force.
    fn filters(&self) -> u32 {
        let status = self.status();
        let count = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:"));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }
}

/// Each thread of each process has no capability that its role does not keep and can gain none, and its
/// filters decide on every call of each ABI as the table says.
#[test]
fn filters_are_as_published() {
    let table = Table::of("volt-netd");
    for (arguments, restarts) in [(&[][..], 0), (&SUPERVISED, 0), (&SUPERVISED, 1)] {
        let Some(mut confined) = Confined::new("filters_are_as_published", arguments) else { return };
        if restarts > 0 {
            confined.rig.kill_worker();
            confined.look();
        }
        let mut seen = BTreeSet::new();
        for thread in &confined.threads {
            let mut roles = thread.roles.clone();
            seen.insert(roles[0]);
            check_status(thread);
            // A later worker has what its supervisor has at most.
            if restarts > 0 && Some(thread.process) != confined.supervisor && roles != ["opener"] {
                roles.push("supervisor");
            }
            let traced = Traced::seize(thread.id).expect("it can be traced");
            let filters = (0..).map_while(|index| traced.filter(index).expect("it can be read"));
            let filters: Vec<_> = filters.collect();
            traced.detach().expect("it stood still");
            compare(&table, &filters, &roles, thread.process, confined.supervisor);
        }
        let mut wanted = BTreeSet::from(["control", "frames", "log", "main", "opener"]);
        wanted.extend(confined.supervisor.map(|_| "supervisor"));
        assert_eq!(seen, wanted);
    }
}

fn check_status(thread: &Thread) {
    let status = thread.status();
    for wanted in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000"]
    {
        assert!(status.contains(wanted), "{} is without {wanted}:\n{status}", thread.name);
    }
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        let none = status.contains(&format!("{set}:\t0000000000000000"));
        assert_eq!(none, thread.roles != ["opener"], "{}: {set}\n{status}", thread.name);
    }
}

/// Compares what filters say with the strictest of what the table says for `roles`.
fn compare(
    table: &Table,
    filters: &[Vec<libc::sock_filter>],
    roles: &[&str],
    process: u32,
    supervisor: Option<u32>,
) {
    let number = |role: &str| if role == "supervisor" { supervisor.unwrap_or(process) } else { process };
    let mut made = 0;
    for call in calls(table, process) {
        let published = roles.iter().map(|role| table.fate(role, &call, number(role))).min().expect("a role");
        assert_eq!(fate(filters, &call), published, "{roles:?}: {call:x?}");
        made += usize::from(published == Fate::Made);
    }
    assert!(made > 20, "{roles:?}: hardly anything is allowed");
}

/// Every number of every ABI, and each call of a table with arguments as some line wants them and otherwise.
fn calls(table: &Table, process: u32) -> Vec<Call> {
    let mut calls = Vec::new();
    for number in 0..NUMBERS {
        for (arch, number) in [(X86_64, number), (X86_64, number | X32), (I386, number)] {
            for argument in [0, u64::MAX, process.into()] {
                calls.push(Call { number, arch, arguments: [argument; 6] });
            }
        }
    }
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    for line in table.roles().into_iter().flat_map(|role| table.calls(role)) {
        let number = line["number"].as_u64().expect("a number") as u32;
        for all in list(&line["only"]) {
            let mut together = [0; 6];
            for one in list(&all) {
                let at = one["argument"].as_u64().expect("a number") as usize;
                let value = one["value"].as_u64().unwrap_or(process.into());
                together[at] = value;
                for (value, rest) in [(value, u64::MAX), (!value, 0), (value ^ 1, 0), (value | 1 << 40, 0)] {
                    let mut arguments = [rest; 6];
                    arguments[at] = value;
                    calls.push(Call { number, arch: X86_64, arguments });
                }
            }
            calls.push(Call { number, arch: X86_64, arguments: together });
        }
    }
    calls
}

/// Calls that somebody would make who has taken a thread over.
fn attacks(victim: u32) -> Vec<(&'static str, i64, [u64; 6])> {
    let victim = u64::from(victim);
    let (inet, stream) = (libc::AF_INET as u64, libc::SOCK_STREAM as u64);
    let all = 7;
    vec![
        ("openat for writing", libc::SYS_openat, [libc::AT_FDCWD as u64, 0, libc::O_WRONLY as u64, 0, 0, 0]),
        ("open", libc::SYS_open, [0, libc::O_RDWR as u64, 0, 0, 0, 0]),
        ("connect", libc::SYS_connect, [3, 0, 16, 0, 0, 0]),
        ("socket", libc::SYS_socket, [inet, stream, 0, 0, 0, 0]),
        ("kill of another process", libc::SYS_kill, [victim, 0, 0, 0, 0, 0]),
        ("tgkill of another process", libc::SYS_tgkill, [victim, victim, 0, 0, 0, 0]),
        ("executable mmap", libc::SYS_mmap, [0, 4096, all, 0x22, u64::MAX, 0]),
        ("executable mprotect", libc::SYS_mprotect, [0, 4096, all, 0, 0, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ("bpf", libc::SYS_bpf, [0; 6]),
        ("userfaultfd", libc::SYS_userfaultfd, [0; 6]),
        ("ptrace", libc::SYS_ptrace, [16, victim, 0, 0, 0, 0]),
        ("process_vm_writev", libc::SYS_process_vm_writev, [victim, 0, 0, 0, 0, 0]),
        ("execve", libc::SYS_execve, [0; 6]),
        ("fork", libc::SYS_fork, [0; 6]),
        ("clone of a process", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0]),
        ("clone3", libc::SYS_clone3, [0; 6]),
        ("unshare", libc::SYS_unshare, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0]),
        ("setns", libc::SYS_setns, [0; 6]),
        ("mount", libc::SYS_mount, [0; 6]),
        ("another interface", libc::SYS_ioctl, [3, libc::TUNSETIFF, 0, 0, 0, 0]),
    ]
}

/// Each of them is denied to each thread that shares a guest's memory; the daemon serves on.
#[test]
fn attacks_from_inside_are_denied() {
    for arguments in [&[][..], &SUPERVISED] {
        let Some(mut confined) = Confined::new("attacks_from_inside_are_denied", arguments) else { return };
        let attacks = attacks(std::process::id());
        let mut attacked = BTreeSet::new();
        for thread in confined.serving() {
            for (what, number, arguments) in &attacks {
                let made = from_inside(thread.id, *number, *arguments);
                let denied = [libc::EACCES, libc::ENOSYS].map(|error| Made::Returned(-i64::from(error)));
                assert!(made == Made::Trapped || denied.contains(&made), "{}: {what}: {made:?}", thread.name);
            }
            // This tells a call that is denied from one that was never made.
            let allowed = from_inside(thread.id, libc::SYS_brk, [0; 6]);
            assert!(matches!(allowed, Made::Returned(end) if end > 0), "{}: brk: {allowed:?}", thread.name);
            attacked.insert(thread.name.clone());
        }
        assert_eq!(
            attacked.into_iter().collect::<Vec<_>>(),
            ["log", "pair0", "pair1", "volt-netd", "vring4"]
        );
        confined.rig.both_ways(&mut confined.session, 10);
        confined.session.frontend.sync().expect("served");
    }
}

/// Makes a call in a thread that waits in one, or is about to.
fn from_inside(thread: Pid, number: i64, arguments: [u64; 6]) -> Made {
    let made = poll_until(LIMIT, || {
        let traced = Traced::seize(thread).expect("it can be traced");
        let made = traced.make(number, arguments);
        traced.detach().expect("it stood still");
        match made {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            made => Some(made.expect("it can be made")),
        }
    });
    made.expect("it waits in a call")
}

/// A thread that does what is not in its list ends the process with status 5, after a line that says what it
/// was.
#[test]
fn a_violation_ends_the_process() {
    let Some(mut confined) = Confined::new("a_violation_ends_the_process", &[]) else { return };
    let pair = confined.serving().find(|thread| thread.name == "pair1").expect("a pair's thread").id;
    violate(pair);
    let status = confined.rig.daemon.wait(LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(5), "{}", confined.rig.daemon.log());
    let line = format!("sandbox: thread role 'frames' made system call {}", libc::SYS_execve);
    confined.rig.logged(&[&line]);
}

/// A supervisor starts another worker after one that did so, and no third within ten seconds.
#[test]
fn a_second_violation_ends_the_supervisor() {
    let Some(mut confined) = Confined::new("a_second_violation_ends_the_supervisor", &SUPERVISED) else {
        return;
    };
    violate(confined.rig.worker());
    confined.rig.logged(&["the worker ended with status 5", "another one goes on"]);
    confined.rig.both_ways(&mut confined.session, 3);
    violate(confined.rig.worker());
    let status = confined.rig.daemon.wait(LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(5), "{}", confined.rig.daemon.log());
    confined.rig.logged(&["again and again"]);
}

/// A panic in any thread is told, and ends the process.
#[test]
fn a_panic_is_told_and_ends_the_process() {
    for name in SERVING {
        let Some(mut confined) = Confined::new("a_panic_is_told_and_ends_the_process", &[]) else { return };
        let thread = confined.serving().find(|thread| thread.name == name).expect(name);
        let traced = Traced::seize(thread.id).expect("it can be traced");
        traced.go_into(function(thread.process, "panic_cannot_unwind")).expect("it stands still");
        traced.detach().expect("it stood still");
        let status = confined.rig.daemon.wait(LIMIT).expect("it ends");
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{name}: {status}\n{}", confined.rig.daemon.log());
        let name = if name == "volt-netd" { "main" } else { name };
        confined.rig.logged(&[&format!("thread '{name}' panicked at")]);
    }
}

/// With `--user` all that serves is that user's, who owns the sockets and the interface; the user and root may
/// control it; an interface that is deleted is made again; a worker that dies is followed.
#[test]
fn another_user_serves() {
    let arguments = [&SUPERVISED[..], &["--user", "nobody"]].concat();
    let Some(mut confined) = Confined::new("another_user_serves", &arguments) else { return };
    let check = |confined: &Confined| {
        for thread in &confined.threads {
            let status = thread.status();
            let line = status.lines().find(|line| line.starts_with("Uid:")).expect("Uid").to_owned();
            let user = if thread.name == "volt-opener" { 0 } else { NOBODY };
            assert_eq!(line, format!("Uid:\t{user}\t{user}\t{user}\t{user}"), "{}", thread.name);
        }
        let owner = |path: PathBuf| std::fs::metadata(path).expect("a socket").uid();
        assert_eq!([owner(confined.rig.socket()), owner(confined.rig.control())], [NOBODY; 2]);
    };
    check(&confined);
    confined.rig.both_ways(&mut confined.session, 3);
    confined.rig.kill_worker();
    confined.look();
    check(&confined);
    assert_eq!(confined.rig.status()["restarts"], 1);
    confined.rig.both_ways(&mut confined.session, 3);
    confined.rig.take_over(&["--supervise", "--user", "nobody"]);
    confined.look();
    check(&confined);
    confined.rig.both_ways(&mut confined.session, 3);
    confined.rig.netns.ip("link del dev tap0").expect("deleted");
    confined.rig.logged(&["tap0 is gone"]);
    confined.rig.netns.add_tap("tap0", true).expect("a TAP again");
    confined.rig.wire = confined.rig.netns.wire("tap0").expect("a packet socket on it");
    confined.rig.logged(&["tap0: opened again"]);
    confined.rig.netns.wait_until_up("tap0", LIMIT).expect("up");
    confined.rig.both_ways(&mut confined.session, 3);
    assert!(confined.rig.daemon.stop(LIMIT).is_some_and(|status| status.success()));
    assert!(!confined.rig.socket().exists() && !confined.rig.control().exists(), "sockets are removed");
}

/// Has a thread make a call that is in no list, and lets the trap be.
fn violate(thread: Pid) {
    std::thread::sleep(Duration::from_millis(50));
    let traced = Traced::seize(thread).expect("it can be traced");
    traced.call(libc::SYS_execve, [0; 6]).expect("it waits in a call");
    traced.detach().expect("it stood still");
}
