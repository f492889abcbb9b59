//! volt-netd on rings, chains and memory of every shape that the specification allows.

use std::time::Duration;

use protocol_tests::frame::{NetHeader, gso, number_of, numbered, udp, uso_header};
use protocol_tests::memory::{GuestMemory, RegionSpec};
use protocol_tests::nic::Queue;
use protocol_tests::rig::{LIMIT, QUIET, Rig};
use protocol_tests::ring::Part;
use protocol_tests::session::{Session, Setup};
use protocol_tests::wire::{feature, readable};

/// Cuts a frame's header and bytes into `count` parts of one byte and a last one with the rest, with a gap
/// after each, so that they cannot be joined.
fn bytewise(queue: &mut Queue, mem: &GuestMemory, frame: &[u8], count: usize) -> Vec<Part> {
    let bytes = [NetHeader::default().encode().as_slice(), frame].concat();
    let at = queue.alloc(bytes.len() + 8 * count);
    let part = |index: usize| {
        let end = if index == count - 1 { bytes.len() } else { index + 1 };
        let place = at + 8 * index as u64;
        mem.write(place, &bytes[index..end]);
        Part::out(place, (end - index) as u32)
    };
    (0..count).map(part).collect()
}

/// Chains of more than 1024 parts, direct and indirect, are sent whole: one system call takes fewer iovecs.
#[test]
fn transmit_chains_of_many_parts() {
    let Some(rig) = Rig::new("transmit_chains_of_many_parts", &[]) else { return };
    let mut session = rig.session(&Setup { size: 4096, ..Setup::default() });
    for (number, count) in [(1, 1023), (2, 1024), (3, 1025), (4, 1030), (5, 2500), (6, 4096)] {
        for indirect in [false, true] {
            let frame = numbered(number, 6000);
            let mem = session.nic.mem.clone();
            let parts = bytewise(session.tx(0), &mem, &frame, count);
            let head = match indirect {
                true => session.tx(0).submit_indirect(&parts),
                false => session.tx(0).submit(&parts),
            };
            session.tx(0).kick().expect("kicked");
            let used = session.tx(0).used(LIMIT).expect("used");
            assert_eq!((used.head, used.len), (head.expect("room"), 0));
            rig.expect(&frame);
        }
    }
}

/// Receive chains of more than 1024 parts are filled whole, direct and indirect.
#[test]
fn receive_chains_of_many_parts() {
    let Some(rig) = Rig::new("receive_chains_of_many_parts", &[]) else { return };
    let setup = Setup { size: 4096, ..Setup::default() };
    for indirect in [false, true] {
        let mut session = Session::start(rig.connect(), &setup).expect("a session");
        let queue = session.rx(0);
        let at = queue.alloc(8 * 1500);
        let parts: Vec<Part> = (0..1500).map(|i| Part::into(at + 8 * i, 3)).collect();
        match indirect {
            true => queue.submit_indirect(&parts).expect("room"),
            false => queue.submit(&parts).expect("room"),
        };
        queue.kick().expect("kicked");
        rig.wire.send(&numbered(7, 4000)).expect("sent");
        let got = queue.recv_only(LIMIT, false).expect("a frame");
        assert_eq!((got.bytes, got.header.num_buffers), (numbered(7, 4000), 1));
    }
}

