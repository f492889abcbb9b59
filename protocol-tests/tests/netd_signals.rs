//! The effect of each signal on volt-netd, alone and under its supervisor: every line of the table in the
//! reference.
#![expect(unsafe_code, reason = "real-time signals are sent by libc only")]

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;

use protocol_tests::daemon::{Daemon, child, poll_until, program};
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::Setup;
use rustix::process::{Pid, Signal, kill_process};

const TEST: &str = "signals_do_what_the_table_says";

/// A row of the table: the signals by number, and their effects on volt-netd, supervisor and worker.
struct Row {
    signals: Vec<i32>,
    effects: [String; 3],
}

/// Reads the table of signals in the reference.
fn table() -> Vec<Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/exit-status.md");
    let text = std::fs::read_to_string(path).expect("the documents are beside the tests");
    let lines = text.lines().skip_while(|line| !line.starts_with("| signals |")).skip(2);
    let rows = lines.take_while(|line| line.starts_with('|')).map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [signals, alone, supervisor, worker, _] = cells[..] else { panic!("{line}") };
        let effects = [alone, supervisor, worker].map(str::to_owned);
        Row { signals: numbers(signals), effects }
    });
    rows.collect()
}

fn numbers(cell: &str) -> Vec<i32> {
    match cell.strip_suffix(" (real time)").and_then(|range| range.split_once(" to ")) {
        Some((first, last)) => (first.parse().expect("a number")..=last.parse().expect("a number")).collect(),
        None => cell.split(", ").map(number).collect(),
    }
}

/// Returns the number of a signal, from the shell.
fn number(name: &str) -> i32 {
    let shell =
        std::process::Command::new("bash").args(["-c", "kill -l \"$0\"", name]).output().expect("bash");
    let text = String::from_utf8_lossy(&shell.stdout).into_owned();
    text.trim().parse().unwrap_or_else(|_| panic!("{name} is no signal"))
}

/// Returns the name of a signal.
fn name(number: i32) -> String {
    let number = number.to_string();
    let shell =
        std::process::Command::new("bash").args(["-c", "kill -l \"$0\"", &number]).output().expect("bash");
    format!("SIG{}", String::from_utf8_lossy(&shell.stdout).trim())
}

/// A process of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Alone,
    Supervisor,
    Worker,
}

impl Role {
    const ALL: [Role; 3] = [Role::Alone, Role::Supervisor, Role::Worker];

    fn start(self) -> Option<Rig> {
        let arguments = ["--control", "{control}", "--supervise"];
        Rig::new(TEST, if self == Role::Alone { &arguments[..2] } else { &arguments })
    }

    fn send(self, rig: &Rig, signal: i32) {
        // SAFETY: plain values; the process is this test's and not yet reaped.
        let sent = unsafe { libc::kill(self.pid(rig).as_raw_pid(), signal) };
        assert_eq!(sent, 0, "signal {signal} to the {self:?}");
    }

    fn pid(self, rig: &Rig) -> Pid {
        match self {
            Role::Worker => rig.worker(),
            _ => Pid::from_raw(rig.daemon.pid().cast_signed()).expect("a process"),
        }
    }
}

/// Returns the signals of the table with this effect on this process.
fn with(role: Role, effect: &str) -> Vec<i32> {
    let rows = table().into_iter().filter(|row| row.effects[role as usize] == effect);
    rows.flat_map(|row| row.signals).collect()
}

/// The table contains every signal except those of the C library, and only known effects.
#[test]
fn the_table_is_complete() {
    let mut signals: Vec<i32> = table().into_iter().flat_map(|row| row.signals).collect();
    signals.sort_unstable();
    assert_eq!(signals, (1..=31).chain(34..=64).collect::<Vec<_>>());
    let effects = ["ends", "ignored", "stops", "dies", "replaced"];
    for Row { effects: said, .. } in table() {
        assert!(said.iter().all(|effect| effects.contains(&effect.as_str())), "{said:?}");
    }
}

/// Signals that end the daemon end it in order: with status 0, their name in the log, and the sockets
/// removed.
#[test]
fn signals_that_end_it() {
    for role in Role::ALL {
        for signal in with(role, "ends") {
            let Some(mut rig) = role.start() else { return };
            let session = rig.session(&Setup::default());
            role.send(&rig, signal);
            let status = rig.daemon.wait(LIMIT).expect("it ends");
            assert!(status.success(), "{role:?}, {signal}: {status}:\n{}", rig.daemon.log());
            let name = if signal == libc::SIGUSR1 { "the supervisor".to_owned() } else { name(signal) };
            rig.logged(&["told to end by", &name]);
            assert!(
                !rig.socket().exists() && !rig.control().exists(),
                "{role:?}, {signal}: sockets are left"
            );
            drop(session);
        }
    }
}

/// Ignored signals change nothing.
#[test]
fn signals_that_are_ignored() {
    for role in Role::ALL {
        let Some(mut rig) = role.start() else { return };
        let mut session = rig.session(&Setup::default());
        for signal in with(role, "ignored") {
            role.send(&rig, signal);
            rig.both_ways(&mut session, 1);
            assert!(!rig.daemon.has_exited(), "{role:?}, {signal}: {}", rig.daemon.log());
        }
        assert_eq!(rig.status()["restarts"], 0, "{role:?}: {}", rig.daemon.log());
        assert!(!rig.daemon.log().contains("told to end"), "{role:?}: {}", rig.daemon.log());
    }
}

