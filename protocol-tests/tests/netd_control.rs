//! The default control socket of a daemon, and how `volt-netd ctl` finds it.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};

use protocol_tests::daemon::{Daemon, RUNTIME_DIRECTORY, program};
use protocol_tests::frontend::Frontend;
use protocol_tests::netns::{Netns, TAP_FLAGS};
use protocol_tests::rig::{LIMIT, namespace};
use serde_json::Value;

/// Gives a command an empty `/run` of its own.
const EMPTY_RUN: &str = "mount -t tmpfs none /run && exec \"$0\" \"$@\"";

/// Returns a daemon on this TAP, with the runtime directory `dir`.
fn command(netns: &Netns, dir: &Path, tap: &str, arguments: &[&str]) -> Command {
    let mut command = netns.command(program("volt-netd"));
    command.args(["--tap", tap, "--socket"]).arg(dir.join(format!("{tap}.sock"))).args(arguments);
    command.env(RUNTIME_DIRECTORY, dir);
    command
}

fn start(netns: &Netns, dir: &Path, tap: &str, arguments: &[&str]) -> Daemon {
    let mut daemon = Daemon::start(command(netns, dir, tap, arguments)).expect("volt-netd");
    daemon.wait_for_socket(&dir.join(format!("{tap}.sock")), LIMIT).expect("it listens");
    daemon
}

/// Runs `volt-netd ctl` with an empty /run and this runtime directory.
fn ctl(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command.args(["-m", "--", "sh", "-c", EMPTY_RUN]).arg(program("volt-netd")).arg("ctl").args(arguments);
    command.env(RUNTIME_DIRECTORY, dir).env_remove("XDG_RUNTIME_DIR").output().expect("unshare")
}

fn interface(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    status["interface"].as_str().expect("a name").to_owned()
}

