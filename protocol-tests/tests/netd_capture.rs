//! The output of `volt-netd ctl capture`: frames from and to a guest, and their fates.

use std::path::Path;
use std::process::Command;

use protocol_tests::capture::{Client, is_off, numbers};
use protocol_tests::frame::{NetHeader, gso, number_of, numbered, udp};
use protocol_tests::pcapng::Captured;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::{Session, Setup};
use protocol_tests::wire::feature;

const CONTROL: [&str; 2] = ["--control", "{control}"];

/// Returns tcpdump's output for a file, a line for each frame. Returns `None`, and prints why, if tcpdump is
/// missing.
fn tcpdump(test: &str, file: &Path) -> Option<Vec<String>> {
    let output = Command::new("tcpdump").args(["-n", "-t", "-r"]).arg(file).output();
    let output =
        output.inspect_err(|error| eprintln!("SKIP {test}: scripts/setup installs tcpdump: {error}")).ok()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("truncated"), "{said}");
    // tcpdump prints unknown frames in hexadecimal, in separate lines.
    let lines = String::from_utf8_lossy(&output.stdout);
    Some(lines.lines().filter(|line| !line.starts_with('\t')).map(str::to_owned).collect())
}

/// All frames, in order, byte by byte, with their directions; tcpdump reads the same.
#[test]
fn frames_of_both_directions_are_captured() {
    let test = "frames_of_both_directions_are_captured";
    let Some(mut rig) = Rig::new(test, &CONTROL) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    let mut client = Client::start(&rig, &[]);
    let status = rig.status();
    assert_eq!(status["capture"], serde_json::json!({ "pair": null, "frames": 0, "lost": 0 }));
    rig.both_ways(&mut session, 20);
    let capture = client.stop();
    let expected: Vec<u32> = (1_000_004..1_000_024).collect();
    assert_eq!((numbers(&capture, false), numbers(&capture, true)), (expected.clone(), expected));
    assert_eq!(capture.interfaces, ["tap0 pair 0"]);
    assert_eq!(capture.statistics, [(0, 40, 0)]);
    assert!(capture.frames.iter().all(|frame| frame.lost == 0 && frame.len as usize == frame.bytes.len()));
    let times: Vec<u64> = capture.frames.iter().map(|frame| frame.time).collect();
    assert!(times.is_sorted() && times[0] > 0 && times[39] - times[0] < LIMIT.as_nanos() as u64, "{times:?}");
    is_off(&rig);
    rig.both_ways(&mut session, 3);
    if let Some(lines) = tcpdump(test, &client.file) {
        assert_eq!(lines.len(), 40);
        assert!(lines.iter().all(|line| line.contains("02:00:00:00:00:02 > 02:00:00:00:00:01")), "{lines:?}");
    }
}

/// Offloads in a header become a comment in words, both ways.
#[test]
fn offloads_are_told() {
    let Some(rig) = Rig::new("offloads_are_told", &CONTROL) else { return };
    let base = Setup::default();
    let mut session =
        rig.session(&Setup { features: base.features | feature::CSUM | feature::GUEST_CSUM, ..base });
    let mut client = Client::start(&rig, &[]);
    let header = NetHeader { flags: gso::NEEDS_CSUM, csum_start: 34, csum_offset: 6, ..NetHeader::default() };
    let frame = udp((2, 1000), (1, 53), b"checksum");
    session.tx(0).send_cut(&header, &frame, &[], LIMIT).expect("used");
    rig.expect(&frame);
    rig.wire.send_with(&header, &frame).expect("sent");
    session.rx(0).recv(LIMIT).expect("received");
    rig.wire.send(&numbered(1, 100)).expect("sent");
    session.rx(0).recv(LIMIT).expect("received");
    let capture = client.stop();
    let told = "offload: checksum from byte 34 on to be written at byte 40";
    let comments: Vec<_> = capture.frames.iter().map(|frame| frame.comments.clone()).collect();
    assert_eq!(comments[..2], [[told], [told]]);
    assert!(comments[2].is_empty(), "a header that says nothing has no comment: {:?}", comments[2]);
}