/// Direct descriptors followed by an indirect table are one chain.
#[test]
fn direct_then_indirect() {
    let Some(rig) = Rig::new("direct_then_indirect", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    let frame = numbered(3, 500);
    let queue = session.tx(0);
    let parts = queue.place(&NetHeader::default(), &frame, &[4, 8, 100]);
    let table = queue.alloc(16 * 2);
    queue.ring.add_mixed(&parts[..2], Some((table, &parts[2..]))).expect("room");
    queue.kick().expect("kicked");
    queue.used(LIMIT).expect("used");
    rig.expect(&frame);
}

/// Every ring size from one buffer to 32768 carries frames, also without INDIRECT and EVENT_IDX.
#[test]
fn ring_sizes() {
    let Some(mut rig) = Rig::new("ring_sizes", &[]) else { return };
    for size in [1, 2, 4, 256, 1024, 32768] {
        for without in [0, feature::EVENT_IDX | feature::INDIRECT_DESC] {
            let base = Setup::default();
            let mut session = rig.session(&Setup { size, features: base.features & !without, ..base });
            rig.both_ways(&mut session, 5);
        }
    }
}

/// Rings and buffers may cross from one memory region into the next, in another file at another offset:
/// page-aligned or not, with the regions in any order.
#[test]
fn memory_crosses_regions() {
    let Some(mut rig) = Rig::new("memory_crosses_regions", &[]) else { return };
    // The first three borders cut vring 0's descriptor table, available ring and used ring near their
    // beginning, one border each, the most that the daemon accepts. The others cut buffers.
    let sizes = [0x100, 0xf20, 0x240, 0x20000, 0x40000, 0xc0000];
    let aligned = [0, 0x2000, 0x1000, 0, 0x3000, 0];
    let odd = [0, 0x10, 0x1230, 0x8, 0x30, 0x1ff0];
    for offsets in [aligned, odd] {
        let pieces: Vec<(u64, u64)> = sizes.into_iter().zip(offsets).collect();
        for order in [[0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 1, 3]] {
            let sorted = RegionSpec::adjoining(0x10_0000, &pieces);
            let regions = order.iter().map(|at| sorted[*at]).collect();
            let mut session = rig.session(&Setup { size: 256, regions, ..Setup::default() });
            rig.both_ways(&mut session, 40);
            for number in 100..110 {
                let frame = numbered(number, 8000);
                rig.guest_to_wire(&mut session, &frame);
            }
        }
    }
}

/// A buffer may lie in regions whose user addresses are far apart: only guest addresses are adjacent.
#[test]
fn buffers_cross_regions_that_adjoin_for_the_guest_only() {
    let Some(rig) = Rig::new("buffers_cross_regions_that_adjoin_for_the_guest_only", &[]) else { return };
    let mut regions =
        RegionSpec::adjoining(0x10_0000, &[(0x10_0000, 0), (0x10_0000, 0x3000), (0x10_0000, 0)]);
    regions[1].user = 0x10_0000_0000;
    regions[2].user = 0x20_0000_0000;
    let mut session =
        Session::start(rig.connect(), &Setup { size: 64, regions, ..Setup::default() }).expect("session");
    let mem = session.nic.mem.clone();
    let border = 0x10_0000 + 0x10_0000;
    let frame = numbered(77, 3000);
    let bytes = [NetHeader::default().encode().as_slice(), &frame].concat();
    mem.write(border - 1000, &bytes);
    session.tx(0).submit(&[Part::out(border - 1000, bytes.len() as u32)]).expect("room");
    session.tx(0).kick().expect("kicked");
    session.tx(0).used(LIMIT).expect("used");
    rig.expect(&frame);
    session.rx(0).submit(&[Part::into(border + 0x10_0000 - 17, 9000)]).expect("room");
    session.rx(0).kick().expect("kicked");
    rig.wire.send(&frame).expect("sent");
    assert_eq!(session.rx(0).recv_only(LIMIT, false).expect("a frame").bytes, frame);
}

/// Mergeable buffers: a frame takes as many as it needs, all published together, each but the last filled to
/// its end, and `num_buffers` gives their number.
#[test]
fn mergeable_buffers() {
    let Some(rig) = Rig::new("mergeable_buffers", &[]) else { return };
    let mut session = Session::start(rig.connect(), &Setup::default()).expect("a session");
    session.rx(0).fill(128, &[100, 50]).expect("buffers");
    for (number, len) in [(1, 60), (2, 138), (3, 139), (4, 288), (5, 289), (6, 1500), (7, 8000)] {
        rig.wire.send(&numbered(number, len)).expect("sent");
        let got = session.rx(0).recv(LIMIT).expect("a frame");
        assert_eq!(number_of(&got.bytes), Some(number));
        let needed = (12 + len).div_ceil(150);
        assert_eq!(usize::from(got.header.num_buffers), needed);
        let full = got.chains.iter().rev().skip(1).all(|used| used.len == 150);
        assert!(full, "all but the last buffer are full: {:?}", got.chains);
    }
}

/// A driver never sees some of a frame's buffers without the others (virtio 1.2, 5.1.6.4): the used index is
/// stored once for all eight. Without EVENT_IDX each store is followed by a call, so the calls count the
/// stores.
#[test]
fn all_buffers_of_a_frame_appear_at_once() {
    let Some(rig) = Rig::new("all_buffers_of_a_frame_appear_at_once", &[]) else { return };
    let base = Setup::default();
    let setup = Setup { features: base.features & !feature::EVENT_IDX, ..base };
    let mut session = Session::start(rig.connect(), &setup).expect("a session");
    session.rx(0).fill(256, &[200]).expect("buffers");
    // A worker that has sent a frame has made all earlier calls.
    let settle = |session: &mut Session| session.tx(0).send(&numbered(99, 60), LIMIT).expect("sent");
    settle(&mut session);
    assert_ne!(session.rx(0).drain_call(), 0, "a ring that starts is called");
    for number in 0..10 {
        rig.wire.send(&numbered(number, 8 * 200 - 12)).expect("sent");
        assert!(readable(&session.rx(0).call, LIMIT).expect("poll"), "the driver is called");
        settle(&mut session);
        assert_eq!(session.rx(0).drain_call(), 1, "one store of the index, one call");
        let got = session.rx(0).recv(LIMIT).expect("a frame");
        assert_eq!((number_of(&got.bytes), got.header.num_buffers), (Some(number), 8));
    }
}

/// Without MRG_RXBUF a frame arrives in one chain of buffers and `num_buffers` is 1; a frame that does not
/// fit is dropped and the next one arrives.
#[test]
fn big_packets() {
    let Some(rig) = Rig::new("big_packets", &[]) else { return };
    let base = Setup::default();
    let setup = Setup { features: base.features & !feature::MRG_RXBUF, ..base };
    let mut session = Session::start(rig.connect(), &setup).expect("a session");
    session.rx(0).fill(4, &[12, 4096, 4096]).expect("buffers");
    for number in 0..20 {
        let len = 60 + 400 * number as usize;
        rig.wire.send(&numbered(number, len)).expect("sent");
        let got = session.rx(0).recv(LIMIT).expect("a frame");
        assert_eq!((number_of(&got.bytes), got.header.num_buffers, got.chains.len()), (Some(number), 1, 1));
    }
    drop(session);
    let mut session = Session::start(rig.connect(), &setup).expect("a session");
    session.rx(0).fill(4, &[1526]).expect("small buffers");
    rig.wire.send(&numbered(50, 3000)).expect("sent");
    rig.wire.send(&numbered(51, 1500)).expect("sent");
    assert_eq!(number_of(&session.rx(0).recv(LIMIT).expect("a frame").bytes), Some(51));
}

/// Indices count through 65,536, with EVENT_IDX and without, and nothing is lost, repeated or reordered.
#[test]
fn indices_wrap() {
    let Some(rig) = Rig::new("indices_wrap", &[]) else { return };
    for without in [0, feature::EVENT_IDX] {
        let base = Setup::default();
        let setup = Setup { size: 64, start: 65_000, features: base.features & !without, ..base };
        let mut session = rig.session(&setup);
        for round in 0..40u32 {
            for number in 0..25 {
                let frame = numbered(round * 25 + number, 100);
                session.tx(0).offer(&NetHeader::default(), &frame, &[12]).expect("room");
                rig.wire.send(&frame).expect("sent");
            }
            session.tx(0).kick().expect("kicked");
            for number in 0..25 {
                session.tx(0).used(LIMIT).expect("used");
                rig.expect(&numbered(round * 25 + number, 100));
                let got = session.rx(0).recv(LIMIT).expect("a frame");
                assert_eq!(number_of(&got.bytes), Some(round * 25 + number));
            }
        }
        assert_eq!(session.tx(0).ring.used_idx(), 464, "1000 frames from 65000 on");
        assert_eq!(session.rx(0).ring.used_idx(), 464);
    }
}

/// A driver that wants no interrupts gets none until it asks again: by flag, and by event index.
#[test]
fn interrupts_are_suppressed_on_demand() {
    let Some(rig) = Rig::new("interrupts_are_suppressed_on_demand", &[]) else { return };
    for event_idx in [true, false] {
        let base = Setup::default();
        let without = if event_idx { 0 } else { feature::EVENT_IDX };
        let mut session = rig.session(&Setup { features: base.features & !without, ..base });
        let queue = session.tx(0);
        assert!(readable(&queue.call, LIMIT).expect("poll"), "a ring that starts is called");
        queue.drain_call();
        queue.ring.set_no_interrupt(!event_idx);
        queue.ring.set_used_event(10);
        for number in 0..10 {
            queue.offer(&NetHeader::default(), &numbered(number, 80), &[]).expect("room");
            queue.kick().expect("kicked");
            rig.expect(&numbered(number, 80));
        }
        let used = protocol_tests::daemon::poll_until(LIMIT, || (queue.ring.used_idx() == 10).then_some(()));
        assert!(used.is_some(), "all ten are used");
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(queue.drain_call(), 0, "event_idx {event_idx}: the driver did not want a call");
        queue.ring.set_no_interrupt(false);
        queue.offer(&NetHeader::default(), &numbered(10, 80), &[]).expect("room");
        queue.kick().expect("kicked");
        assert!(readable(&queue.call, LIMIT).expect("poll"), "the eleventh is called");
        rig.expect(&numbered(10, 80));
        if event_idx {
            // The event has passed: without a new event index there is no further call.
            queue.drain_call();
            queue.offer(&NetHeader::default(), &numbered(11, 80), &[]).expect("room");
            queue.kick().expect("kicked");
            rig.expect(&numbered(11, 80));
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(queue.drain_call(), 0, "the driver did not ask again");
        }
    }
}

/// The device asks for kicks only when its ring is empty. While it works, the driver need not kick, and
/// chains published at that moment are found.
#[test]
fn kicks_are_suppressed_and_none_is_lost() {
    let Some(rig) = Rig::new("kicks_are_suppressed_and_none_is_lost", &[]) else { return };
    for without in [0, feature::EVENT_IDX] {
        let base = Setup::default();
        let mut session = rig.session(&Setup { features: base.features & !without, ..base });
        for number in 0..2000 {
            // Published at once and kicked only on demand: a lost wake-up would be a time-out.
            session.tx(0).send(&numbered(number, 70), LIMIT).expect("used");
            rig.expect(&numbered(number, 70));
        }
    }
}

/// Frames wait in the TAP while the guest has no buffers, and arrive when it has; the daemon sleeps
/// meanwhile.
#[test]
fn receive_stops_without_buffers_and_starts_again() {
    let Some(rig) = Rig::new("receive_stops_without_buffers_and_starts_again", &[]) else { return };
    let mut session = Session::start(rig.connect(), &Setup::default()).expect("a session");
    session.rx(0).fill(2, &[2048]).expect("buffers");
    for number in 0..20 {
        rig.wire.send(&numbered(number, 300)).expect("sent");
    }
    for number in 0..2 {
        assert_eq!(number_of(&session.rx(0).recv_only(LIMIT, false).expect("a frame").bytes), Some(number));
    }
    let ticks = rig.daemon.idle_ticks(QUIET * 2).expect("/proc");
    assert!(ticks <= 3, "{ticks} ticks of waiting for buffers");
    session.rx(0).fill(4, &[2048]).expect("buffers");
    for number in 2..20 {
        assert_eq!(number_of(&session.rx(0).recv(LIMIT).expect("a frame").bytes), Some(number));
    }
}

/// UDP segmentation offload passes both ways with its header: a 6000-byte datagram, segments of 1000.
#[test]
fn udp_segmentation_offload() {
    let Some(rig) = Rig::new("udp_segmentation_offload", &[]) else { return };
    let uso =
        feature::HOST_USO | feature::GUEST_USO4 | feature::GUEST_USO6 | feature::CSUM | feature::GUEST_CSUM;
    let base = Setup::default();
    let mut session =
        Session::start(rig.connect(), &Setup { features: base.features | uso, ..base }).expect("a session");
    if session.nic.features & feature::HOST_USO == 0 {
        return eprintln!("SKIP udp_segmentation_offload: this kernel's TAP has no USO");
    }
    let payload: Vec<u8> = (0..6000u32).map(|at| ((at * 31) >> 3) as u8).collect();
    let frame = udp((1, 1111), (2, 2222), &payload);
    session.tx(0).send_cut(&uso_header(1000), &frame, &[12, 42], LIMIT).expect("used");
    let (header, got) = rig.wire.recv(LIMIT).expect("the wire").expect("a frame");
    assert_eq!((header.gso_type, header.gso_size, header.flags & 1), (gso::UDP_L4, 1000, gso::NEEDS_CSUM));
    assert!(got == frame, "the datagram is unchanged and in one piece");
    session.rx(0).fill(16, &[2048]).expect("buffers");
    rig.wire.send_with(&uso_header(1000), &frame).expect("sent");
    let got = session.rx(0).recv(LIMIT).expect("a frame");
    assert_eq!((got.header.gso_type, got.header.gso_size, got.header.num_buffers), (gso::UDP_L4, 1000, 3));
    assert!(got.bytes == frame, "the datagram is unchanged and in one piece");
}

/// A guest that did not acknowledge offloads gets complete frames: segmented and checksummed by the kernel.
#[test]
fn offloads_follow_the_acknowledged_features() {
    let Some(rig) = Rig::new("offloads_follow_the_acknowledged_features", &[]) else { return };
    let mut session = rig.session(&Setup::default());
    let payload = [5; 3000];
    rig.wire.send_with(&uso_header(1000), &udp((1, 1111), (2, 2222), &payload)).expect("sent");
    for segment in 0..3 {
        let got = session.rx(0).recv(LIMIT).expect("a segment");
        assert_eq!(
            (got.header.gso_type, got.header.flags & gso::NEEDS_CSUM),
            (gso::NONE, 0),
            "segment {segment}"
        );
        assert_eq!(got.bytes.len(), 42 + 1000);
        assert_eq!(got.bytes[42..], payload[..1000]);
        // The sum over pseudo-header and datagram is all ones if the kernel filled the checksum in.
        let sum = 17 + 1008;
        assert_eq!(protocol_tests::frame::checksum(&got.bytes[26..], sum), 0);
    }
}
