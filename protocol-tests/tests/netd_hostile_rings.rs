//! volt-netd against drivers with invalid rings. A bad chain is returned and counted, and the ring continues.
//! A ring that cannot be trusted stops, once, with its name in the log. The daemon survives and serves the
//! next session.

use protocol_tests::far_end::PortKind;
use protocol_tests::frame::{NetHeader, gso, number_of, numbered};
use protocol_tests::nic::Queue;
use protocol_tests::rig::{LIMIT, QUIET, Rig};
use protocol_tests::ring::{Desc, Part, desc_flags};
use protocol_tests::session::{Session, Setup};
use protocol_tests::wire::feature;

const NEXT: u16 = desc_flags::NEXT;
const WRITE: u16 = desc_flags::WRITE;
const INDIRECT: u16 = desc_flags::INDIRECT;
/// An address outside every region.
const NOWHERE: u64 = 0x7_0000_0000;

fn desc(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

/// Puts descriptors at the end of the table, away from the driver's own chains, and offers the first of them.
/// Returns its index.
fn offer_raw(queue: &mut Queue, descs: &[Desc]) -> u16 {
    let first = queue.ring.layout().size - descs.len() as u16;
    for (at, desc) in descs.iter().enumerate() {
        queue.ring.set_desc(first + at as u16, *desc);
    }
    queue.ring.offer(first);
    first
}

/// Waits for used entry `index` and returns it, without the driver's own bookkeeping.
fn raw_used(queue: &Queue, index: u16) -> Option<(u32, u32)> {
    let there = || (queue.ring.used_idx() == index.wrapping_add(1)).then(|| queue.ring.used_entry(index));
    protocol_tests::daemon::poll_until(LIMIT, there)
}

/// Each bad transmit chain is returned with length 0. Nothing of it reaches the wire, and the next frame
/// does.
#[test]
fn bad_transmit_chains() {
    PortKind::ALL.into_iter().for_each(bad_transmit_chains_on);
}

fn bad_transmit_chains_on(port: PortKind) {
    let Some(mut rig) = Rig::on(port, "bad_transmit_chains", &[]) else { return };
    let before = rig.usage();
    let mut session = rig.session(&Setup::default());
    let mem = session.nic.mem.clone();
    let queue = session.tx(0);
    let (frame_at, table, nested) = (queue.alloc(70_000), queue.alloc(4096), queue.alloc(4096));
    let good_at = queue.alloc(4096);
    let end = 0x10_0000 + (64 << 20);
    mem.write(frame_at + 12, &numbered(1, 100));
    let entries = [desc(frame_at, 12, NEXT, 1), desc(nested, 32, INDIRECT, 0)];
    mem.write(nested, &entries.map(|entry| entry.encode()).concat());
    let last = queue.ring.layout().size - 1;
    let bad: Vec<(&str, Vec<Desc>)> = vec![
        ("header of 11 bytes", vec![desc(frame_at, 11, 0, 0)]),
        ("header alone", vec![desc(frame_at, 12, 0, 0)]),
        ("runt", vec![desc(frame_at, 12 + 13, 0, 0)]),
        ("empty", vec![desc(frame_at, 0, 0, 0)]),
        ("nowhere", vec![desc(NOWHERE, 100, 0, 0)]),
        ("address overflow", vec![desc(u64::MAX - 10, 100, 0, 0)]),
        ("over the end of memory", vec![desc(end - 50, 100, 0, 0)]),
        ("longest length", vec![desc(frame_at, u32::MAX, 0, 0)]),
        ("longer than any frame", vec![desc(frame_at, 70_000, 0, 0)]),
        ("second part nowhere", vec![desc(frame_at, 40, NEXT, last), desc(NOWHERE, 60, 0, 0)]),
        ("loop of one", vec![desc(frame_at, 40, NEXT, last)]),
        ("loop of two", vec![desc(frame_at, 40, NEXT, last), desc(frame_at, 40, NEXT, last - 1)]),
        ("next beyond the table", vec![desc(frame_at, 40, NEXT, 256)]),
        ("next far beyond", vec![desc(frame_at, 40, NEXT, 65_535)]),
        ("written by the device", vec![desc(frame_at, 112, WRITE, 0)]),
        ("read after write", vec![desc(frame_at, 12, WRITE | NEXT, last), desc(frame_at, 100, 0, 0)]),
        ("empty table", vec![desc(nested, 0, INDIRECT, 0)]),
        ("table of odd length", vec![desc(nested, 17, INDIRECT, 0)]),
        ("table nowhere", vec![desc(NOWHERE, 32, INDIRECT, 0)]),
        ("table at the top of addresses", vec![desc(u64::MAX - 15, 32, INDIRECT, 0)]),
        ("table in a table", vec![desc(nested, 32, INDIRECT, 0)]),
        ("table and next", vec![desc(nested, 32, INDIRECT | NEXT, last), desc(frame_at, 100, 0, 0)]),
        ("table whose next is beyond it", vec![desc(table, 16, INDIRECT, 0)]),
        ("table of four thousand million bytes", vec![desc(table, 0xffff_fff0, INDIRECT, 0)]),
    ];
    mem.write(table, &desc(frame_at, 40, NEXT, 1).encode());
    let mut index = 0;
    for (what, descs) in &bad {
        let head = offer_raw(queue, descs);
        queue.kick_always().expect("kicked");
        let used = raw_used(queue, index).unwrap_or_else(|| panic!("{what}: the chain never comes back"));
        assert_eq!(used, (u32::from(head), 0), "{what}: returned with nothing written");
        // A good frame follows: the ring continues, and nothing of the bad frame is on the wire before it.
        let frame = numbered(1000 + u32::from(index), 120);
        mem.write(good_at + 12, &frame);
        offer_raw(queue, &[desc(good_at, 12 + 120, 0, 0)]);
        queue.kick_always().expect("kicked");
        let (_, got) =
            rig.wire.recv(LIMIT).expect("the wire").unwrap_or_else(|| panic!("{what}: the ring stopped"));
        assert_eq!(number_of(&got), Some(1000 + u32::from(index)), "{what}: something else was sent");
        index += 2;
    }
    assert!(rig.wire.recv(QUIET).expect("the wire").is_none());
    drop(session);
    rig.logged(&[&format!("tx bad chains {}", bad.len())]);
    rig.well(&before);
}

/// Bad receive chains are returned with length 0, and the frame arrives in the next good one.
#[test]
fn bad_receive_chains() {
    PortKind::ALL.into_iter().for_each(bad_receive_chains_on);
}

fn bad_receive_chains_on(port: PortKind) {
    let Some(mut rig) = Rig::on(port, "bad_receive_chains", &[]) else { return };
    let before = rig.usage();
    for mergeable in [true, false] {
        let base = Setup::default();
        let without = if mergeable { 0 } else { feature::MRG_RXBUF };
        let setup = Setup { features: base.features & !without, ..base };
        let mut session = Session::start(rig.connect(), &setup).expect("a session");
        let queue = session.rx(0);
        let at = queue.alloc(4096);
        let last = queue.ring.layout().size - 1;
        let bad: Vec<(&str, Vec<Desc>)> = vec![
            ("shorter than the header", vec![desc(at, 5, WRITE, 0)]),
            ("empty", vec![desc(at, 0, WRITE, 0)]),
            ("only readable", vec![desc(at, 2048, 0, 0)]),
            ("nowhere", vec![desc(NOWHERE, 2048, WRITE, 0)]),
            ("address overflow", vec![desc(u64::MAX - 10, 2048, WRITE, 0)]),
            ("loop", vec![desc(at, 64, WRITE | NEXT, last)]),
            ("next beyond the table", vec![desc(at, 64, WRITE | NEXT, 999)]),
        ];
        let mut index = 0;
        for (what, descs) in &bad {
            let head = offer_raw(queue, descs);
            queue.kick_always().expect("kicked");
            rig.wire.send(&numbered(u32::from(index), 300)).expect("sent");
            let used = raw_used(queue, index).unwrap_or_else(|| panic!("{what}: the chain never comes back"));
            assert_eq!(used, (u32::from(head), 0), "{what}");
            let head = offer_raw(queue, &[desc(at, 2048, WRITE, 0)]);
            queue.kick_always().expect("kicked");
            let used = raw_used(queue, index + 1).unwrap_or_else(|| panic!("{what}: the ring stopped"));
            assert_eq!(used, (u32::from(head), 312), "{what}: the frame is in the next chain");
            index += 2;
        }
        drop(session);
    }
    rig.logged(&["rx bad chains"]);
    rig.well(&before);
}

/// A ring with invalid indices stops, with one warning that gives the reason, and without spinning.
#[test]
fn rings_that_cannot_be_trusted() {
    PortKind::ALL.into_iter().for_each(rings_that_cannot_be_trusted_on);
}

fn rings_that_cannot_be_trusted_on(port: PortKind) {
    let Some(mut rig) = Rig::on(port, "rings_that_cannot_be_trusted", &[]) else { return };
    let before = rig.usage();
    type Fault = fn(&mut Queue);
    let faults: [(&str, Fault); 5] = [
        ("available index", |queue| queue.ring.set_avail_idx(257)),
        ("available index", |queue| queue.ring.set_avail_idx(40_000)),
        ("available index", |queue| queue.ring.set_avail_idx(65_535)),
        ("descriptor 256", |queue| {
            queue.ring.offer(256);
            queue.ring.publish();
        }),
        ("descriptor 65535", |queue| {
            queue.ring.offer(65_535);
            queue.ring.publish();
        }),
    ];
    for (word, fault) in faults {
        for vring in [0, 1] {
            let mut session = Session::start(rig.connect(), &Setup::default()).expect("a session");
            let from = rig.daemon.log().len();
            let queue = &mut session.nic.queues[vring];
            fault(queue);
            let kick = |queue: &Queue| rustix::io::write(&queue.kick, &1u64.to_ne_bytes()).expect("kicked");
            kick(queue);
            rig.wire.send(&numbered(1, 100)).expect("sent");
            let name = format!("vring {vring}");
            let line = rig.daemon.logged(from, &["WARN", &name, word], LIMIT);
            assert!(line.is_some(), "no warning with '{name}' and '{word}':\n{}", rig.daemon.log());
            for _ in 0..50 {
                kick(queue);
            }
            let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
            assert!(ticks <= 3, "{ticks} ticks while idle");
            let log = rig.daemon.log();
            let said =
                log[from..].lines().filter(|line| line.contains("WARN") && line.contains(&name)).count();
            assert_eq!(said, 1, "not one warning:\n{}", &log[from..]);
        }
    }
    rig.well(&before);
}

/// The kernel refuses invalid headers: the chain is returned, the frame is counted, and the worker survives.
#[test]
fn headers_that_make_no_sense() {
    PortKind::ALL.into_iter().for_each(headers_that_make_no_sense_on);
}

fn headers_that_make_no_sense_on(port: PortKind) {
    let Some(mut rig) = Rig::on(port, "headers_that_make_no_sense", &[]) else { return };
    let before = rig.usage();
    let mut session = rig.session(&Setup::default());
    let plain = NetHeader::default();
    let wrong = [
        NetHeader { gso_type: 77, gso_size: 1000, ..plain },
        NetHeader { gso_type: gso::TCPV4, gso_size: 0, hdr_len: 54, ..plain },
        NetHeader { flags: gso::NEEDS_CSUM, csum_start: 60_000, csum_offset: 6, ..plain },
        NetHeader { flags: gso::NEEDS_CSUM, csum_start: 100, csum_offset: 65_000, ..plain },
        NetHeader { gso_type: gso::UDP_L4, gso_size: 1000, hdr_len: 65_535, ..plain },
        NetHeader {
            flags: 0xff,
            gso_type: 0xff,
            hdr_len: 0xffff,
            gso_size: 0xffff,
            csum_start: 0xffff,
            ..plain
        },
    ];
    for header in wrong {
        session.tx(0).send_cut(&header, &numbered(1, 200), &[], LIMIT).expect("the chain is returned");
    }
    while rig.wire.recv(QUIET).expect("the wire").is_some() {}
    rig.both_ways(&mut session, 5);
    drop(session);
    rig.logged(&["tx refused by the kernel"]);
    rig.well(&before);
}

/// Rings whose addresses are outside memory, wrap around, or are not aligned never start; the log names them.
#[test]
fn ring_addresses() {
    let Some(mut rig) = Rig::new("ring_addresses", &[]) else { return };
    let before = rig.usage();
    let end = 0x10_0000u64 + (64 << 20) + 0x7e00_0000_0000;
    for (what, which) in [("descriptor table", 0), ("used ring", 1), ("available ring", 2)] {
        for wrong in [0, NOWHERE, u64::MAX, u64::MAX - 0xf, end - 8, end - 0x100, 0x7e00_0010_0001] {
            let setup = Setup { enabled: 0, ..Setup::default() };
            let session = Session::start(rig.connect(), &setup).expect("a session");
            let from = rig.daemon.log().len();
            let layout = session.nic.queues[1].ring.layout();
            let mut addrs = [layout.desc, layout.used, layout.avail].map(|addr| session.nic.mem.user(addr));
            addrs[which] = wrong;
            let [desc, used, avail] = addrs;
            let refused = session.frontend.set_vring_addr_raw(1, 0, desc, used, avail).is_err();
            let refused = refused || session.frontend.set_vring_enable(1, true).is_err();
            let line = rig.daemon.logged(from, &["WARN", "vring"], LIMIT);
            assert!(
                line.is_some(),
                "{what} at {wrong:#x}: not a word (refused: {refused})\n{}",
                &rig.daemon.log()[from..]
            );
        }
    }
    rig.well(&before);
}

/// A ring's size and addresses changed while it runs are refused, or apply at the next start, but never mix
/// with the running ring. The other ring continues.
#[test]
fn set_up_changed_while_running() {
    PortKind::ALL.into_iter().for_each(set_up_changed_while_running_on);
}

fn set_up_changed_while_running_on(port: PortKind) {
    let Some(mut rig) = Rig::on(port, "set_up_changed_while_running", &[]) else { return };
    let before = rig.usage();
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 3);
    let _ = session.frontend.set_vring_num(1, 8);
    let _ = session.frontend.set_vring_addr_raw(1, 0, NOWHERE, NOWHERE, NOWHERE);
    let _ = session.frontend.set_vring_num(1, 32_768);
    session.tx(0).offer(&NetHeader::default(), &numbered(5, 100), &[]).expect("room");
    session.tx(0).kick_always().expect("kicked");
    rig.wire_to_guest(&mut session, &numbered(6, 100));
    drop(session);
    rig.well(&before);
}

