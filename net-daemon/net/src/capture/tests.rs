use volt_virtio::features::Features;
use volt_virtio::testing::{BUFFERS, Driver};

use super::*;
use crate::capture::ring::{Captured, Fate, readers};
use crate::counters::DropReason;
use crate::rx::Rx;
use crate::testing::{Rig, Wire, frame};
use crate::tx::Tx;

const ALL: CaptureOptions = CaptureOptions { pair: None, snap: 65_536, rx: true, tx: true };

/// A pair with a capture.
struct Captive {
    rig: Rig,
    wire: Wire,
    queue: Arc<dyn PortQueue>,
    reader: ring::RingReader,
    capture: Capture,
}

impl Captive {
    fn new(options: CaptureOptions) -> Captive {
        let (rig, wire) = Rig::new();
        let capture = Capture::new(options, 1).unwrap();
        let memory = capture.file().unwrap().try_clone().unwrap();
        let reader = readers(memory.into(), 1).unwrap().remove(0);
        let queue = capture.before(0, rig.queue.clone());
        Captive { rig, wire, queue, reader, capture }
    }

    fn send(&mut self, frame: &[u8], discard: bool) {
        let mut driver = Driver::new(8, Features::empty());
        driver.write(BUFFERS, frame);
        driver.add(&[(BUFFERS, frame.len() as u32, false)]);
        let mut tx = Tx::new(Rig::vring(&driver, 1), discard);
        tx.run(&*self.queue, &mut self.rig.health, &self.rig.counters).unwrap();
    }

    /// Receives the waiting frames into this many buffers of 1024 bytes.
    fn receive(&mut self, buffers: u64, features: Features) {
        let mut driver = Driver::new(8, Features::empty());
        for at in 0..buffers {
            driver.add(&[(BUFFERS + at * 1024, 1024, true)]);
        }
        let mut rx = Rx::new(Rig::vring(&driver, 0), features);
        rx.run(&*self.queue, &mut self.rig.health, &self.rig.counters).unwrap();
    }

    fn captured(&mut self) -> Vec<Captured> {
        let next = || self.reader.next_time(true).map(|_| self.reader.take().unwrap());
        std::iter::from_fn(next).collect()
    }
}

fn fates(captured: &[Captured]) -> Vec<(bool, Fate, usize)> {
    captured.iter().map(|one| (one.is_rx, one.fate, one.len)).collect()
}

#[test]
fn frames_are_copied_with_their_headers() {
    let mut pair = Captive::new(ALL);
    pair.send(&frame(60, 1), false);
    assert_eq!(pair.wire.receive(), Some(frame(60, 1)));
    pair.wire.send(&frame(70, 2));
    pair.receive(2, Features::empty());
    let captured = pair.captured();
    assert_eq!(fates(&captured), [(false, Fate::Passed, 72), (true, Fate::Passed, 82)]);
    assert_eq!((&captured[0].bytes, &captured[1].bytes), (&frame(60, 1), &frame(70, 2)));
    assert!(captured[0].time > 1_600_000_000_000_000_000 && captured[0].time <= captured[1].time);
}

#[test]
fn a_snapshot_has_the_header_and_so_many_bytes_more() {
    let mut pair = Captive::new(CaptureOptions { snap: 14, rx: false, ..ALL });
    pair.send(&frame(60, 1), false);
    pair.wire.send(&frame(70, 2));
    pair.receive(2, Features::empty());
    let captured = pair.captured();
    assert_eq!(fates(&captured), [(false, Fate::Passed, 72)], "the other way is not asked for");
    assert_eq!(captured[0].bytes, frame(60, 1)[..26]);
}

/// Each drop reason is captured once, with the frame's bytes.
#[test]
fn frames_that_go_nowhere_are_marked() {
    let mut pair = Captive::new(ALL);
    pair.send(&frame(60, 1), true);
    let mut segments = frame(70, 2);
    segments[..2].copy_from_slice(&[1, 1]);
    pair.wire.send(&segments);
    pair.wire.send(&frame(9, 3));
    pair.wire.send(&frame(1500, 4));
    pair.wire.send(&frame(80, 5));
    pair.receive(1, Features::empty());
    let (gone, whole) = Rig::new();
    drop(whole);
    pair.queue = pair.capture.before(0, gone.queue.clone());
    pair.send(&frame(60, 6), false);
    let captured = pair.captured();
    let dropped = |reason| Fate::Dropped(reason);
    let expected = [
        (false, dropped(DropReason::TxDisabled), 72),
        (true, dropped(DropReason::RxNotOffloaded), 82),
        (true, dropped(DropReason::RxFailed), 21),
        (true, dropped(DropReason::RxTooLong), 1512),
        (true, Fate::Passed, 92),
        (false, dropped(DropReason::TxNoPort), 72),
    ];
    assert_eq!(fates(&captured), expected);
    assert_eq!((&captured[0].bytes, &captured[1].bytes), (&frame(60, 1), &segments));
    assert_eq!(captured[3].bytes, frame(1500, 4));
    for reason in [DropReason::TxDisabled, DropReason::RxNotOffloaded, DropReason::RxFailed] {
        assert_eq!(pair.rig.counters.dropped(reason).get(), 1, "{reason:?}");
    }
}

#[test]
fn only_pairs_that_are_asked_for_have_a_ring() {
    let capture = Capture::new(CaptureOptions { pair: Some(2), ..ALL }, 4).unwrap();
    assert_eq!(capture.pairs(), [2]);
    assert_eq!(Capture::new(ALL, 127).unwrap().pairs().len(), 127);
}
