//! Tests of the ring with a driver in the same memory.

use super::*;
use crate::chain::ChainError;
use crate::testing::{BUFFERS, Driver};

fn lens(ring: &Ring, head: u16) -> Result<Vec<usize>, ChainError> {
    let mut parts = Vec::new();
    ring.walk(Head(head), |part, _| parts.push(part.len())).map(|()| parts)
}

fn drain(ring: &mut Ring) -> usize {
    let mut count = 0;
    while let Some(head) = ring.pop().unwrap() {
        ring.push_used(head, 0);
        count += 1;
    }
    count
}

#[test]
fn needs_event_is_whether_the_index_passed_the_event() {
    // The definition, for every old index and batch length: event is one of old, old+1 .. new-1.
    for old in [0u16, 1, 254, 0x7fff, 0xfffe, 0xffff] {
        for len in [1u16, 2, 7, 256, 32768] {
            let new = old.wrapping_add(len);
            for event in 0..=u16::MAX {
                let inside = event.wrapping_sub(old) < len;
                assert_eq!(needs_event(Wrapping(event), Wrapping(new), Wrapping(old)), inside);
            }
        }
    }
}

/// virtio 1.2, 2.7.7.2: the device notifies when the index moves past the event. Only differences count. So
/// the test covers all of u16 with every batch length at every border of its window, moved to every place.
#[test]
fn needs_event_depends_on_differences_alone_and_is_right_at_every_border() {
    for len in 1..=u16::MAX {
        for event in [0, len / 2, len - 1, len, len.wrapping_add(1), u16::MAX] {
            let told = needs_event(Wrapping(event), Wrapping(len), Wrapping(0));
            assert_eq!(told, event < len, "event {event} of {len}");
        }
    }
    for place in 0..=u16::MAX {
        for (event, len) in [(0u16, 1u16), (1, 1), (255, 256), (256, 256), (32767, 32768), (65535, 32768)] {
            let [event, new] = [event, len].map(|at| Wrapping(at) + Wrapping(place));
            let there = needs_event(event, new, Wrapping(place));
            let here = needs_event(event - Wrapping(place), Wrapping(len), Wrapping(0));
            assert_eq!(there, here, "at {place}");
        }
    }
}

/// virtio 1.2, 2.7.6 and 2.7.8: entry N of a ring is at N modulo its size, for every size and every index.
/// Masking gives the same result, because sizes are powers of two and divide 65,536.
#[test]
fn every_index_has_its_slot_in_every_size() {
    for size in (0..16).map(|log| 1u16 << log) {
        let mut expected = 0;
        for index in 0..=u16::MAX {
            assert_eq!(index & (size - 1), expected, "{index} of {size}");
            expected = if expected + 1 == size { 0 } else { expected + 1 };
        }
        assert_eq!(expected, 0, "index 65,536 is index 0");
    }
}

#[test]
fn wraps_past_65536_chains() {
    let mut driver = Driver::new(4, Features::EVENT_IDX);
    let mut ring = driver.ring();
    for round in 0..40_000u32 {
        let a = driver.add(&[(BUFFERS, 1, false)]);
        let b = driver.add(&[(BUFFERS, 1, false)]);
        driver.set_used_event(driver.used_idx().wrapping_add(1));
        assert_eq!(drain(&mut ring), 2);
        assert!(ring.publish(), "round {round}");
        assert_eq!(driver.take_used(), [(u32::from(a), 0), (u32::from(b), 0)]);
    }
    assert_eq!(ring.base(), driver.used_idx());
    assert_eq!(ring.base(), (80_000u32 % 65536) as u16);
}

#[test]
fn starts_at_the_used_index_and_finds_what_was_popped() {
    let mut driver = Driver::new(8, Features::empty());
    let mut ring = driver.ring();
    for _ in 0..5 {
        driver.add(&[(BUFFERS, 1, false)]);
    }
    let first = ring.pop().unwrap().unwrap();
    ring.push_used(first, 0);
    ring.publish();
    ring.pop().unwrap();
    ring.pop().unwrap();
    let mut second = driver.ring();
    assert_eq!(second.base(), 1);
    assert_eq!(drain(&mut second), 4);
    second.publish();
    assert_eq!(driver.take_used(), [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0)]);
}

