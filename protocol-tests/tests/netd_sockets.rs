//! volt-netd's sockets: paths of every kind, users of every kind, and messages about paths that cannot work.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output};

use protocol_tests::daemon::{Daemon, copy_of, program};
use protocol_tests::frontend::Frontend;
use protocol_tests::netns::Netns;
use protocol_tests::rig::{LIMIT, Rig, namespace};
use protocol_tests::session::{Session, Setup};

/// Ends the rig's daemon, and starts one in the rig's directory with these socket paths.
fn restart_at(rig: &mut Rig, socket: &OsStr, control: &OsStr, arguments: &[&str]) {
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let mut command = rig.netns.command(program("volt-netd"));
    command.current_dir(rig.dir.path()).args(["--tap", "tap0", "--socket"]).arg(socket);
    command.arg("--control").arg(control).args(arguments);
    rig.daemon = Daemon::start(command).expect("volt-netd");
    rig.logged(&["listening on"]);
}

fn session(path: &Path) -> Session {
    let frontend = Frontend::connect(path, LIMIT).expect("volt-netd takes a connection");
    let mut session = Session::start(frontend, &Setup::default()).expect("a session");
    session.rx(0).fill(64, &[2048]).expect("receive buffers");
    session
}

/// Takes over from the root directory.
fn take_over(rig: &mut Rig, control: &Path, arguments: &[&str]) {
    let mut command = rig.netns.command(program("volt-netd"));
    command.current_dir("/").arg("--take-over").arg(control).args(arguments);
    let successor = Daemon::start(command).expect("volt-netd");
    rig.succeed(successor);
}

/// With paths that are not UTF-8, and with relative paths, crashes and hand-overs from another directory work
/// as usual, and the last daemon removes the files.
#[test]
fn paths_of_every_kind_are_gone_on_with_and_removed() {
    let (odd_socket, odd_control) = (OsStr::from_bytes(b"s\xff"), OsStr::from_bytes(b"c\xfe"));
    for (socket, control) in
        [(odd_socket, odd_control), (OsStr::new("relative"), OsStr::new("../x/./control"))]
    {
        let test = "paths_of_every_kind_are_gone_on_with_and_removed";
        let Some(mut rig) = Rig::new(test, &[]) else { return };
        let inner = rig.dir.path().join("x");
        std::fs::create_dir(&inner).expect("a directory");
        restart_at(&mut rig, socket, &Path::new("x/").join(control).into_os_string(), &["--supervise"]);
        let (socket, control) = (rig.dir.path().join(socket), inner.join(control));
        let mut session = session(&socket);
        rig.both_ways(&mut session, 3);
        rig.kill_worker();
        rig.both_ways(&mut session, 3);
        for arguments in [&[][..], &["--supervise"]] {
            take_over(&mut rig, &control, arguments);
            rig.both_ways(&mut session, 3);
            session.frontend.sync().expect("the connection is served");
        }
        rig.kill_worker();
        rig.both_ways(&mut session, 3);
        assert!(socket.exists() && control.exists());
        assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
        assert!(!socket.exists() && !control.exists(), "both files are removed");
    }
}

/// If this user may not give the socket to a group, the error says why, and no file remains that would block
/// the next start.
#[test]
fn a_socket_that_may_not_be_given_to_its_group_is_not_left_behind() {
    let test = "a_socket_that_may_not_be_given_to_its_group_is_not_left_behind";
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP {test}: only root can be somebody else");
    }
    let Some(netns) = namespace(test) else { return };
    let dir = tempfile::tempdir().expect("a directory");
    chown(dir.path(), Some(65534), Some(65534)).expect("its owner");
    let copy = dir.path().join("volt-netd");
    copy_of("volt-netd", &copy);
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let start = |arguments: &[&str]| {
        let tap = netns.open_tap("tap0", protocol_tests::netns::TAP_FLAGS).expect("a TAP");
        let mut command = netns.command("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "./volt-netd"]);
        command.args(["--tap-fd", "0", "--socket", "s"]).args(arguments);
        Daemon::start({
            command.current_dir(dir.path()).stdin(tap);
            command
        })
        .expect("setpriv")
    };
    let mut daemon = start(&["--socket-group", "0", "--socket-mode", "0660"]);
    assert_eq!(daemon.wait(LIMIT).expect("it ends").code(), Some(1));
    assert!(daemon.logged(0, &["to group '0'", "members"], LIMIT).is_some(), "{}", daemon.log());
    assert!(!dir.path().join("s").exists(), "a file remains");
    let mut daemon = start(&[]);
    assert!(daemon.logged(0, &["listening on"], LIMIT).is_some(), "{}", daemon.log());
    assert!(daemon.stop(LIMIT).expect("it ends").success());
    // Another user's file, whose listener this user cannot check, is reported as such.
    let foreign = dir.path().join("s");
    let _listener = UnixListener::bind(&foreign).expect("a socket");
    std::fs::set_permissions(&foreign, std::fs::Permissions::from_mode(0o000)).expect("permissions");
    let mut daemon = start(&[]);
    assert_eq!(daemon.wait(LIMIT).expect("it ends").code(), Some(1));
    assert!(daemon.logged(0, &["may not connect to it"], LIMIT).is_some(), "{}", daemon.log());
}

