//! Tests of the receive half with a driver and a socket pair.

use volt_virtio::testing::{BUFFERS, Driver};

use super::*;
use crate::offloads::missing_checksum;
use crate::testing::{Rig, frame};

const MERGE: Features = Features::NET_MRG_RXBUF.union(Features::NET_GUEST_CSUM);

fn rx(driver: &Driver) -> Rx {
    Rx::new(Rig::vring(driver, 0), driver.features)
}

/// Adds `count` separate buffers of `len` bytes.
fn post(driver: &mut Driver, count: usize, len: u32) {
    for i in 0..count as u64 {
        driver.add(&[(BUFFERS + i * 0x1000, len, true)]);
    }
}

/// Returns the frame in `count` buffers of `len` bytes from buffer `first` on.
fn merged(driver: &Driver, first: usize, used: &[(u32, u32)]) -> Vec<u8> {
    used.iter()
        .enumerate()
        .flat_map(|(i, (_, len))| driver.read_vec(BUFFERS + ((first + i) * 0x1000) as u64, *len as usize))
        .collect()
}

fn with_buffers(mut frame: Vec<u8>, count: u16) -> Vec<u8> {
    frame[10..12].copy_from_slice(&count.to_le_bytes());
    frame
}

#[test]
fn one_buffer_one_frame() {
    let mut driver = Driver::new(8, Features::NET_GUEST_CSUM);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    post(&mut driver, 2, 2000);
    wire.send(&frame(1000, 1));
    wire.send(&frame(60, 2));
    assert_eq!(rig.rx(&mut rx), Ok(Turn::NoBuffers));
    let used = driver.take_used();
    assert_eq!(used, [(0, 1012), (1, 72)]);
    assert_eq!(merged(&driver, 0, &used[..1]), with_buffers(frame(1000, 1), 1));
    assert_eq!(merged(&driver, 1, &used[1..]), with_buffers(frame(60, 2), 1));
}

#[test]
fn a_mergeable_frame_takes_several_buffers_first_by_copy_then_directly() {
    let mut driver = Driver::new(64, MERGE);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    post(&mut driver, 24, 1526);
    for (round, seed) in [(0, 1), (1, 2)] {
        wire.send(&frame(12000, seed));
        assert_eq!(rig.rx(&mut rx), Ok(Turn::Idle));
        let used = driver.take_used();
        assert_eq!(used.len(), 8, "8 x 1526 = 12208 >= 12012");
        assert_eq!(used[7].1, 12012 - 7 * 1526);
        assert_eq!(merged(&driver, round * 8, &used), with_buffers(frame(12000, seed), 8));
    }
    assert!(rx.stashed.is_none());
    // Buffers that were gathered for long frames serve short ones, one each.
    wire.send(&frame(60, 3));
    wire.send(&frame(1514, 4));
    rig.rx(&mut rx).unwrap();
    let used = driver.take_used();
    assert_eq!(used, [(16, 72), (17, 1526)]);
    assert_eq!(merged(&driver, 17, &used[1..]), with_buffers(frame(1514, 4), 1));
}

#[test]
fn what_is_shorter_than_any_frame_is_counted() {
    let mut driver = Driver::new(8, MERGE);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    post(&mut driver, 2, 2000);
    [0, 13].into_iter().for_each(|len| wire.send(&frame(len, 1)));
    wire.send(&frame(14, 2));
    rig.rx(&mut rx).unwrap();
    assert_eq!((rig.counters.rx_failed.get(), rig.counters.rx_frames.get()), (2, 1));
    assert_eq!(driver.take_used(), [(0, 26)]);
}