#[test]
fn notifies_without_event_idx_unless_told_not_to() {
    let mut driver = Driver::new(8, Features::empty());
    let mut ring = driver.ring();
    assert!(!ring.publish(), "nothing to tell");
    driver.add(&[(BUFFERS, 1, false)]);
    drain(&mut ring);
    assert!(ring.publish());
    driver.set_u16(driver.layout.avail, AVAIL_F_NO_INTERRUPT);
    driver.add(&[(BUFFERS, 1, false)]);
    drain(&mut ring);
    assert!(!ring.publish());
}

#[test]
fn kick_wishes() {
    let mut driver = Driver::new(8, Features::empty());
    let mut ring = driver.ring();
    ring.disable_kicks();
    assert_eq!(driver.u16(driver.layout.used), USED_F_NO_NOTIFY);
    assert_eq!(ring.enable_kicks(), Ok(false));
    assert_eq!(driver.u16(driver.layout.used), 0);
    driver.add(&[(BUFFERS, 1, false)]);
    assert_eq!(ring.enable_kicks(), Ok(true));

    let mut driver = Driver::new(8, Features::EVENT_IDX);
    let mut ring = driver.ring();
    driver.add(&[(BUFFERS, 1, false)]);
    drain(&mut ring);
    assert_eq!(ring.enable_kicks(), Ok(false));
    assert_eq!(driver.avail_event(), 1);
}

#[test]
fn an_index_jump_breaks_the_ring() {
    let driver = Driver::new(8, Features::empty());
    let mut ring = driver.ring();
    driver.set_u16(driver.layout.avail + 2, 9);
    assert_eq!(ring.pop(), Err(RingError::AvailIndex { from: 0, to: 9, size: 8 }));
    driver.set_u16(driver.layout.avail + 2, 8);
    assert!(ring.pop().is_ok());
}

#[test]
fn popped_chains_count_as_outstanding() {
    let driver = Driver::new(8, Features::empty());
    let mut ring = driver.ring();
    driver.set_u16(driver.layout.avail + 2, 8);
    for _ in 0..8 {
        assert_eq!(ring.pop(), Ok(Some(Head(0))));
    }
    driver.set_u16(driver.layout.avail + 2, 9);
    assert_eq!(ring.pop(), Err(RingError::AvailIndex { from: 8, to: 9, size: 8 }));
}

/// Chains that the device holds cannot be taken back.
#[test]
fn an_index_that_goes_back_breaks_the_ring() {
    let driver = Driver::new(8, Features::empty());
    let mut ring = driver.ring();
    driver.set_u16(driver.layout.avail + 2, 4);
    for _ in 0..4 {
        assert_eq!(ring.pop(), Ok(Some(Head(0))));
    }
    driver.set_u16(driver.layout.avail + 2, 2);
    assert_eq!(ring.pop(), Err(RingError::AvailIndex { from: 4, to: 2, size: 8 }));
}

#[test]
fn a_head_outside_the_table_breaks_the_ring() {
    let mut driver = Driver::new(8, Features::empty());
    let mut ring = driver.ring();
    driver.offer(8);
    assert_eq!(ring.pop(), Err(RingError::Head { head: 8, size: 8 }));
}

#[test]
fn chains_of_every_shape() {
    let mut driver = Driver::new(8, Features::INDIRECT_DESC);
    let ring = driver.ring();
    let head = driver.add(&[(BUFFERS, 10, false), (BUFFERS + 64, 0, false), (BUFFERS + 128, 20, true)]);
    assert_eq!(lens(&ring, head), Ok(vec![10, 20]));

    // A table longer than the ring, after a direct descriptor.
    let buffers: Vec<_> = (0..2000).map(|i| (BUFFERS + i * 2, 1, false)).collect();
    driver.table(0x20_0000, 0, 2000, &buffers);
    driver.descriptor(0, BUFFERS, 7, F_NEXT, 1);
    driver.descriptor(16, 0x20_0000, 2000 * 16, F_INDIRECT, 0);
    let found = lens(&ring, 0).unwrap();
    assert_eq!((found.len(), found[0], found[2000]), (2001, 7, 1));
}

const F_NEXT: u16 = 1;
const F_INDIRECT: u16 = 4;