/// More frames than buffers, some of them jumbo frames for a guest with small buffers: receive continues.
#[test]
fn flood_of_jumbo_frames() {
    let Some(mut rig) = Rig::new("flood_of_jumbo_frames", &[]) else { return };
    let before = rig.usage();
    let base = Setup::default();
    let setup = Setup { size: 4, features: base.features & !feature::MRG_RXBUF, ..base };
    let mut session = rig.session(&setup);
    for number in 0..200 {
        let len = if number % 10 == 9 { 200 } else { 8500 };
        rig.wire.send(&numbered(number, len)).expect("sent");
    }
    let numbers: Vec<_> =
        (0..20).map(|_| number_of(&session.rx(0).recv(LIMIT).expect("a frame that fits").bytes)).collect();
    assert_eq!(numbers, (0..20).map(|ten| Some(10 * ten + 9)).collect::<Vec<_>>());
    drop(session);
    // Mergeable, but the whole ring cannot hold such a frame.
    let mut session =
        Session::start(rig.connect(), &Setup { size: 4, ..Setup::default() }).expect("a session");
    session.rx(0).fill(4, &[512]).expect("buffers");
    rig.wire.send(&numbered(300, 8500)).expect("sent");
    rig.wire.send(&numbered(301, 1000)).expect("sent");
    assert_eq!(number_of(&session.rx(0).recv(LIMIT).expect("a frame that fits").bytes), Some(301));
    drop(session);
    rig.well(&before);
}

/// Chains that share descriptors describe more buffers than the ring holds: each head is returned exactly
/// once.
#[test]
fn the_same_head_many_times() {
    PortKind::ALL.into_iter().for_each(the_same_head_many_times_on);
}

fn the_same_head_many_times_on(port: PortKind) {
    let Some(mut rig) = Rig::on(port, "the_same_head_many_times", &[]) else { return };
    let before = rig.usage();
    let mut session = rig.session(&Setup::default());
    let queue = session.tx(0);
    let frame = numbered(9, 100);
    let parts: Vec<Part> = queue.place(&NetHeader::default(), &frame, &[]);
    queue.ring.set_desc(3, desc(parts[0].addr, parts[0].len, 0, 0));
    for _ in 0..256 {
        queue.ring.offer(3);
    }
    queue.kick_always().expect("kicked");
    for _ in 0..256 {
        rig.expect(&frame);
    }
    assert_eq!(raw_used(session.tx(0), 255), Some((3, 0)));
    drop(session);
    rig.well(&before);
}