#[test]
fn a_frame_waits_for_buffers_and_is_given_up_only_for_a_full_ring() {
    let mut driver = Driver::new(8, MERGE);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    post(&mut driver, 2, 100);
    wire.send(&frame(500, 1));
    assert_eq!(rig.rx(&mut rx), Ok(Turn::NoBuffers));
    assert_eq!(driver.used_idx(), 0);
    for i in 2..6 {
        driver.add(&[(BUFFERS + i * 0x1000, 100, true)]);
    }
    // More than half the ring: published at once.
    assert_eq!(rig.rx(&mut rx), Ok(Turn::More));
    assert_eq!(rig.rx(&mut rx), Ok(Turn::NoBuffers));
    let used = driver.take_used();
    assert_eq!(used.len(), 6);
    assert_eq!(merged(&driver, 0, &used), with_buffers(frame(500, 1), 6));

    post(&mut driver, 8, 100);
    wire.send(&frame(900, 1));
    wire.send(&frame(60, 2));
    assert_eq!(rig.rx(&mut rx), Ok(Turn::Idle));
    assert_eq!(rig.counters.rx_too_long.get(), 1);
    assert_eq!(driver.take_used(), [(6, 72)]);
}

#[test]
fn half_a_ring_is_published_before_the_rest_is_filled() {
    let mut driver = Driver::new(8, MERGE);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    post(&mut driver, 8, 2000);
    for seed in 0..6 {
        wire.send(&frame(60, seed));
    }
    assert_eq!(rig.rx(&mut rx), Ok(Turn::More));
    assert_eq!(driver.take_used().len(), 4);
    assert_eq!(rig.rx(&mut rx), Ok(Turn::Idle));
    assert_eq!(driver.take_used().len(), 2);
}

#[test]
fn without_merging_a_long_frame_is_dropped_and_its_buffer_kept() {
    let mut driver = Driver::new(8, Features::empty());
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    post(&mut driver, 3, 1526);
    wire.send(&frame(1515, 1));
    wire.send(&frame(1514, 2));
    assert_eq!(rig.rx(&mut rx), Ok(Turn::Idle));
    let used = driver.take_used();
    assert_eq!(used, [(0, 1526)]);
    assert_eq!(merged(&driver, 0, &used), with_buffers(frame(1514, 2), 1));
    assert_eq!(rig.counters.rx_too_long.get(), 1);
}

#[test]
fn big_packets_fill_one_chain_of_many_parts() {
    let mut driver = Driver::new(64, Features::NET_GUEST_CSUM);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    let pages: Vec<_> = (0..17).map(|i| (BUFFERS + i * 0x2000, 0x1000, true)).collect();
    driver.add(&pages);
    wire.send(&frame(65000, 5));
    assert_eq!(rig.rx(&mut rx), Ok(Turn::NoBuffers));
    assert_eq!(driver.take_used(), [(0, 65012)]);
    let bytes: Vec<u8> = (0..17).flat_map(|i| driver.read_vec(BUFFERS + i * 0x2000, 0x1000)).collect();
    assert_eq!(bytes[..65012], with_buffers(frame(65000, 5), 1));
}

#[test]
fn more_parts_than_a_system_call_takes() {
    let mut driver = Driver::new(8, Features::INDIRECT_DESC.union(Features::NET_GUEST_CSUM));
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    let table: Vec<_> = (0..3012).map(|i| (BUFFERS + i * 2, 1, true)).collect();
    driver.table(0x8_0000, 0, 3012, &table);
    driver.descriptor(0, 0x8_0000, 3012 * 16, 4, 0);
    driver.offer(0);
    wire.send(&frame(3000, 1));
    assert_eq!(rig.rx(&mut rx), Ok(Turn::NoBuffers));
    assert_eq!(driver.take_used(), [(0, 3012)]);
    let bytes: Vec<u8> = driver.read_vec(BUFFERS, 6024).into_iter().step_by(2).collect();
    assert_eq!(bytes, with_buffers(frame(3000, 1), 1));
}

#[test]
fn checksum_flags_are_for_drivers_that_know_them() {
    for (features, flags) in [(Features::empty(), 0), (Features::NET_GUEST_CSUM, 2)] {
        let mut driver = Driver::new(8, features);
        let (mut rig, wire) = Rig::new();
        let mut rx = rx(&driver);
        post(&mut driver, 1, 2000);
        let mut with_flag = frame(100, 1);
        with_flag[0] = 2;
        wire.send(&with_flag);
        rig.rx(&mut rx).unwrap();
        assert_eq!(driver.read_vec(BUFFERS, 1), [flags]);
    }
}

