//! Tests of the scripted peers against each other, before they judge a program.

use std::time::Duration;

use protocol_tests::backend::{Backend, Script};
use protocol_tests::frame::{NetHeader, number_of, numbered};
use protocol_tests::frontend::Frontend;
use protocol_tests::memory::RegionSpec;
use protocol_tests::rig::LIMIT;
use protocol_tests::ring::{DriverRing, Layout, Part, RingError, need_event};
use protocol_tests::session::{Session, Setup};
use protocol_tests::wire::{encode, feature, longs, request, words};

/// Returns a back-end in a separate directory, and a front-end connected to it.
fn pair(script: Script) -> (tempfile::TempDir, Backend, Frontend) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let backend = Backend::listen(&path, script).expect("a listener");
    let frontend = Frontend::connect(&path, LIMIT).expect("a connection");
    (dir, backend, frontend)
}

/// Frames pass both ways unchanged, in every notification and buffer mode of the peers.
#[test]
fn frames_both_ways_in_every_mode() {
    for without in [0, feature::EVENT_IDX, feature::MRG_RXBUF, feature::EVENT_IDX | feature::INDIRECT_DESC] {
        let (_dir, backend, frontend) = pair(Script { echo: true, ..Script::default() });
        let base = Setup::default();
        let setup = Setup { features: base.features & !without, size: 8, ..base };
        let mut session = Session::start(frontend, &setup).expect("a session");
        let (size, buffer) =
            if session.nic.features & feature::MRG_RXBUF != 0 { (900, 500) } else { (900, 2048) };
        session.rx(0).fill(8, &[buffer]).expect("buffers");
        for number in 0..50 {
            let frame = numbered(number, size);
            let used =
                session.tx(0).send_cut(&NetHeader::default(), &frame, &[12, 1, 30], LIMIT).expect("sent");
            assert_eq!(used.len, 0, "a device writes nothing to a chain it only reads");
            session.tx(0).parts(used);
            let (_, _, sent) = backend.sent(LIMIT).expect("the back-end got it");
            assert_eq!(sent, frame);
            let back = session.rx(0).recv(LIMIT).expect("an echo");
            assert_eq!(number_of(&back.bytes), Some(number));
            assert_eq!(back.chains.len(), if buffer == 500 { 2 } else { 1 });
        }
        assert!(backend.faults().is_empty(), "{:?}", backend.faults());
    }
}

/// Both sides count through 65,536, with EVENT_IDX and without.
#[test]
fn indices_wrap() {
    for features in [Setup::default().features, Setup::default().features & !feature::EVENT_IDX] {
        let (_dir, backend, frontend) = pair(Script::default());
        let setup = Setup { start: 65_500, size: 16, features, ..Setup::default() };
        let mut session = Session::start(frontend, &setup).expect("a session");
        for number in 0..100 {
            session.tx(0).send(&numbered(number, 64), LIMIT).expect("sent");
            let (_, _, sent) = backend.sent(LIMIT).expect("the back-end got it");
            assert_eq!(number_of(&sent), Some(number));
        }
        assert_eq!(session.tx(0).ring.used_idx(), 64);
    }
}

/// Rings and buffers may cross from one region into the next, which is another file at an odd offset.
#[test]
fn memory_crosses_regions() {
    let (_dir, backend, frontend) = pair(Script { echo: true, ..Script::default() });
    // The first borders cut the descriptor table and the used ring of vring 0, the others cut buffers.
    let regions = RegionSpec::adjoining(
        0x1000,
        &[
            (0x200, 0),
            (0x300, 0x10),
            (0x5b00, 0x1234),
            (0x7000, 0),
            (0x8000, 0x30),
            (0x9000, 0x1000),
            (0x40000, 8),
        ],
    );
    let setup = Setup { regions, size: 64, ..Setup::default() };
    let mut session = Session::start(frontend, &setup).expect("a session");
    session.rx(0).fill(2, &[9000]).expect("buffers");
    let frame = numbered(7, 8900);
    session.tx(0).send(&frame, LIMIT).expect("sent");
    assert_eq!(session.rx(0).recv(LIMIT).expect("an echo").bytes, frame);
    assert!(backend.faults().is_empty(), "{:?}", backend.faults());
}

