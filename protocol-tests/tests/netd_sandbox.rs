//! volt-netd's threads may make only the system calls of the published table. The filters in force are read
//! back, and forbidden calls are made from inside running threads.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use protocol_tests::confinement::attack::{assert_denied, function, violate};
use protocol_tests::confinement::filter::assert_as_published;
use protocol_tests::confinement::table::Table;
use protocol_tests::confinement::{Thread, role};
use protocol_tests::daemon::{poll_until, program};
use protocol_tests::far_end::Wire;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::{Session, Setup};
use protocol_tests::succession::SUPERVISED;
use protocol_tests::trace::Traced;
use protocol_tests::wire::{feature, request};
use rustix::net::sockopt::set_socket_linger;
use rustix::process::Pid;

/// The user ID of `nobody`.
const NOBODY: u32 = 65_534;
/// The threads of a serving process under a supervisor. Without a supervisor it also serves metrics.
const SERVING: [&str; 5] = ["log", "pair0", "pair1", "volt-netd", "vring4"];

/// A daemon that serves two pairs and a control queue.
struct Confined {
    rig: Rig,
    session: Session,
    threads: Vec<Thread>,
    supervisor: Option<u32>,
}

impl Confined {
    /// Returns `None` where threads cannot be traced.
    fn new(test: &str, arguments: &[&str]) -> Option<Confined> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP {test}: reading filters takes root");
            return None;
        }
        let rig = Rig::new(test, &[&["--queues", "2", "--metrics", "{metrics}"], arguments].concat())?;
        let base = Setup::pairs(2);
        let setup = Setup { control: Some(4), features: base.features | feature::CTRL_VQ, ..base };
        let session = rig.session(&setup);
        let mut confined = Confined { rig, session, threads: Vec::new(), supervisor: None };
        confined.look();
        Some(confined)
    }

    /// Finds the threads once all exist and are confined: a thread names itself, and then installs its
    /// filter.
    fn look(&mut self) {
        self.session.frontend.sync().expect("served");
        let daemon = self.rig.daemon.pid();
        let found = poll_until(LIMIT, || {
            let children = std::fs::read_to_string(format!("/proc/{daemon}/task/{daemon}/children")).ok()?;
            let mut processes = vec![daemon];
            processes.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            self.supervisor = (processes.len() > 2).then_some(daemon);
            let of =
                |process: &u32| Thread::of(*process, |name| roles(name, self.supervisor == Some(*process)));
            self.threads = processes.iter().flat_map(of).collect();
            let main = |process| {
                let main = |thread: &&Thread| thread.process == process && thread.name == "volt-netd";
                self.threads.iter().find(main).map(Thread::filters)
            };
            let own = |thread: &Thread| {
                thread.roles.len() == 1 || main(thread.process).is_some_and(|main| thread.filters() > main)
            };
            let serves_metrics = self.threads.iter().any(|thread| thread.name == "metrics");
            let all = serves_metrics && self.threads.iter().all(own);
            (all && self.serving_names() == SERVING).then_some(())
        });
        let names: Vec<_> = self.threads.iter().map(|thread| (&thread.name, thread.filters())).collect();
        assert!(found.is_some(), "{names:?}");
    }

    /// Returns the threads that share a guest's memory.
    fn serving(&self) -> impl Iterator<Item = &Thread> {
        let serves =
            |thread: &&Thread| !thread.roles.contains(&"opener") && Some(thread.process) != self.supervisor;
        self.threads.iter().filter(serves)
    }

    /// Returns the names of the threads that share a guest's memory, except for those that serve metrics.
    fn serving_names(&self) -> Vec<&str> {
        let names = self.serving().map(|thread| thread.name.as_str());
        let names: BTreeSet<_> = names.filter(|name| role("volt-netd", name) != "metrics").collect();
        names.into_iter().collect()
    }
}

/// Returns the roles of a thread, in a process that is its own supervisor or has one.
fn roles(name: &str, is_supervisor: bool) -> Vec<&'static str> {
    match role("volt-netd", name) {
        "main" if is_supervisor => vec!["supervisor"],
        own @ "metrics" if is_supervisor => vec![own, "supervisor"],
        own @ ("frames" | "control" | "descriptors" | "metrics") => vec![own, "main"],
        own => vec![own],
    }
}

/// Each thread of each process has only the capabilities of its role and can gain none, and its filters
/// decide on every call of each ABI as the table says.
#[test]
fn filters_are_as_published() {
    let table = Table::of(&program("volt-netd"));
    for (arguments, restarts) in [(&[][..], 0), (&SUPERVISED, 0), (&SUPERVISED, 1)] {
        let Some(mut confined) = Confined::new("filters_are_as_published", arguments) else { return };
        if restarts > 0 {
            confined.rig.kill_worker();
            confined.look();
        }
        let mut seen = BTreeSet::new();
        for thread in &confined.threads {
            seen.insert(thread.roles[0]);
            thread.assert_without_privilege();
            let mut roles: Vec<_> = thread.roles.iter().map(|role| (*role, thread.process)).collect();
            // A later worker has at most the permissions of its supervisor.
            let supervisor = confined.supervisor.filter(|_| restarts > 0 && thread.roles != ["opener"]);
            roles.extend(supervisor.filter(|id| *id != thread.process).map(|id| ("supervisor", id)));
            assert_as_published(&table, thread, &roles);
        }
        let mut wanted = BTreeSet::from(["control", "frames", "log", "main", "metrics", "opener"]);
        wanted.extend(confined.supervisor.map(|_| "supervisor"));
        assert_eq!(seen, wanted);
    }
}

