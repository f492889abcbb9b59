//! The tests' network namespace: frames and offloads pass a TAP in it both ways, and it leaves nothing
//! behind.

use protocol_tests::frame::{numbered, udp, uso_header};
use protocol_tests::netns::TAP_FLAGS;
use protocol_tests::rig::{LIMIT, namespace};

/// Frames that the TAP's user writes reach the wire, and the other way round.
#[test]
fn frames_pass_a_tap() {
    let Some(netns) = namespace("frames_pass_a_tap") else { return };
    let tap = netns.open_tap("tap0", TAP_FLAGS).expect("a TAP");
    netns.ip("link set dev tap0 up").expect("up");
    let wire = netns.wire("tap0").expect("a packet socket");
    rustix::io::write(&tap, &[[0; 10].as_slice(), &numbered(5, 100)].concat()).expect("written");
    assert_eq!(wire.recv(LIMIT).expect("no error").expect("a frame").1, numbered(5, 100));
    wire.send(&numbered(6, 200)).expect("sent");
    let mut bytes = [0; 2000];
    let len = rustix::io::read(&tap, &mut bytes).expect("read");
    assert_eq!(bytes[10..len], numbered(6, 200));
    let frame = udp((1, 1000), (2, 2000), &[7; 3000]);
    rustix::io::write(&tap, &[&uso_header(1000).encode()[..10], &frame].concat()).expect("USO is accepted");
    let (header, seen) = wire.recv(LIMIT).expect("no error").expect("a frame");
    assert_eq!((header.gso_type, header.gso_size, seen), (5, 1000, frame));
}
