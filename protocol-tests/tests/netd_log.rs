//! volt-netd's log: no thread waits for its reader, it is bounded, and its last lines are kept.

use std::fs::File;
use std::io::{PipeReader, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use protocol_tests::daemon::{Daemon, child, poll_until, program};
use protocol_tests::frame::numbered;
use protocol_tests::frontend::Frontend;
use protocol_tests::netns::{Netns, TapWire};
use protocol_tests::rig::{Rig, namespace};
use protocol_tests::session::{Session, Setup};
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::{Pid, Signal, kill_process};

/// An unread log costs a second at each end of a process, in addition to the wait itself.
const LIMIT: Duration = Duration::from_secs(20);

/// Returns a pipe that is full until it is read.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, writer) = pipe().expect("a pipe");
    fcntl_setpipe_size(&writer, 4096).expect("a short pipe");
    // A separate open file, because a child shares the flags of this one.
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut filler = File::options().write(true).custom_flags(flags).open(path).expect("the pipe again");
    while filler.write(&[b'.'; 64]).is_ok() {}
    (reader, writer.into())
}

/// A daemon with an unread log.
struct Unread {
    netns: Netns,
    wire: TapWire,
    dir: tempfile::TempDir,
    child: Child,
    /// Kept open: a closed pipe would accept every write.
    log: PipeReader,
}

impl Unread {
    fn start(test: &str, arguments: &[&str]) -> Option<Unread> {
        let netns = namespace(test)?;
        netns.add_tap("tap0", false).expect("a TAP");
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = netns.command(program("volt-netd"));
        let (log, stderr) = full_pipe();
        command.args(["--tap", "tap0", "--log-level", "debug", "--socket"]).arg(dir.path().join("s"));
        command.arg("--control").arg(dir.path().join("c")).args(arguments).stderr(stderr);
        let child = command.spawn().expect("volt-netd");
        let wire = netns.wire("tap0").expect("a packet socket on the TAP");
        Some(Unread { netns, wire, dir, child, log })
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    fn session(&self) -> Session {
        let frontend = Frontend::connect(&self.dir.path().join("s"), LIMIT).expect("it listens");
        frontend.sync().expect("it answers");
        self.netns.wait_until_up("tap0", LIMIT).expect("it serves the TAP");
        let mut session = Session::start(frontend, &Setup::default()).expect("it serves the usual script");
        session.rx(0).fill(64, &[2048]).expect("receive buffers");
        session
    }

    /// Checks that frames pass both ways, as soon as the interface is up.
    fn serves(&self, session: &mut Session) {
        let out = poll_until(LIMIT, || {
            session.tx(0).send(&numbered(1, 100), LIMIT).expect("the frame is used");
            self.wire.recv(Duration::from_millis(50)).expect("the wire")
        });
        assert!(out.is_some(), "frames of the guest come out");
        self.wire.send(&numbered(2, 100)).expect("sent");
        assert_eq!(session.rx(0).recv(LIMIT).expect("the guest gets it").bytes, numbered(2, 100));
    }

    fn status(&self) -> serde_json::Value {
        let mut command = self.netns.command(program("volt-netd"));
        command.args(["ctl", "status", "--json", "--control"]).arg(self.control()).stdout(Stdio::piped());
        let mut ctl = command.stderr(Stdio::null()).spawn().expect("volt-netd ctl");
        assert!(wait(&mut ctl).expect("an answer").success());
        let mut answer = String::new();
        ctl.stdout.take().expect("piped").read_to_string(&mut answer).expect("text");
        serde_json::from_str(&answer).expect("JSON")
    }

    fn hand_over(&mut self, arguments: &[&str]) {
        let (log, stderr) = full_pipe();
        let mut command = self.netns.command(program("volt-netd"));
        command.args(["--log-level", "debug", "--take-over"]).arg(self.control()).args(arguments);
        let mut before =
            std::mem::replace(&mut self.child, command.stderr(stderr).spawn().expect("a successor"));
        assert!(wait(&mut before).expect("the daemon before ends").success());
        self.log = log;
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let worker = child(self.child.id());
        let _ = self.child.kill();
        let _ = worker.map(|worker| kill_process(worker, Signal::KILL));
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> Option<ExitStatus> {
    poll_until(LIMIT, || child.try_wait().expect("a child"))
}

/// With a full pipe on standard error, sessions, `ctl`, changes of the interface, crashes, hand-overs and the
/// end continue, for a daemon alone and for a supervised one.
#[test]
fn a_log_that_nobody_reads_holds_nothing() {
    for arguments in [&[][..], &["--supervise"]] {
        let Some(mut daemon) = Unread::start("a_log_that_nobody_reads_holds_nothing", arguments) else {
            return;
        };
        let mut session = daemon.session();
        daemon.serves(&mut session);
        daemon.netns.ip("link set dev tap0 down").expect("down");
        session.tx(0).send(&numbered(3, 100), LIMIT).expect("the frame is used");
        daemon.netns.ip("link set dev tap0 up").expect("up");
        daemon.serves(&mut session);
        assert_eq!(daemon.status()["interface"], "tap0");
        for _ in 0..3 {
            daemon.hand_over(arguments);
            daemon.serves(&mut session);
        }
        if !arguments.is_empty() {
            let worker = poll_until(LIMIT, || child(daemon.child.id())).expect("a worker");
            kill_process(worker, Signal::KILL).expect("killed");
            daemon.serves(&mut session);
        }
        drop(session);
        let mut session = daemon.session();
        daemon.serves(&mut session);
        kill_process(Pid::from_child(&daemon.child), Signal::TERM).expect("signalled");
        let status = wait(&mut daemon.child).expect("it ends");
        assert!(status.success(), "{arguments:?}: {status}");
    }
}

/// A late reader learns the number of missing lines, and the reason of the end.
#[test]
fn a_late_reader_is_told_what_is_lost() {
    let Some(mut daemon) = Unread::start("a_late_reader_is_told_what_is_lost", &[]) else { return };
    let session = daemon.session();
    // More than the buffered mebibyte, at 40 bytes or more for each message.
    for _ in 0..40_000 {
        session.frontend.sync().expect("it answers");
    }
    drop(session);
    let mut log = daemon.log.try_clone().expect("a descriptor");
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes).map(|_| String::from_utf8_lossy(&bytes).into_owned())
    });
    kill_process(Pid::from_child(&daemon.child), Signal::TERM).expect("signalled");
    assert!(wait(&mut daemon.child).expect("it ends").success());
    let log = reader.join().expect("a reader").expect("the log");
    let lines: Vec<&str> = log.lines().collect();
    let lost = lines
        .iter()
        .position(|line| line.ends_with("lines of this log lost, because standard error was not read)"));
    let end = lines.iter().position(|line| line.contains("told to end by SIGTERM"));
    assert!(lost.is_some() && lost < end, "{} lines, and at last {:?}", lines.len(), lines.last_chunk::<5>());
}

