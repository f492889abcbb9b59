//! volt-netd when its TAP is set down, deleted, or passed as a descriptor, and on a macvtap interface.

use std::process::Stdio;
use std::time::Duration;

use protocol_tests::daemon::{Daemon, poll_until, program};
use protocol_tests::far_end::Wire;
use protocol_tests::frame::{NetHeader, number_of, numbered};
use protocol_tests::netns::{MULTI_QUEUE, TAP_FLAGS};
use protocol_tests::rig::{LIMIT, QUIET, Rig, namespace};
use protocol_tests::session::{Session, Setup};

/// Sends frames while the interface is unusable: each is returned to the guest, and nothing spins.
fn transmit_into_nothing(rig: &Rig, session: &mut Session) {
    for number in 0..100 {
        let used = session.tx(0).send(&numbered(number, 100), LIMIT).expect("returned without an interface");
        assert_eq!(used.len, 0);
    }
    let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
    assert!(ticks <= 3, "{ticks} ticks without an interface");
}

/// Returns the number of warnings about the interface.
fn warnings(rig: &Rig) -> usize {
    rig.daemon.log().lines().filter(|line| line.contains("WARN") && line.contains("tap0")).count()
}

/// Set down and up again under traffic, three times: each change is logged once, and the guest stays served.
#[test]
fn tap_set_down_and_up() {
    let Some(mut rig) = Rig::new("tap_set_down_and_up", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    for round in 1..4 {
        rig.both_ways(&mut session, 5);
        rig.netns.ip("link set dev tap0 down").expect("down");
        transmit_into_nothing(&rig, &mut session);
        let told = poll_until(LIMIT, || (warnings(&rig) >= round).then_some(()));
        assert!(told.is_some() && warnings(&rig) == round, "once each time:\n{}", rig.daemon.log());
        rig.netns.ip("link set dev tap0 up").expect("up");
        rig.netns.wait_until_up("tap0", LIMIT).expect("up");
        while rig.wire.recv(QUIET).expect("the wire").is_some() {}
    }
    rig.both_ways(&mut session, 5);
}

/// Deleted under traffic and created again: the daemon opens the new interface, and the guest only loses
/// frames.
#[test]
fn tap_deleted_and_made_again() {
    let Some(mut rig) = Rig::new("tap_deleted_and_made_again", &[]) else { return };
    let before = rig.usage();
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    rig.netns.ip("link del dev tap0").expect("deleted");
    transmit_into_nothing(&rig, &mut session);
    rig.logged(&["WARN", "tap0", "gone"]);
    rig.netns.add_tap("tap0", false).or_else(|_| rig.netns.ip("link set dev tap0 up")).expect("a TAP again");
    rig.wire = Wire::Tap(rig.netns.wire("tap0").expect("a packet socket on it"));
    let back = poll_until(LIMIT, || {
        session.tx(0).send(&numbered(1, 100), LIMIT).expect("returned");
        rig.wire.recv(Duration::from_millis(20)).expect("the wire")
    });
    assert!(back.is_some(), "frames flow again:\n{}", rig.daemon.log());
    rig.netns.wait_until_up("tap0", LIMIT).expect("up");
    while rig.wire.recv(QUIET).expect("the wire").is_some() {}
    rig.both_ways(&mut session, 20);
    drop(session);
    rig.well(&before);
}

/// A TAP created by the daemon is created again after it is deleted, with the same properties.
#[test]
fn a_tap_of_its_own_is_created_again() {
    let Some(netns) = namespace("a_tap_of_its_own_is_created_again") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let mut command = netns.command(program("volt-netd"));
    command.args(["--tap", "own", "--mtu", "1400", "--socket"]).arg(&socket);
    let mut daemon = Daemon::start(command).expect("volt-netd");
    daemon.wait_for_socket(&socket, LIMIT).expect("volt-netd listens");
    let shown = || {
        let output = netns.command("ip").args(["link", "show", "dev", "own"]).stdout(Stdio::piped()).output();
        String::from_utf8_lossy(&output.expect("ip").stdout).into_owned()
    };
    let frontend = protocol_tests::frontend::Frontend::connect(&socket, LIMIT).expect("a connection");
    let mut session = Session::start(frontend, &Setup::default()).expect("a session");
    for _ in 0..2 {
        let index = shown().split(':').next().map(str::to_owned);
        netns.ip("link del dev own").expect("deleted");
        let again = poll_until(LIMIT, || {
            session.tx(0).send(&numbered(1, 100), LIMIT).expect("returned");
            let shown = shown();
            let another = shown.contains(':') && shown.split(':').next().map(str::to_owned) != index;
            (another && shown.contains("mtu 1400") && shown.contains(",UP")).then_some(())
        });
        assert!(again.is_some(), "{}\n{}", shown(), daemon.log());
    }
    assert!(daemon.stop(LIMIT).is_some_and(|status| status.success()));
    assert!(shown().is_empty(), "it is deleted with its daemon");
}

/// Deleted without a front-end: the next front-end is served when the TAP is back.
#[test]
fn tap_deleted_without_a_front_end() {
    let Some(mut rig) = Rig::new("tap_deleted_without_a_front_end", &[]) else { return };
    rig.netns.ip("link del dev tap0").expect("deleted");
    let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
    assert!(ticks <= 3, "{ticks} ticks without an interface");
    let mut session = rig.session(&Setup::default());
    transmit_into_nothing(&rig, &mut session);
    rig.netns.add_tap("tap0", false).or_else(|_| rig.netns.ip("link set dev tap0 up")).expect("a TAP again");
    rig.wire = Wire::Tap(rig.netns.wire("tap0").expect("a packet socket on it"));
    let back = poll_until(LIMIT, || {
        session.tx(0).send(&numbered(1, 100), LIMIT).expect("returned");
        rig.wire.recv(Duration::from_millis(20)).expect("the wire")
    });
    assert!(back.is_some(), "frames flow:\n{}", rig.daemon.log());
}

/// A TAP passed by descriptor, with one queue and with two; one without the frame header is refused by name.
#[test]
fn tap_by_descriptor() {
    let Some(netns) = namespace("tap_by_descriptor") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    for (name, fds, flags) in [("tapa", "0", TAP_FLAGS), ("tapb", "0,1", TAP_FLAGS | MULTI_QUEUE)] {
        let first = netns.open_tap(name, flags).expect("a TAP");
        netns.ip(&format!("link set dev {name} up")).expect("up");
        let mut command = std::process::Command::new(program("volt-netd"));
        command.args(["--tap-fd", fds, "--socket"]).arg(&socket).stdin(first);
        if fds == "0,1" {
            command.stdout(netns.open_tap(name, flags).expect("a second queue"));
        }
        let mut daemon = Daemon::start(command).expect("volt-netd");
        daemon.wait_for_socket(&socket, LIMIT).expect("volt-netd listens");
        let wire = netns.wire(name).expect("a packet socket");
        let frontend = protocol_tests::frontend::Frontend::connect(&socket, LIMIT).expect("a connection");
        let mut session = Session::start(frontend, &Setup::default()).expect("a session");
        session.rx(0).fill(8, &[2048]).expect("buffers");
        session.tx(0).send_cut(&NetHeader::default(), &numbered(1, 500), &[], LIMIT).expect("used");
        assert_eq!(number_of(&wire.recv(LIMIT).expect("the wire").expect("a frame").1), Some(1));
        wire.send(&numbered(2, 500)).expect("sent");
        assert_eq!(number_of(&session.rx(0).recv(LIMIT).expect("a frame").bytes), Some(2));
        drop(session);
        assert!(daemon.stop(LIMIT).expect("SIGTERM works").success());
    }
    let plain = netns.open_tap("tapc", TAP_FLAGS & !(libc::IFF_VNET_HDR as i16)).expect("a TAP");
    let mut command = std::process::Command::new(program("volt-netd"));
    command.args(["--tap-fd", "0", "--socket"]).arg(&socket).stdin(plain);
    let mut daemon = Daemon::start(command).expect("volt-netd");
    assert_eq!(daemon.wait(LIMIT).expect("it ends").code(), Some(1));
    assert!(
        poll_until(LIMIT, || daemon.log().contains("IFF_VNET_HDR").then_some(())).is_some(),
        "{}",
        daemon.log()
    );
}

/// Frames both ways over a macvtap interface, with two queues; another interface is refused by its kind.
#[test]
fn macvtap() {
    let Some(netns) = namespace("macvtap") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    netns.ip("link add near type veth peer name far").expect("a wire");
    // In this mode frames to any address arrive.
    if let Err(error) = netns.ip("link add link far name mv0 type macvtap mode passthru") {
        eprintln!("SKIP macvtap: the kernel makes no macvtap interface: {error}");
        return;
    }
    for interface in ["near", "far", "mv0"] {
        netns.ip(&format!("link set dev {interface} up")).expect("up");
    }
    let start = |interface: &str| {
        let mut command = netns.command(program("volt-netd"));
        command.args(["--macvtap", interface, "--queues", "2", "--socket"]).arg(&socket);
        Daemon::start(command).expect("volt-netd")
    };
    let mut refused = start("near");
    assert_eq!(refused.wait(LIMIT).expect("it ends").code(), Some(1));
    assert!(refused.logged(0, &["near", "not a macvtap", "veth"], LIMIT).is_some(), "{}", refused.log());

    let mut daemon = start("mv0");
    if let Err(error) = daemon.wait_for_socket(&socket, LIMIT) {
        let log = daemon.log();
        assert!(log.contains("mknod") || log.contains("no permission"), "{error}: {log}");
        eprintln!("SKIP macvtap: the interface's file is not there, or another user's: {log}");
        return;
    }
    let wire = netns.wire("near").expect("a packet socket");
    netns.wait_until_up("mv0", LIMIT).expect("up");
    let frontend = protocol_tests::frontend::Frontend::connect(&socket, LIMIT).expect("a connection");
    let mut session = Session::start(frontend, &Setup::default()).expect("a session");
    session.rx(0).fill(8, &[2048]).expect("buffers");
    session.tx(0).send_cut(&NetHeader::default(), &numbered(1, 500), &[], LIMIT).expect("used");
    let arrived = poll_until(LIMIT, || {
        let frame = wire.recv(QUIET).expect("the wire")?;
        (number_of(&frame.1) == Some(1)).then_some(())
    });
    assert!(arrived.is_some(), "a frame to the wire");
    wire.send(&numbered(2, 500)).expect("sent");
    let arrived = poll_until(LIMIT, || {
        let frame = session.rx(0).recv(LIMIT).ok()?;
        (number_of(&frame.bytes) == Some(2)).then_some(())
    });
    assert!(arrived.is_some(), "a frame to the guest");
    drop(session);
    assert!(daemon.stop(LIMIT).expect("SIGTERM works").success());
}