#[test]
fn malformed_buffers_come_back_in_order_and_frames_go_on() {
    let mut driver = Driver::new(16, MERGE);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    driver.add(&[(BUFFERS, 11, true)]);
    driver.add(&[(BUFFERS, 2000, false)]);
    driver.add(&[(BUFFERS, 2000, true)]);
    driver.add(&[(u64::MAX - 1, 2000, true)]);
    driver.add(&[(BUFFERS + 0x1000, 2000, true)]);
    wire.send(&frame(1000, 1));
    wire.send(&frame(1000, 2));
    assert_eq!(rig.rx(&mut rx), Ok(Turn::NoBuffers));
    assert_eq!(driver.take_used(), [(0, 0), (1, 0), (2, 1012), (3, 0), (4, 1012)]);
    assert_eq!(rig.counters.rx_bad_chain.get(), 3);
    assert_eq!(driver.read_vec(BUFFERS + 0x1000, 1012), with_buffers(frame(1000, 2), 1));
}

#[test]
fn a_frame_that_only_a_malformed_buffer_could_complete_is_given_up() {
    let mut driver = Driver::new(16, MERGE);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    post(&mut driver, 1, 100);
    driver.add(&[(u64::MAX - 1, 2000, true)]);
    wire.send(&frame(500, 1));
    assert_eq!(rig.rx(&mut rx), Ok(Turn::Idle));
    assert_eq!(rig.counters.rx_too_long.get(), 1);
    assert_eq!(driver.used_idx(), 0);
}

#[test]
fn gathered_buffers_are_found_again_after_a_restart() {
    let mut driver = Driver::new(64, MERGE);
    let (mut rig, wire) = Rig::new();
    let mut first = rx(&driver);
    post(&mut driver, 20, 1526);
    wire.send(&frame(9000, 1));
    rig.rx(&mut first).unwrap();
    assert_eq!(rig.rx(&mut first), Ok(Turn::Idle));
    let used = driver.take_used().len();
    assert!(first.vring.ring.outstanding() > 0, "buffers are gathered for the next frame");
    drop(first);
    let mut second = rx(&driver);
    for seed in 0..20 - used {
        wire.send(&frame(60, seed));
        rig.rx(&mut second).unwrap();
    }
    let heads: Vec<_> = driver.take_used().iter().map(|(head, _)| *head).collect();
    assert_eq!(heads, (used as u32..20).collect::<Vec<_>>(), "each buffer once, none lost");
}

#[test]
fn an_endless_mix_of_lengths_keeps_memory_bounded() {
    let mut driver = Driver::new(64, MERGE);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    let mut posted = 0u64;
    let mut add = |driver: &mut Driver, count: usize| {
        for _ in 0..count {
            driver.add(&[(BUFFERS + posted % 64 * 0x1000, 512, true)]);
            posted += 1;
        }
    };
    add(&mut driver, 64);
    for i in 0..5000 {
        wire.send(&frame([60, 1500, 9000][i % 3], i));
        rig.rx(&mut rx).unwrap();
        let used = driver.take_used().len();
        add(&mut driver, used);
    }
    assert_eq!(rig.counters.rx_frames.get(), 5000);
    assert!(rx.parts.capacity() <= 2 * MAX_PARTS);
}

#[test]
fn a_ring_full_of_malformed_buffers_is_taken_in_turns() {
    let mut driver = Driver::new(256, MERGE);
    let (mut rig, _wire) = Rig::new();
    let mut rx = rx(&driver);
    for _ in 0..200 {
        driver.add(&[(u64::MAX - 1, 2000, true)]);
    }
    for turn in 1..=3 {
        assert_eq!(rig.rx(&mut rx), Ok(Turn::More));
        assert_eq!(usize::from(driver.used_idx()), turn * BATCH, "published before the next turn");
    }
    assert_eq!(rig.rx(&mut rx), Ok(Turn::NoBuffers));
    assert_eq!(rig.counters.rx_bad_chain.get(), 200);
}