#[test]
fn malformed_chains_are_named() {
    let driver = Driver::new(8, Features::INDIRECT_DESC);
    let ring = driver.ring();
    let error = |addr, len, flags, next| {
        driver.descriptor(0, addr, len, flags, next);
        lens(&ring, 0).unwrap_err()
    };
    assert_eq!(error(BUFFERS, 1, F_NEXT, 8), ChainError::Next { number: 0, next: 8, size: 8 });
    assert_eq!(error(BUFFERS, 1, F_NEXT, 0), ChainError::Loop(8));
    let end = crate::testing::MEMORY as u64;
    assert_eq!(error(end - 1, 2, 0, 0), ChainError::Unmapped { addr: end - 1, len: 2 });
    assert_eq!(error(u64::MAX, 2, 0, 0), ChainError::Unmapped { addr: u64::MAX, len: 2 });
    assert_eq!(error(BUFFERS, 16, F_INDIRECT | F_NEXT, 0), ChainError::Indirect { number: 0, flags: 5 });
    assert_eq!(error(BUFFERS, 0, F_INDIRECT, 0), ChainError::TableLength(0));
    assert_eq!(error(BUFFERS, 24, F_INDIRECT, 0), ChainError::TableLength(24));
    assert_eq!(error(BUFFERS, u32::MAX - 15, F_INDIRECT, 0), ChainError::TableLength(u32::MAX - 15));
    assert_eq!(error(end - 8, 16, F_INDIRECT, 0), ChainError::Table { addr: end - 8 });
    driver.descriptor(BUFFERS, BUFFERS, 16, F_INDIRECT, 0);
    assert_eq!(error(BUFFERS, 16, F_INDIRECT, 0), ChainError::Indirect { number: 0, flags: 4 });
    driver.descriptor(BUFFERS, BUFFERS, 1, F_NEXT, 1);
    assert_eq!(error(BUFFERS, 16, F_INDIRECT, 0), ChainError::Next { number: 0, next: 1, size: 1 });

    // More bytes than any chain has, in guest memory or not.
    driver.table(BUFFERS, 0, 2100, &[(0, 0x20_0000, false)].repeat(2100));
    assert_eq!(error(BUFFERS, 2100 * 16, F_INDIRECT, 0), ChainError::Long(1 << 32));

    let driver = Driver::new(8, Features::empty());
    driver.descriptor(0, BUFFERS, 16, F_INDIRECT, 0);
    let error = lens(&driver.ring(), 0).unwrap_err();
    assert_eq!(error, ChainError::Indirect { number: 0, flags: 4 });
}

#[test]
fn a_ring_needs_a_size_and_memory() {
    let driver = Driver::new(8, Features::EVENT_IDX);
    let start = |layout| Ring::start(driver.memory.clone(), layout, Features::EVENT_IDX).unwrap_err();
    for size in [0, 100, 65535] {
        assert_eq!(start(RingLayout { size, ..driver.layout }), StartError::Size(size));
    }
    let area = |layout| match start(layout) {
        StartError::Area { area, .. } => area,
        StartError::Size(_) => "size",
    };
    let end = crate::testing::MEMORY as u64;
    assert_eq!(area(RingLayout { desc: 8, ..driver.layout }), "descriptor table");
    assert_eq!(area(RingLayout { avail: end - 20, ..driver.layout }), "available ring");
    assert_eq!(area(RingLayout { used: end - 68, ..driver.layout }), "used ring");
}

#[test]
fn a_head_of_another_ring_leads_nowhere_else() {
    let mut driver = Driver::new(256, Features::empty());
    let mut large = driver.ring();
    let mut head = None;
    for _ in 0..256 {
        driver.add(&[(BUFFERS, 1, true)]);
        head = large.pop().unwrap();
    }
    let head = head.unwrap();
    assert_eq!(head.number(), 255);
    let mut driver = Driver::new(8, Features::empty());
    let mut small = driver.ring();
    for len in 1..=8 {
        driver.add(&[(BUFFERS, len, true)]);
    }
    // The available and used ring are outside of the small table.
    assert_eq!(small.single(head).map(|(part, writable)| (part.len(), writable)), Some((8, true)));
    assert_eq!(lens(&small, head.number()), Ok(vec![8]));
    assert!(small.pop().is_ok());
    small.push_used(head, 0);
}