/// A stopped daemon resumes when continued, and nothing is lost.
#[test]
fn signals_that_stop_it() {
    for role in Role::ALL {
        let Some(mut rig) = role.start() else { return };
        // In a process group that a shell could continue: SIGTSTP stops no other process.
        assert!(rig.daemon.stop(LIMIT).is_some());
        let mut command = rig.netns.command(program("volt-netd"));
        command.args(["--tap", "tap0", "--socket"]).arg(rig.socket()).process_group(0);
        if role != Role::Alone {
            command.arg("--supervise");
        }
        rig.daemon = Daemon::start(command).expect("volt-netd");
        let socket = rig.socket();
        rig.daemon.wait_for_socket(&socket, LIMIT).expect("it listens");
        rig.netns.wait_until_up("tap0", LIMIT).expect("up");
        let mut session = rig.session(&Setup::default());
        for signal in with(role, "stops") {
            rig.both_ways(&mut session, 1);
            let stat = format!("/proc/{}/stat", role.pid(&rig).as_raw_pid());
            let stat = || std::fs::read_to_string(&stat).expect("it lives");
            role.send(&rig, signal);
            let stopped = poll_until(LIMIT, || stat().contains(") T ").then_some(()));
            assert!(stopped.is_some(), "{role:?}, {signal}: {}", stat());
            role.send(&rig, libc::SIGCONT);
            rig.both_ways(&mut session, 1);
        }
    }
}

/// A worker that should end by itself, and is killed if the test fails.
struct Orphan(Pid);

impl Drop for Orphan {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = kill_process(self.0, Signal::KILL);
        }
    }
}

/// Fatal signals end only their process: a supervisor replaces a dead worker, and a worker without supervisor
/// still serves.
#[test]
fn signals_that_kill() {
    for signal in with(Role::Alone, "dies") {
        let Some(mut rig) = Role::Alone.start() else { return };
        Role::Alone.send(&rig, signal);
        assert_eq!(rig.daemon.wait(LIMIT).expect("it dies").signal(), Some(signal));
    }
    let Some(mut rig) = Role::Worker.start() else { return };
    let mut session = rig.session(&Setup::default());
    for signal in with(Role::Worker, "replaced") {
        let dead = rig.worker();
        Role::Worker.send(&rig, signal);
        let next = poll_until(LIMIT, || child(rig.daemon.pid()).filter(|pid| *pid != dead));
        assert!(next.is_some(), "{signal}: {}", rig.daemon.log());
        rig.both_ways(&mut session, 1);
    }
    drop((session, rig));
    for signal in with(Role::Supervisor, "dies") {
        let Some(mut rig) = Role::Supervisor.start() else { return };
        let mut session = rig.session(&Setup::default());
        let worker = Orphan(rig.worker());
        // After an answer the supervisor has no request in progress, which would be lost with it.
        rig.status();
        Role::Supervisor.send(&rig, signal);
        assert_eq!(rig.daemon.wait(LIMIT).expect("it dies").signal(), Some(signal));
        rig.both_ways(&mut session, 1);
        kill_process(worker.0, Signal::TERM).expect("it lives");
        assert!(
            poll_until(LIMIT, || (!rig.socket().exists()).then_some(())).is_some(),
            "{}",
            rig.daemon.log()
        );
    }
}

/// A signal ignored by `nohup` stays ignored.
#[test]
fn an_ignored_hang_up_stays_ignored() {
    let Some(mut rig) = Role::Alone.start() else { return };
    assert!(rig.daemon.stop(LIMIT).is_some());
    let mut command = rig.netns.command("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(program("volt-netd"));
    command.args(["--tap", "tap0", "--socket"]).arg(rig.socket());
    rig.daemon = Daemon::start(command).expect("volt-netd");
    let socket = rig.socket();
    rig.daemon.wait_for_socket(&socket, LIMIT).expect("it listens");
    rig.netns.wait_until_up("tap0", LIMIT).expect("up");
    Role::Alone.send(&rig, libc::SIGHUP);
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 1);
    assert!(rig.daemon.stop(LIMIT).expect("SIGTERM works").success());
}

/// A log that reaches the limit of file sizes does not end the daemon.
#[test]
fn a_log_at_the_file_size_limit_is_survived() {
    let Some(mut rig) = Role::Alone.start() else { return };
    assert!(rig.daemon.stop(LIMIT).is_some());
    let mut command = rig.netns.command("sh");
    command.args(["-c", "exec prlimit --fsize=100 \"$@\" 2>log", "sh"]).arg(program("volt-netd"));
    command.args(["--tap", "tap0", "--socket"]).arg(rig.socket()).current_dir(rig.dir.path());
    rig.daemon = Daemon::start(command).expect("volt-netd");
    let mut session = rig.session(&Setup::default());
    rig.netns.wait_until_up("tap0", LIMIT).expect("up");
    rig.both_ways(&mut session, 1);
    drop(session);
    assert!(rig.daemon.stop(LIMIT).expect("SIGTERM works").success());
    assert_eq!(std::fs::metadata(rig.dir.path().join("log")).expect("a log").len(), 100);
}
