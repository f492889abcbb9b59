//! volt-netd as a program: sources of front-ends, one at a time, and no leaks.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use protocol_tests::daemon::{Daemon, poll_until, program};
use protocol_tests::frame::numbered;
use protocol_tests::frontend::Frontend;
use protocol_tests::rig::{LIMIT, QUIET, Rig, namespace};
use protocol_tests::session::{Session, Setup};
use protocol_tests::wire::{WireError, longs, request, words};
use rustix::net::{AddressFamily, SocketType};

/// One front-end at a time: a second is refused while the first is connected, with a line in the log, and
/// without disturbing the first. Afterwards the next is accepted at once.
#[test]
fn one_front_end_at_a_time() {
    let Some(mut rig) = Rig::new("one_front_end_at_a_time", &[]) else { return };
    let mut first = rig.session(&Setup::default());
    for _ in 0..3 {
        let second = rig.connect();
        match second.get_features() {
            Err(WireError::Closed(_)) => {}
            other => panic!("a second front-end was not turned away: {other:?}"),
        }
        rig.both_ways(&mut first, 2);
    }
    rig.logged(&["WARN", "front-end"]);
    drop(first);
    let mut next = rig.session(&Setup::default());
    rig.both_ways(&mut next, 2);
}

/// A hundred front-ends, some of which disconnect during a message or under traffic, leave no descriptor,
/// thread or memory.
#[test]
fn front_ends_come_and_go() {
    let Some(mut rig) = Rig::new("front_ends_come_and_go", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    drop(session);
    for _ in 0..10 {
        drop(rig.session(&Setup::default()));
    }
    let idle = poll_until(LIMIT, || {
        let usage = rig.daemon.usage().ok()?;
        (usage.threads <= 2).then_some(usage)
    });
    let before = idle.unwrap_or_else(|| rig.usage());
    for round in 0..100u32 {
        match round % 4 {
            0 => {
                let mut frontend = rig.connect();
                let half = protocol_tests::wire::encode(2, 0, &[0; 8]);
                frontend.channel().send_bytes(&half[..10], &[]).expect("half a message");
            }
            1 => drop(rig.connect()),
            _ => {
                let mut session = rig.session(&Setup::default());
                session.tx(0).offer(&Default::default(), &numbered(round, 100), &[]).expect("room");
                session.tx(0).kick().expect("kicked");
                rig.wire.send(&numbered(round, 100)).expect("sent");
            }
        }
    }
    rig.settled(&before);
    let grown = rig.usage().resident.saturating_sub(before.resident);
    assert!(grown < 2048, "{grown} KiB more than before");
    let before = rig.usage();
    rig.well(&before);
}

/// SIGTERM and SIGINT end it cleanly, with a session and without, and remove the socket.
#[test]
fn signals_end_it() {
    for (signal, busy) in [
        (rustix::process::Signal::TERM, true),
        (rustix::process::Signal::INT, true),
        (rustix::process::Signal::TERM, false),
    ] {
        let Some(mut rig) = Rig::new("signals_end_it", &[]) else { return };
        let session = busy.then(|| rig.session(&Setup::default()));
        rig.daemon.signal(signal).expect("signalled");
        let status = rig.daemon.wait(LIMIT).expect("it ends");
        assert!(status.success(), "{status}:\n{}", rig.daemon.log());
        assert!(!rig.socket().exists(), "the socket is removed");
        drop(session);
    }
}

/// A stale socket is replaced; a live one and a file that is no socket are not.
#[test]
fn socket_paths() {
    let Some(mut rig) = Rig::new("socket_paths", &[]) else { return };
    let second = |rig: &Rig, tap: &str| {
        let mut command = rig.netns.command(program("volt-netd"));
        command.args(["--tap", tap, "--socket"]).arg(rig.socket());
        Daemon::start(command).expect("volt-netd")
    };
    let mut other = second(&rig, "tap1");
    assert_eq!(other.wait(LIMIT).expect("it ends").code(), Some(1));
    assert!(poll_until(LIMIT, || other.log().contains("in use").then_some(())).is_some(), "{}", other.log());
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 2);
    drop(session);
    rig.daemon.signal(rustix::process::Signal::KILL).expect("killed");
    rig.daemon.wait(LIMIT).expect("it ends");
    assert!(rig.socket().exists(), "a killed daemon leaves its socket");
    rig.restart(&[]);
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 2);
    drop(session);
    rig.daemon.stop(LIMIT).expect("SIGTERM works");
    std::fs::write(rig.socket(), "precious").expect("a file");
    let mut other = second(&rig, "tap0");
    assert_eq!(other.wait(LIMIT).expect("it ends").code(), Some(1));
    assert_eq!(std::fs::read(rig.socket()).expect("still there"), b"precious");
}