/// A message may arrive in single bytes, and two messages at once.
#[test]
fn split_and_coalesced_messages() {
    let (_dir, backend, mut frontend) = pair(Script::default());
    let ask = encode(request::GET_FEATURES, 0, &[]);
    frontend.channel().send_split(&ask, &[1; 11], &[]).expect("sent in pieces");
    frontend.channel().recv_reply(request::GET_FEATURES).expect("a reply");
    let two = [encode(request::SET_VRING_NUM, 0, &words(&[1, 64])), ask].concat();
    frontend.channel().send_bytes(&two, &[]).expect("sent as one");
    let features =
        frontend.channel().recv_reply(request::GET_FEATURES).expect("a reply").u64().expect("a u64");
    assert_eq!(features, Script::default().features);
    let requests: Vec<_> = backend.record().iter().map(|seen| (seen.request, seen.body.clone())).collect();
    let num = (request::SET_VRING_NUM, words(&[1, 64]));
    assert_eq!(requests, [(request::GET_FEATURES, vec![]), num, (request::GET_FEATURES, vec![])]);
}

/// The configuration can be read piece by piece; reading beyond its end is refused with an empty body.
#[test]
fn configuration_by_bytes() {
    let (_dir, _backend, frontend) = pair(Script::default());
    let bytes: Vec<u8> = (0..12).map(|at| frontend.get_config(at, 1).expect("a byte")[0]).collect();
    assert_eq!(bytes, Script::default().config);
    assert!(frontend.get_config(12, 1).is_err());
}

/// After a reconnect a card continues at its used index.
#[test]
fn session_resumes() {
    let (dir, backend, frontend) = pair(Script::default());
    let mut session = Session::start(frontend, &Setup::default()).expect("a session");
    session.tx(0).send(&numbered(1, 60), LIMIT).expect("sent");
    let nic = session.nic;
    drop(session.frontend);
    let frontend = Frontend::connect(&dir.path().join("s"), LIMIT).expect("a connection");
    let mut session = Session::resume(frontend, nic, &Setup::default()).expect("a session again");
    session.tx(0).send(&numbered(2, 60), LIMIT).expect("sent");
    let numbers: Vec<_> = (0..2).map(|_| number_of(&backend.sent(LIMIT).expect("a frame").2)).collect();
    assert_eq!(numbers, [Some(1), Some(2)]);
    assert_eq!(session.stop().expect("bases").0, [0, 2]);
    assert!(backend.record().iter().any(|seen| seen.connection == 1));
}

/// A silent peer is a time-out; a peer that does not know a request disconnects: neither hangs.
#[test]
fn silence_and_refusal_are_results() {
    let (_dir, backend, mut frontend) = pair(Script::default());
    frontend.channel().set_patience(Duration::from_millis(50));
    assert!(frontend.channel().recv().is_err(), "nobody spoke");
    frontend.channel().set_patience(LIMIT);
    frontend.tell(request::SEND_RARP, &longs(&[0]), &[]).expect("sent");
    frontend.channel().expect_closed().expect("a request that was not offered ends the connection");
    drop(frontend);
    assert_eq!(backend.record().len(), 1);
}

/// The scripted driver detects a device that returns a chain twice, an unknown chain, or too many.
#[test]
fn driver_notices_a_broken_device() {
    let mem = protocol_tests::memory::GuestMemory::flat(0x1000, 0x10000).expect("memory");
    let layout = Layout::at(0x1000, 4);
    let mut ring = DriverRing::new(mem.clone(), layout, false, 0);
    let head = ring.add(&[Part::out(0x2000, 64)]).expect("room");
    ring.publish();
    mem.store(layout.used + 2, 2);
    assert_eq!(ring.pop_used(), Err(RingError::UsedAhead { used: 2, avail: 1 }));
    mem.store(layout.used + 2, 1);
    mem.write(layout.used + 4, &words(&[u32::from(head) + 1, 0]));
    assert_eq!(ring.pop_used(), Err(RingError::NotInFlight { index: 0, id: u32::from(head) + 1 }));
    mem.write(layout.used + 4, &words(&[u32::from(head), 0]));
    assert_eq!(ring.pop_used().expect("an intact ring").map(|used| used.head), Some(head));
}

/// Compares `vring_need_event` with its definition by counting (virtio 1.2, 2.7.7.2), also across the wrap.
#[test]
fn need_event_by_counting() {
    for old in [0u16, 1, 100, 65_530, 65_535] {
        for steps in 0..20u16 {
            let new = old.wrapping_add(steps);
            for event in (0..40u16).map(|off| old.wrapping_sub(10).wrapping_add(off)) {
                let passed = (0..steps).any(|step| old.wrapping_add(step) == event);
                assert_eq!(need_event(event, new, old), passed, "event {event} new {new} old {old}");
            }
        }
    }
}
