//! volt-netd on an interface by AF_XDP: what the kernel's TAP does for a driver is done in the daemon, the
//! interface may be set down or deleted, another process may open it, and errors have names. Also segments
//! and checksums on every port without a virtio-net header.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use protocol_tests::daemon::{Daemon, poll_until, program};
use protocol_tests::far_end::{PortKind, VETH_PEER, Wire};
use protocol_tests::frame::{NetHeader, checksum, gso, number_of, numbered, tcp, udp, uso_header};
use protocol_tests::frontend::Frontend;
use protocol_tests::netns::Netns;
use protocol_tests::rig::{LIMIT, QUIET, Rig, namespace};
use protocol_tests::session::{Session, Setup};
use protocol_tests::succession::SUPERVISED;
use protocol_tests::wire::feature;

const NO_TAP: [PortKind; 3] = [PortKind::Xdp, PortKind::Stream, PortKind::Datagram];
/// What a driver needs to leave checksums and segmentation to the device.
const OFFLOADS: u64 =
    feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN | feature::HOST_USO;

/// Returns a namespace for AF_XDP, or prints why `test` is skipped: it needs rights in the first user
/// namespace.
fn privileged(test: &str) -> Option<Netns> {
    if rustix::process::geteuid().is_root() {
        return namespace(test);
    }
    eprintln!("SKIP {test}: not root");
    None
}

fn setup() -> Setup {
    let base = Setup::default();
    Setup { features: base.features | OFFLOADS, ..base }
}

/// Asserts that the checksum of TCP or UDP in an IPv4 packet is right.
fn check_transport(frame: &[u8], protocol: u32) {
    let pseudo = protocol + (frame.len() - 34) as u32;
    assert_eq!(checksum(&frame[26..], pseudo), 0, "{frame:02x?}");
}

/// A frame in need of segmentation leaves as frames of the same bytes, with their checksums.
#[test]
fn segments_leave_whole() {
    NO_TAP.into_iter().for_each(segments_leave_whole_on);
}

fn segments_leave_whole_on(port: PortKind) {
    let Some(rig) = Rig::on(port, "segments_leave_whole", &[]) else { return };
    let mut session = rig.session(&setup());
    assert_eq!(session.nic.features & OFFLOADS, OFFLOADS, "{port:?}: all are offered");
    let payload: Vec<u8> = (0..40_000_u32).map(|at| (at * 7 + at / 253) as u8).collect();
    let (frame, start) = tcp(false, false, &payload);
    let header = NetHeader {
        flags: gso::NEEDS_CSUM,
        gso_type: gso::TCPV4,
        hdr_len: (frame.len() - payload.len()) as u16,
        gso_size: 1400,
        csum_start: start,
        csum_offset: 16,
        num_buffers: 0,
    };
    session.tx(0).send_cut(&header, &frame, &[12, 40, 3000], LIMIT).expect("used");
    let mut got = Vec::new();
    while got.len() < payload.len() {
        let (_, segment) = rig.wire.recv(LIMIT).expect("the wire").expect("a segment");
        assert!(segment.len() <= frame.len() - payload.len() + 1400);
        check_transport(&segment, 6);
        got.extend_from_slice(&segment[frame.len() - payload.len()..]);
    }
    assert!(got == payload, "{port:?}: the same bytes in the same order");

    let datagrams = udp((1, 1111), (2, 2222), &payload[..2500]);
    session.tx(0).send_cut(&uso_header(1000), &datagrams, &[], LIMIT).expect("used");
    for len in [1000, 1000, 500] {
        let (_, got) = rig.wire.recv(LIMIT).expect("the wire").expect("a datagram");
        assert_eq!(got.len(), 42 + len);
        check_transport(&got, 17);
    }
    let header = NetHeader { gso_type: gso::NONE, gso_size: 0, ..uso_header(0) };
    session.tx(0).send_cut(&header, &udp((1, 1), (2, 2), &payload[..333]), &[], LIMIT).expect("used");
    check_transport(&rig.wire.recv(LIMIT).expect("the wire").expect("a datagram").1, 17);
}

/// A header that its frame does not fit is refused, counted, and leaves nothing on the wire.
#[test]
fn impossible_offloads_are_refused() {
    NO_TAP.into_iter().for_each(impossible_offloads_are_refused_on);
}