/// Other users may connect only if the command line allows it.
#[test]
fn socket_mode() {
    for (arguments, mode) in [(&[][..], 0o600), (&["--socket-mode", "0660"], 0o660)] {
        let Some(rig) = Rig::new("socket_mode", arguments) else { return };
        let permissions = std::fs::metadata(rig.socket()).expect("a socket").permissions();
        assert_eq!(permissions.mode() & 0o777, mode);
    }
}

/// The group that may connect is given by name or number; an unknown one is refused by name.
#[test]
fn socket_group() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("SKIP socket_group: only root may give a socket to any group");
    }
    for (group, number) in [("nogroup", 65_534), ("1234", 1234)] {
        let Some(rig) = Rig::new("socket_group", &["--socket-group", group]) else { return };
        assert_eq!(std::fs::metadata(rig.socket()).expect("a socket").gid(), number);
    }
    let Some(netns) = namespace("socket_group") else { return };
    let mut command = netns.command(program("volt-netd"));
    command.args(["--tap", "tap0", "--socket", "s", "--socket-group", "no-such-group"]);
    let mut daemon = Daemon::start(command).expect("volt-netd");
    assert_eq!(daemon.wait(LIMIT).expect("it ends").code(), Some(1));
    assert!(poll_until(LIMIT, || daemon.log().contains("no-such-group").then_some(())).is_some());
}

/// Valid but probably unintended settings are warned about, with the command that helps; sensible ones are
/// not.
#[test]
fn what_is_hardly_meant_is_warned_about() {
    let arguments = ["--mtu", "9000", "--socket-group", "nogroup", "--socket-mode", "0660"];
    let Some(rig) = Rig::new("what_is_hardly_meant_is_warned_about", &arguments) else { return };
    assert!(!rig.daemon.log().contains("WARN"), "{}", rig.daemon.log());
    rig.netns.ip("tuntap add dev tap1 mode tap vnet_hdr").expect("a TAP that is down");
    let mut command = rig.netns.command(program("volt-netd"));
    command.args(["--tap", "tap1", "--mtu", "2000", "--socket-group", "nogroup", "--socket"]);
    let daemon = Daemon::start({
        command.arg(rig.dir.path().join("other"));
        command
    })
    .expect("volt-netd");
    for words in [
        ["WARN", "tap1 is down", "ip link set tap1 up"],
        ["WARN", "MTU of 2000", "ip link set tap1 mtu 2000"],
        ["WARN", "--socket-group nogroup", "--socket-mode 0660"],
    ] {
        assert!(daemon.logged(0, &words, LIMIT).is_some(), "{words:?}: {}", daemon.log());
    }
}

/// A daemon at its limit of descriptors reports that a message's descriptors were lost, not that there were
/// too many.
#[test]
fn lost_descriptors_are_told_from_surplus_ones() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let Some(mut rig) = Rig::new("lost_descriptors_are_told_from_surplus_ones", &[]) else { return };
    let before = rig.usage();
    let mut frontend = rig.connect();
    frontend.sync().expect("it is served");
    let pid = Pid::from_raw(rig.daemon.pid() as i32);
    let limit = |count| {
        // The daemon has raised its limit to the maximum, which it has from here.
        let limit = Rlimit { current: Some(count), maximum: getrlimit(Resource::Nofile).maximum };
        prlimit(pid, Resource::Nofile, limit).expect("a limit");
    };
    let files: Vec<_> = (0..8).map(|_| tempfile::tempfile().expect("a file")).collect();
    let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    limit(rig.usage().fds as u64);
    let message = protocol_tests::wire::encode(5, 0, &[0; 8]);
    frontend.channel().send_bytes(&message, &fds).expect("sent");
    assert!(matches!(frontend.get_features(), Err(WireError::Closed(_))));
    rig.logged(&["descriptors", "are lost", "LimitNOFILE"]);
    limit(1024);
    let mut frontend = rig.connect();
    let more = [&fds[..], &fds[..1]].concat();
    frontend.channel().send_bytes(&message, &more).expect("sent");
    assert!(matches!(frontend.get_features(), Err(WireError::Closed(_))));
    rig.logged(&["more than 8 file descriptors"]);
    rig.well(&before);
}