#[test]
fn a_frame_that_waits_for_buffers_goes_on_with_the_next_who_serves() {
    let mut driver = Driver::new(8, MERGE);
    let (mut rig, wire) = Rig::new();
    let mut first = rx(&driver);
    post(&mut driver, 2, 100);
    let sent = frame(500, 1);
    wire.send(&sent);
    assert_eq!(rig.rx(&mut first), Ok(Turn::NoBuffers));
    let stash = first.take_stash().unwrap();
    assert_eq!(stash[12..], sent[12..]);
    drop(first);
    let mut second = rx(&driver);
    second.put_stash(&stash);
    for i in 2..6 {
        driver.add(&[(BUFFERS + i * 0x1000, 100, true)]);
    }
    rig.rx(&mut second).unwrap();
    assert_eq!((rig.counters.rx_frames.get(), driver.take_used().len()), (1, 6));
    second.put_stash(&vec![0; 1 << 20]);
    assert!(second.take_stash().is_none(), "no frame is so long");
}

/// Returns a UDP datagram whose checksum the port leaves to the driver, with header, and the completed frame.
fn without_checksum(gso_type: u8) -> (Vec<u8>, Vec<u8>) {
    let mut sent = frame(100, 1);
    (sent[0], sent[1], sent[6], sent[8]) = (1, gso_type, 34, 6);
    let (at, sum) = missing_checksum(&sent).unwrap().unwrap();
    let mut whole = with_buffers(sent.clone(), 1);
    whole[0] = 0;
    whole[at..at + 2].copy_from_slice(&sum);
    (sent, whole)
}

#[test]
fn a_frame_of_an_earlier_driver_is_finished_or_dropped() {
    const TSO4: u8 = 1;
    let mut driver = Driver::new(64, Features::NET_MRG_RXBUF);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    // The checksum is split across two buffers, and the longer frames are stashed first.
    post(&mut driver, 6, 53);
    wire.send(&without_checksum(TSO4).0);
    wire.send(&without_checksum(0).0);
    wire.send(&frame(20, 9));
    rig.rx(&mut rx).unwrap();
    let used = driver.take_used();
    assert_eq!(used, [(0, 53), (1, 53), (2, 6), (3, 32)]);
    assert_eq!(merged(&driver, 0, &used[..3]), with_buffers(without_checksum(0).1, 3));
    assert_eq!(merged(&driver, 3, &used[3..]), with_buffers(frame(20, 9), 1));
    assert_eq!((rig.counters.rx_frames.get(), rig.counters.rx_not_offloaded.get()), (2, 1));
}

#[test]
fn a_driver_without_segmentation_still_finishes_checksums() {
    let mut driver = Driver::new(8, Features::NET_GUEST_CSUM);
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    post(&mut driver, 2, 2000);
    for gso_type in [1, 5, 77, 0] {
        wire.send(&without_checksum(gso_type).0);
    }
    rig.rx(&mut rx).unwrap();
    let used = driver.take_used();
    assert_eq!(used, [(0, 112)]);
    assert_eq!(merged(&driver, 0, &used), with_buffers(without_checksum(0).0, 1));
    assert_eq!(rig.counters.rx_not_offloaded.get(), 3);
}

#[test]
fn a_checksum_outside_of_its_frame_is_no_checksum() {
    let mut driver = Driver::new(8, Features::empty());
    let (mut rig, wire) = Rig::new();
    let mut rx = rx(&driver);
    post(&mut driver, 1, 2000);
    let mut wrong = frame(100, 1);
    (wrong[0], wrong[6], wrong[8]) = (1, 99, 0);
    wire.send(&wrong);
    rig.rx(&mut rx).unwrap();
    assert_eq!((driver.used_idx(), rig.counters.rx_not_offloaded.get()), (0, 1));
}