/// Front-ends that connect in a loop do not fill the disk, and the log still has the reason of the daemon's
/// end.
#[test]
fn a_flood_leaves_the_end_of_the_story() {
    let Some(mut rig) = Rig::new("a_flood_leaves_the_end_of_the_story", &[]) else { return };
    assert!(rig.daemon.stop(LIMIT).is_some());
    let mut command = rig.netns.command(program("volt-netd"));
    command.args(["--tap", "tap0", "--socket"]).arg(rig.socket());
    let mut daemon = Daemon::start(command).expect("volt-netd");
    daemon.wait_for_socket(&rig.socket(), LIMIT).expect("it listens");
    for _ in 0..1000 {
        Frontend::connect(&rig.socket(), LIMIT).and_then(|frontend| frontend.sync()).expect("it answers");
    }
    assert!(daemon.stop(LIMIT).expect("it ends").success());
    assert!(daemon.logged(0, &["told to end by SIGTERM"], LIMIT).is_some(), "{}", daemon.log());
    assert!(daemon.logged(0, &["left out: more than 200 in 10 s"], LIMIT).is_some(), "{}", daemon.log());
    let lines = daemon.log().lines().count();
    // Two kinds of lines have the limit, and connecting may have taken more than one time window.
    assert!(lines < 1000, "{lines} lines");
}

/// Returns the objects of a JSON log. Each line must be an object with the common keys.
fn objects(log: &str) -> Vec<serde_json::Value> {
    let object = |line: &str| {
        let object: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        let time = object["time"].as_str().unwrap_or_default();
        assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{line}");
        assert!(object["message"].is_string(), "{line}");
        let looking = matches!(object["level"].as_str(), Some("debug" | "trace"));
        assert_eq!(object["event"].is_string(), !looking, "a line for operators has a name: {line}");
        object
    };
    log.lines().map(object).collect()
}