fn refusal(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `ctl` finds no daemon, one and several; it ignores other files.
#[test]
fn the_daemon_that_is_meant_is_found() {
    let Some(netns) = namespace("the_daemon_that_is_meant_is_found") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let dir = dir.path();
    std::fs::write(dir.join("notes.ctl"), "no socket").expect("a file");
    // A socket whose listener is dead.
    drop(std::os::unix::net::UnixListener::bind(dir.join("stale.ctl")).expect("a socket"));
    let none = refusal(&ctl(dir, &["status"]));
    for words in ["found no daemon of this user", "/run/volt", dir.to_str().expect("text"), "--control PATH"]
    {
        assert!(none.contains(words), "{none}");
    }

    ["tap0", "tap1"].iter().for_each(|tap| netns.add_tap(tap, false).expect("a TAP"));
    let _first = start(&netns, dir, "tap0", &[]);
    assert_eq!(interface(&ctl(dir, &["status", "--json"])), "tap0");
    let control = dir.join("tap0.ctl");
    assert_eq!(control.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);

    let mut second = start(&netns, dir, "tap1", &[]);
    let several = refusal(&ctl(dir, &["status"]));
    for (tap, path) in [("tap0", &control), ("tap1", &dir.join("tap1.ctl"))] {
        assert!(several.contains(&format!("\n  {tap}  {}", path.display())), "{several}");
    }
    assert!(several.contains("--interface NAME or --control PATH"), "{several}");
    assert_eq!(interface(&ctl(dir, &["--interface", "tap1", "status", "--json"])), "tap1");
    assert_eq!(interface(&ctl(dir, &["status", "--json", "-i", "tap0"])), "tap0");
    let unknown = refusal(&ctl(dir, &["status", "-i", "tap9"]));
    assert!(unknown.contains("no daemon of this user serves 'tap9'"), "{unknown}");
    assert!(ctl(dir, &["-i", "tap1", "limits", "--rx-rate", "1Gbit"]).status.success());
    assert_eq!(
        ctl(dir, &["-i", "tap1", "--control", "c", "status"]).status.code(),
        Some(2),
        "one or the other"
    );

    assert!(second.stop(LIMIT).expect("it ends").success());
    assert!(!dir.join("tap1.ctl").exists(), "its file is removed with it");
    assert_eq!(interface(&ctl(dir, &["status", "--json"])), "tap0");
}

/// The socket's path may be taken, stale or out of reach: the daemon serves the guest anyway.
#[test]
fn a_daemon_without_its_control_socket_serves() {
    let test = "a_daemon_without_its_control_socket_serves";
    let (Some(netns), Some(other)) = (namespace(test), namespace(test)) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let control = dir.path().join("tap0.ctl");
    [&netns, &other].iter().for_each(|netns| netns.add_tap("tap0", false).expect("a TAP"));
    let serves = |daemon: &mut Daemon, socket: &Path| {
        daemon.wait_for_socket(socket, LIMIT).expect("it listens");
        Frontend::connect(socket, LIMIT).and_then(|frontend| frontend.sync()).expect("it answers");
    };
    let first = start(&netns, dir.path(), "tap0", &[]);

    // The same name in another namespace.
    let there = tempfile::tempdir().expect("a directory");
    let mut twin = command(&other, there.path(), "tap0", &[]);
    let mut twin = Daemon::start({
        twin.env(RUNTIME_DIRECTORY, dir.path());
        twin
    })
    .expect("volt-netd");
    serves(&mut twin, &there.path().join("tap0.sock"));
    let told = twin.logged(0, &["no control socket at", "is in use", "--control none"], LIMIT);
    assert!(told.is_some_and(|line| line.contains("WARN")), "{}", twin.log());
    assert!(twin.stop(LIMIT).expect("it ends").success());
    assert!(control.exists(), "it belongs to the other daemon");
    // A daemon with an explicit path does not start without it.
    let mut strict = command(&other, there.path(), "tap0", &["--control"]);
    strict.arg(&control);
    let mut strict = Daemon::start(strict).expect("volt-netd");
    assert_eq!(strict.wait(LIMIT).expect("it ends").code(), Some(1), "{}", strict.log());

    // A killed daemon leaves its file, which the next one replaces.
    first.signal(rustix::process::Signal::KILL).expect("killed");
    drop(first);
    assert!(control.exists());
    let mut next = start(&netns, dir.path(), "tap0", &[]);
    assert!(!next.log().contains("WARN"), "{}", next.log());
    assert_eq!(interface(&ctl(dir.path(), &["status", "--json"])), "tap0");
    assert!(next.stop(LIMIT).expect("it ends").success());

    // A missing directory is not created: that is the service manager's task.
    let missing = dir.path().join("missing");
    let mut lost = command(&netns, dir.path(), "tap0", &[]);
    lost.env(RUNTIME_DIRECTORY, &missing);
    let mut lost = Daemon::start(lost).expect("volt-netd");
    serves(&mut lost, &dir.path().join("tap0.sock"));
    let at = missing.join("tap0.ctl").display().to_string();
    assert!(lost.logged(0, &["no control socket at", &at], LIMIT).is_some(), "{}", lost.log());
    drop(lost);

    let none = start(&netns, dir.path(), "tap0", &["--control", "none"]);
    assert!(!control.exists() && !none.log().contains("control"), "{}", none.log());
}

/// The control socket of a TAP by descriptor has the TAP's name, and a dead worker leaves it to the next.
#[test]
fn a_tap_by_descriptor_has_its_name() {
    let Some(netns) = namespace("a_tap_by_descriptor_has_its_name") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let tap = netns.open_tap("tapd", TAP_FLAGS).expect("a TAP");
    let mut command = Command::new(program("volt-netd"));
    command.args(["--tap-fd", "0", "--supervise", "--socket"]).arg(dir.path().join("s")).stdin(tap);
    command.env(RUNTIME_DIRECTORY, dir.path());
    let mut daemon = Daemon::start(command).expect("volt-netd");
    daemon.wait_for_socket(&dir.path().join("s"), LIMIT).expect("it listens");
    for _ in 0..2 {
        assert_eq!(interface(&ctl(dir.path(), &["-i", "tapd", "status", "--json"])), "tapd");
        let from = daemon.log().len();
        let worker = protocol_tests::daemon::child(daemon.pid()).expect("a worker");
        rustix::process::kill_process(worker, rustix::process::Signal::KILL).expect("killed");
        assert!(daemon.logged(from, &["a new worker continues"], LIMIT).is_some(), "{}", daemon.log());
    }
    assert_eq!(interface(&ctl(dir.path(), &["status", "--json"])), "tapd");
}

/// Root's daemons have their sockets in /run/volt, which the first one creates.
#[test]
fn roots_daemons_are_in_one_place() {
    let Some(netns) = namespace("roots_daemons_are_in_one_place") else { return };
    netns.add_tap("tap0", false).expect("a TAP");
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let mut command = netns.command("unshare");
    // With any umask.
    let script = format!("umask 077; {EMPTY_RUN}");
    command.args(["-m", "--", "sh", "-c", &script]).arg(program("volt-netd")).args(["--tap", "tap0"]);
    command.arg("--socket").arg(&socket).env_remove("XDG_RUNTIME_DIR").env(RUNTIME_DIRECTORY, "");
    let mut daemon = Daemon::start(command).expect("volt-netd");
    daemon.wait_for_socket(&socket, LIMIT).expect("it listens");
    let run = Path::new("/proc").join(daemon.pid().to_string()).join("root/run/volt");
    assert_eq!(run.metadata().expect("made").permissions().mode() & 0o777, 0o755);
    assert!(run.join("tap0.ctl").metadata().expect("made").file_type().is_socket());
    let mut ctl = Command::new("nsenter");
    ctl.args(["-m", "-t", &daemon.pid().to_string()])
        .arg(program("volt-netd"))
        .args(["ctl", "status", "--json"]);
    assert_eq!(interface(&ctl.output().expect("nsenter")), "tap0");
}

/// Another user has no default path without a session.
#[test]
fn a_user_without_a_session_has_no_control_socket() {
    let Some(netns) = namespace("a_user_without_a_session_has_no_control_socket") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).expect("permissions");
    protocol_tests::daemon::copy_of("volt-netd", &dir.path().join("volt-netd"));
    for session in [None, Some(dir.path())] {
        let tap = netns.open_tap("tap0", TAP_FLAGS).expect("a TAP");
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups", "./volt-netd", "--tap-fd", "0", "--socket", "s"]);
        command.current_dir(dir.path()).stdin(tap).env_remove("XDG_RUNTIME_DIR").env(RUNTIME_DIRECTORY, "");
        session.map(|session| command.env("XDG_RUNTIME_DIR", session));
        let mut daemon = Daemon::start(command).expect("setpriv");
        daemon.wait_for_socket(&socket, LIMIT).expect("it listens");
        match session {
            None => {
                let told = daemon.logged(0, &["no control socket", "use --control PATH"], LIMIT);
                assert!(told.is_some_and(|line| line.contains("INFO")), "{}", daemon.log());
            }
            Some(session) => {
                let volt = session.join("volt");
                assert_eq!(volt.metadata().expect("made").permissions().mode() & 0o777, 0o700);
                assert!(volt.join("tap0.ctl").exists());
            }
        }
        assert!(daemon.stop(LIMIT).expect("it ends").success());
    }
}