fn impossible_offloads_are_refused_on(port: PortKind) {
    let Some(mut rig) = Rig::on(port, "impossible_offloads_are_refused", &["--control", "{control}"]) else {
        return;
    };
    let mut session = rig.session(&setup());
    let good = uso_header(1000);
    let frame = udp((1, 1), (2, 2), &[7; 3000]);
    let wrong = [
        NetHeader { gso_size: 0, ..good },
        NetHeader { gso_size: 1, ..good },
        NetHeader { flags: 0, ..good },
        NetHeader { csum_start: 0xffff, ..good },
        NetHeader { csum_start: 35, ..good },
        NetHeader { csum_offset: 16, ..good },
        NetHeader { gso_type: gso::TCPV4, ..good },
        NetHeader { gso_type: 0x7f, ..good },
    ];
    for header in &wrong {
        session.tx(0).send_cut(header, &frame, &[], LIMIT).expect("returned");
    }
    assert_eq!(rig.status()["counters"][0]["tx_refused"], wrong.len(), "{port:?}");
    rig.both_ways(&mut session, 3);
}

/// Frames that the interface does not take are refused, counted, and named once.
#[test]
fn longer_frames_are_refused_by_name() {
    let test = "longer_frames_are_refused_by_name";
    let Some(mut rig) = Rig::on(PortKind::Xdp, test, &["--control", "{control}"]) else { return };
    let mut session = rig.session(&setup());
    for len in [1523, 1600, 9000] {
        session.tx(0).send(&numbered(1, len), LIMIT).expect("returned");
    }
    rig.logged(&["frames of 1523 bytes, the interface takes 1522"]);
    assert_eq!(rig.status()["counters"][0]["tx_refused"], 3);
    // Room for VLAN tags, as far as the other end passes them.
    session.tx(0).send(&numbered(2, 1522), LIMIT).expect("returned");
    assert_eq!(rig.status()["counters"][0]["tx_refused"], 3);
    rig.both_ways(&mut session, 3);
    assert_eq!(rig.daemon.log().matches("the interface takes 1522").count(), 1, "once");
}

/// More frames than rings hold, at once and both ways: none is lost to the wire.
#[test]
fn rings_fill_up_and_go_on() {
    let Some(mut rig) = Rig::on(PortKind::Xdp, "rings_fill_up_and_go_on", &[]) else { return };
    let mut session = rig.session(&setup());
    let payload = vec![3; 60_000];
    let (frame, start) = tcp(false, false, &payload);
    let headers = frame.len() - payload.len();
    // 600 segments each: the transmit ring has room for three frames.
    let header = NetHeader {
        flags: gso::NEEDS_CSUM,
        gso_type: gso::TCPV4,
        hdr_len: headers as u16,
        gso_size: 100,
        csum_start: start,
        csum_offset: 16,
        num_buffers: 0,
    };
    let mut bytes = 0;
    for _ in 0..12 {
        session.tx(0).offer(&header, &frame, &[]).expect("room");
    }
    session.tx(0).kick().expect("a kick");
    while bytes < 12 * payload.len() {
        let (_, segment) = rig.wire.recv(LIMIT).expect("the wire").expect("a segment");
        bytes += segment.len() - headers;
    }
    for _ in 0..12 {
        session.tx(0).used(LIMIT).expect("used");
    }
    let before = rig.usage();
    rig.both_ways(&mut session, 3);
    let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
    assert!(ticks <= 3, "{ticks} ticks while idle");
    drop(session);
    rig.well(&before);
}