/// Each dropped frame appears once, with all its bytes.
#[test]
fn dropped_frames_have_a_reason() {
    let Some(rig) = Rig::new("dropped_frames_have_a_reason", &CONTROL) else { return };
    let base = Setup::default();
    let setup = Setup { features: base.features & !feature::MRG_RXBUF, ..base };
    let mut session = Session::start(rig.connect(), &setup).expect("a session");
    session.rx(0).fill(8, &[300]).expect("small buffers");
    let mut client = Client::start(&rig, &[]);
    let wrong = NetHeader { gso_type: 0x7f, ..NetHeader::default() };
    session.tx(0).send_cut(&wrong, &numbered(1, 100), &[], LIMIT).expect("used");
    session.frontend.set_vring_enable(1, false).expect("disabled");
    session.frontend.sync().expect("done");
    session.tx(0).send(&numbered(2, 1400), LIMIT).expect("used");
    session.frontend.set_vring_enable(1, true).expect("enabled");
    session.frontend.sync().expect("done");
    rig.wire.send(&numbered(3, 1400)).expect("sent");
    rig.wire.send(&numbered(4, 100)).expect("sent");
    assert_eq!(session.rx(0).recv(LIMIT).expect("the one that fits").bytes, numbered(4, 100));
    rig.netns.ip("link set dev tap0 down").expect("ip");
    session.tx(0).send(&numbered(5, 100), LIMIT).expect("used");
    rig.netns.ip("link set dev tap0 up").expect("ip");
    let counters = rig.status()["counters"][0].clone();
    let capture = client.stop();
    let reason = |frame: &Captured| {
        let dropped = frame.comments.iter().find_map(|comment| comment.strip_prefix("dropped: "));
        (number_of(&frame.bytes), frame.inbound, dropped.map(str::to_owned))
    };
    let expected = [
        (1, false, Some("tx_refused")),
        (2, false, Some("tx_disabled")),
        (3, true, Some("rx_too_long")),
        (4, true, None),
        (5, false, Some("tx_no_port")),
    ];
    let expected = expected.map(|(number, inbound, why)| (Some(number), inbound, why.map(str::to_owned)));
    assert_eq!(capture.frames.iter().map(reason).collect::<Vec<_>>(), expected);
    for key in ["tx_refused", "tx_disabled", "rx_too_long", "tx_no_port"] {
        assert_eq!(counters[key], 1, "{key}: {counters:#}");
    }
}

/// `--snap`, `--count`, `--direction`, `--for` and `--pair`.
#[test]
fn only_what_is_asked_for_is_captured() {
    let arguments = [&["--queues", "2"], &CONTROL[..]].concat();
    let Some(rig) = Rig::new("only_what_is_asked_for_is_captured", &arguments) else { return };
    let mut session = rig.session(&Setup::pairs(2));
    let mut client = Client::start(&rig, &["--snap", "60", "--count", "3", "--direction", "tx"]);
    for number in 1..=4 {
        rig.wire.send(&udp((1, 10_000), (2, 53), &[number; 40])).expect("sent");
        rig.guest_to_wire(&mut session, &numbered(number.into(), 200));
    }
    let capture = client.captured();
    assert_eq!(capture.interfaces, ["tap0 pair 0", "tap0 pair 1"]);
    let frames: Vec<_> = capture.frames.iter().map(|frame| (frame.inbound, frame.len)).collect();
    assert_eq!(frames, [(false, 200); 3]);
    for (frame, number) in capture.frames.iter().zip(1..) {
        assert_eq!(frame.bytes, numbered(number, 200)[..60]);
    }
    is_off(&rig);
    // Frames of the other pair are not captured.
    let mut client = Client::start(&rig, &["--pair", "1", "--direction", "both", "--count", "1"]);
    rig.guest_to_wire(&mut session, &numbered(5, 100));
    session.tx(1).send(&numbered(6, 100), LIMIT).expect("used");
    rig.expect(&numbered(6, 100));
    let capture = client.captured();
    assert_eq!(capture.interfaces, ["tap0 pair 1"]);
    assert_eq!(numbers(&capture, false), [6]);
    for _ in 0..2 {
        let capture = Client::start(&rig, &["--direction", "rx", "--for", "50ms"]).captured();
        assert_eq!(capture.statistics, [(0, 0, 0), (1, 0, 0)], "no frames arrived in that time");
    }
}