/// The filters of the thread that classifies a front-end's descriptor match the table too. This one waits in
/// close(): it has the last descriptor of a TCP connection whose peer reads no more.
#[test]
fn filters_of_the_thread_for_descriptors_are_as_published() {
    let test = "filters_of_the_thread_for_descriptors_are_as_published";
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP {test}: reading filters takes root");
    }
    let Some(rig) = Rig::new(test, &[]) else { return };
    let (held, _peer) = rig.netns.tcp_pair().expect("a connection");
    set_socket_linger(&held, Some(2 * LIMIT)).expect("a close that waits");
    held.set_nonblocking(true).expect("set");
    while (&held).write(&[0; 1 << 16]).is_ok() {}
    let daemon = rig.daemon.pid();
    // It has the only descriptor: it stays stopped until this process has closed its own.
    let main = Traced::seize(Pid::from_raw(daemon as i32).expect("a process id")).expect("it can be traced");
    let frontend = rig.connect();
    frontend.tell(request::SET_OWNER, &[], &[held.as_fd()]).expect("sent");
    drop(held);
    main.detach().expect("it stood still");
    let found = poll_until(LIMIT, || {
        let threads = Thread::of(daemon, |name| roles(name, false));
        let main = threads.iter().find(|thread| thread.name == "volt-netd").map(Thread::filters)?;
        threads.into_iter().find(|thread| thread.name == "descriptors" && thread.filters() > main)
    });
    let thread = found.expect("the thread that classifies the descriptor");
    thread.assert_without_privilege();
    let roles: Vec<_> = thread.roles.iter().map(|role| (*role, daemon)).collect();
    assert_as_published(&Table::of(&program("volt-netd")), &thread, &roles);
}

/// Each attack is denied to each thread that shares a guest's memory; the daemon still serves.
#[test]
fn attacks_from_inside_are_denied() {
    for arguments in [&[][..], &SUPERVISED] {
        let Some(mut confined) = Confined::new("attacks_from_inside_are_denied", arguments) else { return };
        let mut attacked = BTreeSet::new();
        for thread in confined.serving() {
            assert_denied(thread, std::process::id());
            attacked.insert(thread.name.clone());
        }
        for name in ["metrics", "metrics-client"] {
            assert_eq!(attacked.remove(name), confined.supervisor.is_none(), "{name}");
        }
        assert_eq!(attacked.into_iter().collect::<Vec<_>>(), SERVING);
        confined.rig.both_ways(&mut confined.session, 10);
        confined.session.frontend.sync().expect("served");
    }
}

/// A thread that makes a forbidden call ends the process with status 5, after a line that names the call.
#[test]
fn a_violation_ends_the_process() {
    for arguments in [&[][..], &["--log-format", "json"]] {
        let Some(mut confined) = Confined::new("a_violation_ends_the_process", arguments) else { return };
        let pair = confined.serving().find(|thread| thread.name == "pair1").expect("a pair's thread").id;
        violate(pair);
        let status = confined.rig.daemon.wait(LIMIT).expect("it ends");
        assert_eq!(status.code(), Some(5), "{}", confined.rig.daemon.log());
        let line = format!("sandbox: thread role 'frames' made system call {}", libc::SYS_execve);
        let said = confined.rig.daemon.logged(0, &[&line], LIMIT).expect("it says so");
        if !arguments.is_empty() {
            let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
            assert_eq!((&said["level"], &said["event"]), (&"error".into(), &"sandbox_violation".into()));
            assert!(said["message"].as_str().is_some_and(|message| message.starts_with(&line)), "{said}");
        }
    }
}

/// After a violation a supervisor starts another worker, but no third one within ten seconds.
#[test]
fn a_second_violation_ends_the_supervisor() {
    let Some(mut confined) = Confined::new("a_second_violation_ends_the_supervisor", &SUPERVISED) else {
        return;
    };
    violate(confined.rig.worker());
    confined.rig.logged(&["the worker ended with status 5", "a new worker continues"]);
    confined.rig.both_ways(&mut confined.session, 3);
    violate(confined.rig.worker());
    let status = confined.rig.daemon.wait(LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(5), "{}", confined.rig.daemon.log());
    confined.rig.logged(&["again and again"]);
}

/// A panic in any thread is logged, and ends the process.
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

/// With `--user`, that user runs all serving processes and owns sockets and interface. The user and root may
/// control the daemon. A deleted interface is created again, and a dead worker is replaced.
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
    confined.rig.wire = Wire::Tap(confined.rig.netns.wire("tap0").expect("a packet socket on it"));
    confined.rig.logged(&["tap0: opened again"]);
    confined.rig.netns.wait_until_up("tap0", LIMIT).expect("up");
    confined.rig.both_ways(&mut confined.session, 3);
    assert!(confined.rig.daemon.stop(LIMIT).is_some_and(|status| status.success()));
    assert!(!confined.rig.socket().exists() && !confined.rig.control().exists(), "sockets are removed");
}