/// Set down and up again: each change is logged once, frames are returned meanwhile, and nothing spins.
#[test]
fn set_down_and_up() {
    let Some(mut rig) = Rig::on(PortKind::Xdp, "set_down_and_up", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    for round in 1..3 {
        rig.both_ways(&mut session, 5);
        rig.netns.ip("link set dev tap0 down").expect("down");
        let down = || {
            session.tx(0).send(&numbered(1, 100), LIMIT).expect("returned");
            (rig.daemon.log().matches("tap0 is down").count() == round).then_some(())
        };
        assert!(poll_until(LIMIT, down).is_some(), "{}", rig.daemon.log());
        let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
        assert!(ticks <= 3, "{ticks} ticks without an interface");
        rig.netns.ip("link set dev tap0 up").expect("up");
        let back = poll_until(LIMIT, || {
            session.tx(0).send(&numbered(1, 100), LIMIT).expect("returned");
            rig.wire.recv(Duration::from_millis(20)).expect("the wire")
        });
        assert!(back.is_some(), "frames flow again:\n{}", rig.daemon.log());
        while rig.wire.recv(QUIET).expect("the wire").is_some() {}
    }
    rig.both_ways(&mut session, 5);
}

/// Deleted without a front-end and with one, the interface is opened again.
#[test]
fn deleted_and_made_again() {
    let Some(mut rig) = Rig::on(PortKind::Xdp, "deleted_and_made_again", &[]) else { return };
    let before = rig.usage();
    for _ in 0..2 {
        rig.netns.ip("link del dev tap0").expect("deleted");
        let mut session = rig.session(&Setup::default());
        let from = rig.daemon.log().len();
        session.tx(0).send(&numbered(1, 100), LIMIT).expect("returned");
        rig.add_port_again();
        assert!(rig.daemon.logged(from, &["opened again"], LIMIT).is_some(), "{}", rig.daemon.log());
        let back = poll_until(LIMIT, || {
            session.tx(0).send(&numbered(1, 100), LIMIT).expect("returned");
            rig.wire.recv(Duration::from_millis(20)).expect("the wire")
        });
        assert!(back.is_some(), "frames flow again:\n{}", rig.daemon.log());
        while rig.wire.recv(QUIET).expect("the wire").is_some() {}
        rig.both_ways(&mut session, 10);
    }
    rig.well(&before);
}

/// Deleted while the guest only listens, and while no worker lives: the interface is opened again.
#[test]
fn found_again_by_a_silent_guest_and_a_new_worker() {
    let test = "found_again_by_a_silent_guest_and_a_new_worker";
    let Some(mut rig) = Rig::on(PortKind::Xdp, test, &SUPERVISED) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    for killed in [false, true] {
        let from = rig.daemon.log().len();
        rig.netns.ip("link del dev tap0").expect("deleted");
        if killed {
            rig.kill_worker();
        }
        rig.add_port_again();
        assert!(rig.daemon.logged(from, &["opened again"], LIMIT).is_some(), "{}", rig.daemon.log());
        let heard = poll_until(LIMIT, || {
            rig.wire.send(&numbered(7, 100)).expect("sent");
            session.rx(0).recv(Duration::from_millis(50)).ok()
        });
        assert_eq!(number_of(&heard.expect("the guest hears again").bytes), Some(7));
        while session.rx(0).recv(QUIET).is_ok() {}
        rig.both_ways(&mut session, 5);
    }
}

fn netd(netns: &Netns, arguments: &[&str]) -> Command {
    let mut command = netns.command(program("volt-netd"));
    command.args(arguments);
    command
}

/// Runs volt-netd, which must refuse, and returns what it says.
fn refusal(mut command: Command) -> String {
    command.args(["--socket", "/nonexistent/s", "--control", "none"]);
    let output = command.stderr(std::process::Stdio::piped()).output().expect("volt-netd");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_cannot_be_opened_is_named() {
    let Some(netns) = privileged("what_cannot_be_opened_is_named") else { return };
    netns.add_veth("tap0", VETH_PEER, true).expect("a veth pair");
    let refused = |arguments: &[&str], words: &str| {
        let said = refusal(netd(&netns, arguments));
        assert!(said.contains(words), "{arguments:?}: {said}");
    };
    refused(&["--xdp", "none0"], "there is no interface none0");
    refused(&["--xdp", "tap0,queue=9"], "tap0 has no queue 9, but 4 from 0");
    refused(&["--xdp", "tap0,queue=2", "--queues", "3"], "tap0 has no queue 4, but 4 from 0");
    refused(&["--xdp", "tap0,mode=zero-copy"], "does not support sockets without copies: use mode=copy");
    netns.ip("link set dev lo mtu 1500").expect("an MTU");
    refused(&["--xdp", "lo,mode=copy"], "the driver of lo does not support XDP: use mode=generic");
    netns.ip(&format!("link set dev {VETH_PEER} mtu 9000")).expect("an MTU");
    refused(&["--xdp", "tap0"], "the driver of tap0 refuses an XDP program: a veth needs a peer with an MTU");
    netns.ip("link set dev tap0 mtu 9000").expect("an MTU");
    refused(&["--xdp", "tap0"], "tap0 has an MTU of 9000: AF_XDP needs 3818 or less");
    for interface in ["tap0", VETH_PEER] {
        netns.ip(&format!("link set dev {interface} mtu 1500")).expect("an MTU");
    }
    let mut limited = netns.command("setpriv");
    limited.args(["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock", "prlimit", "--memlock=65536"]);
    limited.arg(program("volt-netd")).args(["--xdp", "tap0"]);
    let said = refusal(limited);
    assert!(said.contains("the limit for locked memory is too low for 6144 KiB"), "{said}");
    let mut unprivileged = netns.command("setpriv");
    unprivileged.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(program("volt-netd"));
    let said = refusal({
        unprivileged.args(["--xdp", "tap0"]);
        unprivileged
    });
    assert!(said.contains("tap0: AF_XDP needs CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF"), "{said}");
    refused(&["--xsk-fd", "97:98:99"], "descriptor 99 is not open");

    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("s");
    let mut daemon =
        Daemon::start(netd(&netns, &["--xdp", "tap0,queue=1", "--socket", &socket.display().to_string()]))
            .expect("volt-netd");
    daemon.wait_for_socket(&socket, LIMIT).expect("volt-netd listens");
    assert!(daemon.logged(0, &["tap0 has 4 queues", "ethtool -N tap0"], LIMIT).is_some(), "{}", daemon.log());
    refused(&["--xdp", "tap0,queue=1"], "queue 1 of tap0 is busy");
    refused(&["--xdp", "tap0,queue=2"], "tap0 has an XDP program already");
    assert!(daemon.stop(LIMIT).expect("SIGTERM works").success());
    let shown = netns.command("ip").args(["link", "show", "dev", "tap0"]).output().expect("ip");
    assert!(!String::from_utf8_lossy(&shown.stdout).contains("xdp"), "the program goes with its daemon");
}

/// A helper with rights opens the interface for a daemon without any.
#[test]
fn a_helper_opens_for_a_daemon_without_rights() {
    let Some(netns) = privileged("a_helper_opens_for_a_daemon_without_rights") else { return };
    netns.add_veth("tap0", VETH_PEER, false).expect("a veth pair");
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).expect("for everybody");
    // Its own directories belong to root.
    let copy = dir.path().join("volt-netd");
    protocol_tests::daemon::copy_of("volt-netd", &copy);
    let socket = dir.path().join("s");
    let mut command = netd(&netns, &["xdp-helper", "tap0,mode=generic", "--user", "nobody", "--"]);
    command.arg(&copy).arg("--socket").arg(&socket).args(["--supervise", "--control", "none"]);
    let mut daemon = Daemon::start(command).expect("volt-netd");
    daemon.wait_for_socket(&socket, LIMIT).expect("volt-netd listens");
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("it runs");
    for words in ["CapEff:\t0000000000000000", "CapPrm:\t0000000000000000"] {
        assert!(status.contains(words), "{status}");
    }
    assert!(!status.contains("Uid:\t0"), "{status}");
    let wire = Wire::of_interface(PortKind::Xdp, &netns).expect("a packet socket");
    let frontend = Frontend::connect(&socket, LIMIT).expect("a connection");
    let mut session = Session::start(frontend, &Setup::default()).expect("a session");
    session.rx(0).fill(8, &[2048]).expect("buffers");
    for number in 1..5 {
        session.tx(0).send(&numbered(number, 500), LIMIT).expect("used");
        assert_eq!(number_of(&wire.recv(LIMIT).expect("the wire").expect("a frame").1), Some(number));
        wire.send(&numbered(number, 500)).expect("sent");
        assert_eq!(number_of(&session.rx(0).recv(LIMIT).expect("a frame").bytes), Some(number));
    }
    // It cannot open the interface again, and says so.
    netns.ip("link del dev tap0").expect("deleted");
    session.tx(0).send(&numbered(9, 500), LIMIT).expect("returned");
    assert!(daemon.logged(0, &["cannot be reopened"], LIMIT).is_some(), "{}", daemon.log());
    drop(session);
    assert!(daemon.stop(LIMIT).expect("SIGTERM works").success());
}