/// Returns a daemon on `tap0` in a new namespace, with its endpoint as standard input.
fn on_fd(test: &str, fd: OwnedFd) -> Option<(protocol_tests::netns::Netns, Daemon)> {
    let netns = namespace(test)?;
    netns.add_tap("tap0", false).expect("a TAP");
    let mut command = netns.command(program("volt-netd"));
    command.args(["--tap", "tap0", "--fd", "0"]).stdin(fd);
    Some((netns, Daemon::start(command).expect("volt-netd")))
}

/// Sends one frame through a session on this connection.
fn serves(netns: &protocol_tests::netns::Netns, frontend: Frontend) {
    let mut session = Session::start(frontend, &Setup::default()).expect("a session");
    let wire = netns.wire("tap0").expect("a packet socket");
    session.tx(0).send(&numbered(3, 300), LIMIT).expect("used");
    assert_eq!(wire.recv(LIMIT).expect("the wire").expect("a frame").1, numbered(3, 300));
}

/// `--fd` with a listening socket serves front-end after front-end.
#[test]
fn listening_descriptor() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).expect("a listener");
    let Some((netns, mut daemon)) = on_fd("listening_descriptor", listener.into()) else { return };
    for _ in 0..3 {
        serves(&netns, Frontend::connect(&path, LIMIT).expect("a connection"));
    }
    assert!(daemon.stop(LIMIT).expect("SIGTERM works").success());
}

/// `--fd` with a connected socket serves that front-end, and ends successfully with it.
#[test]
fn connected_descriptor() {
    let (mine, theirs) = UnixStream::pair().expect("a socket pair");
    let Some((netns, mut daemon)) = on_fd("connected_descriptor", theirs.into()) else { return };
    serves(&netns, Frontend::new(mine));
    let status = daemon.wait(LIMIT).expect("it ends with the connection");
    assert!(status.success(), "{status}: {}", daemon.log());
}

/// A descriptor that is no Unix stream socket is refused by number.
#[test]
fn descriptor_that_is_no_socket() {
    let file = tempfile::tempfile().expect("a file");
    let Some((_netns, mut daemon)) = on_fd("descriptor_that_is_no_socket", file.into()) else { return };
    assert_eq!(daemon.wait(LIMIT).expect("it ends").code(), Some(1));
    assert!(
        poll_until(LIMIT, || daemon.log().contains("descriptor 0").then_some(())).is_some(),
        "{}",
        daemon.log()
    );
}

/// `--client` connects when the front-end listens, even late, and again after each connection. It does not
/// spin while there is none.
#[test]
fn client() {
    let Some(netns) = namespace("client") else { return };
    netns.add_tap("tap0", false).expect("a TAP");
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let mut command = netns.command(program("volt-netd"));
    command.args(["--tap", "tap0", "--client", "--socket"]).arg(&path);
    let mut daemon = Daemon::start(command).expect("volt-netd");
    std::thread::sleep(QUIET);
    assert!(!daemon.has_exited(), "it waits: {}", daemon.log());
    let ticks = daemon.idle_ticks(Duration::from_millis(300)).expect("/proc");
    assert!(ticks <= 3, "{ticks} ticks of waiting for a front-end");
    for _ in 0..3 {
        let listener = UnixListener::bind(&path).expect("a listener");
        assert!(protocol_tests::wire::readable(&listener, LIMIT).expect("poll"), "it connects");
        let (socket, _) = listener.accept().expect("accepted");
        serves(&netns, Frontend::new(socket));
        drop(listener);
        std::fs::remove_file(&path).expect("removed");
    }
    assert!(daemon.stop(LIMIT).expect("SIGTERM works").success());
}