/// A daemon in a separate PID namespace, as in a container: a client outside has no process ID there.
#[test]
fn a_daemon_in_another_pid_namespace_is_controlled_from_outside() {
    let test = "a_daemon_in_another_pid_namespace_is_controlled_from_outside";
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP {test}: only root can make a PID namespace");
    }
    let Some(mut rig) = Rig::new(test, &[]) else { return };
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let mut command = rig.netns.command("unshare");
    command.args(["--pid", "--fork", "--kill-child"]).arg(program("volt-netd"));
    command.args(["--tap", "tap0", "--socket"]).arg(rig.socket()).arg("--control").arg(rig.control());
    rig.daemon = Daemon::start(command).expect("unshare");
    rig.logged(&["listening on"]);
    let mut session = session(&rig.socket());
    assert_eq!(rig.status()["interface"], "tap0");
    rig.take_over(&["--supervise"]);
    rig.both_ways(&mut session, 3);
    assert_eq!(rig.status()["take_overs"], 1);
}

/// A daemon in a separate user namespace: root outside is root there, and a user without a mapping is a
/// stranger, whatever the socket's permissions.
#[test]
fn a_user_of_another_namespace_is_a_stranger() {
    let test = "a_user_of_another_namespace_is_a_stranger";
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP {test}: only root can be somebody else");
    }
    let Some(mut rig) = Rig::new(test, &[]) else { return };
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let mut command = rig.netns.command("unshare");
    command.args(["--user", "--map-root-user"]).arg(program("volt-netd"));
    command.args(["--tap", "tap0", "--socket"]).arg(rig.socket()).arg("--control").arg(rig.control());
    rig.daemon = Daemon::start(command).expect("unshare");
    rig.logged(&["listening on"]);
    assert_eq!(rig.status()["interface"], "tap0");
    let open = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
    };
    let copy = rig.dir.path().join("volt-netd");
    copy_of("volt-netd", &copy);
    open(&copy, 0o755);
    open(rig.dir.path(), 0o755);
    open(&rig.control(), 0o666);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "1234", "--clear-groups", "./volt-netd", "ctl", "status", "--control", "c"]);
    let output = command.current_dir(rig.dir.path()).output().expect("setpriv");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("may not control this daemon"), "{output:?}");
}

fn run(netns: &Netns, dir: &Path, arguments: &[OsString]) -> (Option<i32>, String) {
    let mut command = netns.command(program("volt-netd"));
    let Output { status, stderr, .. } = command.current_dir(dir).args(arguments).output().expect("volt-netd");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

/// Paths that cannot work are refused at once, with the true reason.
#[test]
fn paths_that_cannot_work_say_why() {
    let Some(rig) = Rig::new("paths_that_cannot_work_say_why", &["--control", "{control}"]) else { return };
    let dir = rig.dir.path();
    let _datagrams = UnixDatagram::bind(dir.join("datagrams")).expect("a socket");
    std::fs::write(dir.join("file"), "precious").expect("a file");
    // Already too long by itself, and one byte too long.
    let long = dir.join("x".repeat(107 - dir.as_os_str().len()));
    assert_eq!(long.as_os_str().len(), 108);
    let arguments = |words: &[&str]| {
        let path = |word: &&str| if *word == "{long}" { long.clone().into() } else { OsString::from(word) };
        words.iter().map(path).collect::<Vec<_>>()
    };
    for (words, code, expected) in [
        (&["--tap", "t", "--socket", "a", "--control", "./a"][..], 2, "must differ"),
        (&["--tap", "t", "--socket", "{long}"], 1, "has 108 bytes"),
        (&["--tap", "t", "--socket", "a", "--control", "{long}"], 1, "has 108 bytes"),
        (&["--tap", "t", "--client", "--socket", "{long}"], 1, "has 108 bytes"),
        (&["--take-over", "{long}"], 1, "has 108 bytes"),
        (&["--tap", "t", "--socket", "datagrams"], 1, "of another type"),
        (&["--tap", "t", "--socket", "file"], 1, "is not a socket"),
        (&["--tap", "t", "--socket", "a", "--control", "file"], 1, "is not a socket"),
        (&["ctl", "--control", "file", "status"], 1, "it is not a socket"),
        (&["ctl", "--control", "datagrams", "status"], 1, "datagrams or packets"),
        (&["ctl", "--control", "absent", "status"], 1, "give the --control socket"),
        (&["ctl", "--control", "s", "status"], 1, "give the daemon's --control socket"),
        (&["--take-over", "s"], 1, "give the daemon's --control socket"),
    ] {
        let (status, said) = run(&rig.netns, dir, &arguments(words));
        assert_eq!(status, Some(code), "{words:?}: {said}");
        assert!(said.contains(expected), "{words:?} should say '{expected}': {said}");
    }
    assert_eq!(std::fs::read(dir.join("file")).expect("still there"), b"precious");
    assert!(!dir.join("a").exists(), "a failed start leaves a file");
    // --client waits for a path where a socket may still appear.
    let mut command: Command = rig.netns.command(program("volt-netd"));
    command.args(["--tap", "t", "--client", "--socket"]).arg(dir.join("file"));
    let daemon = Daemon::start(command).expect("volt-netd");
    assert!(daemon.logged(0, &["waiting for", "it is not a socket"], LIMIT).is_some(), "{}", daemon.log());
}

/// A client does not wait for ever for a daemon that accepts no connection.
#[test]
fn a_full_backlog_is_not_waited_for_without_end() {
    let Some(netns) = namespace("a_full_backlog_is_not_waited_for_without_end") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("c");
    let listener = UnixListener::bind(&path).expect("a socket");
    rustix::net::listen(&listener, 0).expect("a short backlog");
    let _waits = UnixStream::connect(&path).expect("room for one");
    let mut command = netns.command(program("volt-netd"));
    command.current_dir(dir.path()).args(["--take-over", "c"]);
    let mut successor = Daemon::start(command).expect("volt-netd");
    // It takes five seconds.
    let status = successor.wait(10 * LIMIT).expect("it gives up");
    assert_eq!(status.code(), Some(1), "{}", successor.log());
    assert!(successor.logged(0, &["no daemon answers at c"], LIMIT).is_some(), "{}", successor.log());
}
