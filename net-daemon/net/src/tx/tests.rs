//! Tests of the transmit half with a driver and a socket pair.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use volt_virtio::features::Features;
use volt_virtio::testing::{BUFFERS, Driver};

use super::*;
use crate::testing::{Rig, frame};

fn tx(driver: &Driver, discard: bool) -> Tx {
    Tx::new(Rig::vring(driver, 1), discard)
}

#[test]
fn frames_of_every_shape_arrive_whole_and_in_order() {
    let mut driver = Driver::new(256, Features::INDIRECT_DESC);
    let (mut rig, wire) = Rig::new();
    let mut tx = tx(&driver, false);
    let bytes = frame(3000, 1);
    driver.write(BUFFERS, &bytes);
    let at = |offset: usize| BUFFERS + offset as u64;
    driver.add(&[(at(0), 3012, false)]);
    driver.add(&[(at(0), 12, false), (at(12), 3000, false)]);
    // A header in two parts, empty buffers in between, parts in descending order of addresses.
    driver.add(&[
        (at(0), 5, false),
        (at(0), 0, false),
        (at(5), 7, false),
        (at(12), 1, false),
        (at(13), 2999, false),
    ]);
    // One byte a part, in a table longer than the ring: more parts than a system call accepts, none adjacent.
    let table: Vec<_> = (0..3012).map(|i| (at(0x1_0000 + i * 2), 1, false)).collect();
    for (i, byte) in bytes.iter().enumerate() {
        driver.write(at(0x1_0000 + i * 2), &[*byte]);
    }
    driver.table(0x8_0000, 0, 3012, &table);
    driver.descriptor(100 * 16, 0x8_0000, 3012 * 16, 4, 0);
    driver.offer(100);
    assert_eq!(rig.tx(&mut tx), Ok(Turn::Idle));
    assert_eq!(driver.take_used(), [(0, 0), (1, 0), (3, 0), (100, 0)]);
    for _ in 0..4 {
        assert_eq!(wire.receive().as_deref(), Some(&bytes[..]));
    }
    assert_eq!(rig.counters.tx_frames.get(), 4);
    assert_eq!(rig.counters.tx_bytes.get(), 4 * 3012);
}

#[test]
fn malformed_chains_come_back_and_the_ring_goes_on() {
    let mut driver = Driver::new(16, Features::empty());
    let (mut rig, wire) = Rig::new();
    let mut tx = tx(&driver, false);
    driver.write(BUFFERS, &frame(60, 1));
    let heads = [
        driver.add(&[(BUFFERS, 25, false)]),
        driver.add(&[(BUFFERS, 72, true)]),
        driver.add(&[(BUFFERS, MAX_FRAME_LEN as u32 + 1, false)]),
        driver.add(&[(u64::MAX - 5, 72, false)]),
        driver.add(&[(BUFFERS, u32::MAX, false)]),
        driver.add(&[(BUFFERS, 72, false)]),
    ];
    assert_eq!(rig.tx(&mut tx), Ok(Turn::Idle));
    assert_eq!(driver.take_used(), heads.map(|head| (u32::from(head), 0)));
    assert_eq!(rig.counters.tx_bad_chain.get(), 5);
    assert_eq!(wire.receive(), Some(frame(60, 1)));
    assert_eq!(wire.receive(), None);
}

#[test]
fn a_full_port_keeps_the_frame() {
    let mut driver = Driver::new(4096, Features::empty());
    let (mut rig, wire) = Rig::new();
    let mut tx = tx(&driver, false);
    driver.write(BUFFERS, &frame(60, 1));
    for _ in 0..4096 {
        driver.add(&[(BUFFERS, 72, false)]);
    }
    let mut turn = Ok(Turn::More);
    while turn == Ok(Turn::More) {
        turn = rig.tx(&mut tx);
    }
    assert_eq!(turn, Ok(Turn::PortFull), "a datagram socket holds a few frames only");
    assert_eq!(tx.vring.ring.outstanding(), 0, "what was not sent was put back");
    let mut received = 0;
    while driver.used_idx() < 4096 {
        while wire.receive().is_some() {
            received += 1;
        }
        rig.tx(&mut tx).unwrap();
    }
    while wire.receive().is_some() {
        received += 1;
    }
    assert_eq!(received, 4096);
}

#[test]
fn a_batch_is_published_at_once_and_bounded() {
    let mut driver = Driver::new(256, Features::empty());
    let (mut rig, _wire) = Rig::new();
    let mut tx = tx(&driver, true);
    for _ in 0..BATCH + 1 {
        driver.add(&[(BUFFERS, 72, false)]);
    }
    assert_eq!(rig.tx(&mut tx), Ok(Turn::More));
    assert_eq!(driver.used_idx(), BATCH as u16);
    assert_eq!(rig.tx(&mut tx), Ok(Turn::Idle));
    assert_eq!(rig.counters.tx_disabled.get(), BATCH as u64 + 1);
}

#[test]
fn a_broken_ring_publishes_what_was_sent_before() {
    let mut driver = Driver::new(16, Features::empty());
    let (mut rig, wire) = Rig::new();
    let mut tx = tx(&driver, false);
    driver.write(BUFFERS, &frame(60, 1));
    driver.add(&[(BUFFERS, 72, false)]);
    driver.offer(999);
    assert_eq!(rig.tx(&mut tx), Err(RingError::Head { head: 999, size: 16 }));
    assert_eq!(driver.take_used(), [(0, 0)]);
    assert!(wire.receive().is_some());
}

#[test]
fn a_port_that_is_gone_drops_frames_and_raises_the_flag() {
    let mut driver = Driver::new(16, Features::empty());
    let (mut rig, wire) = Rig::new();
    let mut tx = tx(&driver, false);
    drop(wire);
    driver.write(BUFFERS, &frame(60, 1));
    driver.add(&[(BUFFERS, 72, false)]);
    assert_eq!(rig.tx(&mut tx), Ok(Turn::Idle));
    assert_eq!(driver.take_used(), [(0, 0)]);
    assert_eq!(rig.counters.tx_no_port.get(), 1);
    assert!(rig.trouble.take_port_gone());
    let (ours, _theirs) = UnixDatagram::pair().unwrap();
    rig.queue = Arc::new(crate::port::queue::FdQueue::new(OwnedFd::from(ours)).unwrap());
    driver.add(&[(BUFFERS, 72, false)]);
    assert_eq!(rig.tx(&mut tx), Ok(Turn::Idle));
    assert_eq!(rig.counters.tx_frames.get(), 1);
}