/// Command lines that cannot work name the missing part and end with 1 or 2.
#[test]
fn command_lines() {
    let Some(netns) = namespace("command_lines") else { return };
    let run = |arguments: &[&str]| {
        let mut command = netns.command(program("volt-netd"));
        let output = command.args(arguments).stdout(Stdio::piped()).output().expect("volt-netd");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned(), output.stdout)
    };
    for (arguments, code, word) in [
        (&[][..], 2, "--tap"),
        (&["--tap", "t"], 2, "--socket"),
        (&["--tap", "t", "--tap-fd", "3", "--socket", "s"], 2, "--tap-fd"),
        (&["--tap-fd", "77", "--socket", "s"], 1, "77"),
        (&["--tap", "a-name-that-is-too-long", "--socket", "s"], 1, "a-name-that-is-too-long"),
        (&["--tap", "t", "--socket", "s", "--queue-size", "100"], 2, "100"),
        (&["--tap", "t", "--socket", "s", "--mtu", "10"], 2, "10"),
        (&["--tap", "t", "--socket", "s", "--mac", "01:02:03:04:05:06"], 2, "01:02"),
    ] {
        let (status, text, _) = run(arguments);
        assert_eq!(status, Some(code), "{arguments:?}: {text}");
        assert!(text.contains(word), "{arguments:?} should name {word}: {text}");
    }
    let (status, _, capabilities) = run(&["--print-capabilities"]);
    assert_eq!(status, Some(0));
    let json: serde_json::Value = serde_json::from_slice(&capabilities).expect("JSON");
    assert_eq!(json["type"], "net");
}

/// A refused front-end reconnects at once, for as long as it lives. The daemon accepts one a second, serves
/// others meanwhile, and never delays a valid front-end.
#[test]
fn who_is_refused_is_heard_once_a_second() {
    type Say = fn(&Frontend);
    let arguments = ["--control", "{control}"];
    let Some(mut rig) = Rig::new("who_is_refused_is_heard_once_a_second", &arguments) else { return };
    let socket = rig.socket();
    let connect = || Frontend::connect(&socket, LIMIT).expect("a place in the queue");
    // Well-behaved front-ends connect as they like.
    let start = Instant::now();
    for _ in 0..20 {
        connect().sync().expect("served");
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?} for twenty", start.elapsed());
    // Refused for an invalid message, by its own decision (too few queues), for a descriptor, and as a second
    // front-end.
    let refused: [(&str, Say); 3] = [
        ("a request is refused", |frontend| {
            let _ = frontend.tell(request::SET_VRING_NUM, &words(&[0, 100]), &[]);
        }),
        ("--queues", |frontend| drop(frontend.get_queue_num())),
        ("a file descriptor that came with a message is refused", |frontend| {
            let distant =
                rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
            let _ = frontend.tell(request::SET_VRING_CALL, &longs(&[0]), &[distant.as_fd()]);
        }),
    ];
    for (word, say) in refused {
        let from = rig.daemon.log().len();
        let mut last = Instant::now();
        for round in 0..4 {
            let frontend = connect();
            frontend.sync().expect("served, sooner or later");
            let waited = last.elapsed();
            assert!(round == 0 || waited > Duration::from_millis(900), "{word}: let in after {waited:?}");
            last = Instant::now();
            say(&frontend);
            drop(frontend);
            rig.status();
        }
        let said = rig.daemon.logged(from, &["WARN", word], LIMIT);
        assert!(said.is_some(), "no '{word}' in:\n{}", &rig.daemon.log()[from..]);
        connect().sync().expect("served");
    }
    let mut session = rig.session(&Setup::default());
    let (mut tries, begin) = (0, Instant::now());
    while begin.elapsed() < Duration::from_millis(2500) {
        let mut second = connect();
        second.channel().set_patience(Duration::from_secs(5));
        assert!(second.sync().is_err(), "a second front-end is not served");
        tries += 1;
    }
    assert!(tries <= 4, "{tries} were let in within 2.5 s");
    rig.logged(&["a second front-end was refused"]);
    rig.both_ways(&mut session, 5);
    // The first front-end disconnects, and a waiting one is accepted at once.
    let third = connect();
    let left = Instant::now();
    drop(session);
    third.sync().expect("served");
    assert!(left.elapsed() < Duration::from_millis(900), "{:?}", left.elapsed());
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    assert!(rig.daemon.log().contains("told to end"), "{}", rig.daemon.log());
}