/// `--log-format json`: the events of a connection and a worker's death, in both processes of a supervised
/// daemon.
#[test]
fn a_log_for_programs() {
    let arguments = ["--log-format", "json", "--supervise"];
    let Some(mut rig) = Rig::new("a_log_for_programs", &arguments) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    kill_process(child(rig.daemon.pid()).expect("a worker"), Signal::KILL).expect("killed");
    assert!(rig.daemon.logged(0, &["worker_died"], LIMIT).is_some(), "{}", rig.daemon.log());
    rig.both_ways(&mut session, 3);
    drop(session);
    assert!(rig.daemon.logged(0, &["pair_counters"], LIMIT).is_some(), "{}", rig.daemon.log());
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    assert!(rig.daemon.logged(0, &["told_to_end"], LIMIT).is_some(), "{}", rig.daemon.log());
    let log = objects(&rig.daemon.log());
    let of =
        |event: &str| log.iter().find(|line| line["event"] == event).unwrap_or_else(|| panic!("{event}"));
    assert_eq!((&of("started")["interface"], &of("started")["pairs"]), (&"tap0".into(), &1.into()));
    assert_eq!(of("front_end_connected")["message"], "front-end connected");
    assert_eq!(of("front_end_connected")["level"], "info");
    assert!(of("memory_mapped")["bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    assert_eq!(of("worker_died")["level"], "warn");
    assert!(of("worker_died")["seconds"].is_f64());
    assert_eq!(of("front_end_gone")["why"], "closed by the front-end");
    let ended = |by: &str| log.iter().any(|line| line["event"] == "told_to_end" && line["by"] == by);
    assert!(ended("SIGTERM"), "the supervisor, and then its worker by it: {}", rig.daemon.log());
    assert!(log.iter().any(|line| line["level"] == "debug"), "the log level holds");
}

/// An error before the program serves is a JSON object too.
#[test]
fn an_error_for_programs() {
    for (name, arguments) in [
        ("volt-netd", &["--take-over", "/nowhere/net0.ctl"][..]),
        ("volt-vmm", &["--kernel", "/nowhere/vmlinuz", "--log-level", "error"]),
    ] {
        let mut command = std::process::Command::new(program(name));
        let output = command.args(arguments).args(["--log-format", "json"]).output().expect("it starts");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let log = objects(&String::from_utf8(output.stderr).expect("text"));
        let [line] = &log[..] else { panic!("{log:?}") };
        assert_eq!((&line["level"], &line["event"]), (&"error".into(), &"error".into()));
        let message = line["message"].as_str().expect("text");
        assert!(message.starts_with(&format!("{name}: ")) && message.contains("/nowhere/"), "{message}");
    }
}

/// A failed write of output is an error, unless the reader has closed the pipe.
#[test]
fn answers_that_cannot_be_written() {
    let Some(rig) = Rig::new("answers_that_cannot_be_written", &["--control", "{control}"]) else { return };
    for arguments in [&["--print-capabilities"][..], &["ctl", "status", "--control", "c"]] {
        let run = |stdout: Stdio, stderr: Stdio| {
            let mut command = rig.netns.command("timeout");
            command
                .arg("20")
                .arg(program("volt-netd"))
                .args(arguments)
                .current_dir(rig.dir.path())
                .stdout(stdout)
                .stderr(stderr);
            command.output().expect("volt-netd")
        };
        let closed = || pipe().map(|(_, writer)| writer.into()).expect("a pipe");
        let full = || File::options().write(true).open("/dev/full").expect("/dev/full").into();
        let seen_enough = run(closed(), Stdio::piped());
        assert!(seen_enough.status.success() && seen_enough.stderr.is_empty(), "{seen_enough:?}");
        let lost = run(full(), Stdio::piped());
        assert_eq!(lost.status.code(), Some(1), "{lost:?}");
        assert!(String::from_utf8_lossy(&lost.stderr).contains("No space left"), "{lost:?}");
        // If the error cannot be printed either, the status still reports it.
        assert_eq!(run(full(), closed()).status.code(), Some(1));
        assert_eq!(run(full(), full()).status.code(), Some(1));
        let (_reader, unread) = full_pipe();
        assert_eq!(run(full(), unread).status.code(), Some(1));
    }
}
