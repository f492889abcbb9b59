//! The bypass book, chapter "Guest memory": how a frame lies in memory, and what changes there.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{BOTH, Hosts, OPEN, OWN, POLICY, SHUT, STRANGER};
use protocol_tests::bypass::transport::{self, UDP};
use protocol_tests::frame::{NetHeader, gso};
use protocol_tests::lab::rounds;
use protocol_tests::memory::{GuestMemory, RegionSpec};
use protocol_tests::rig::LIMIT;
use protocol_tests::ring::Part;
use protocol_tests::session::Setup;

/// Returns an allowed frame, and refused ones that differ from it in a few bytes.
fn frames(hosts: &Hosts) -> (Vec<u8>, [Vec<u8>; 4]) {
    let good = hosts.udp_to(hosts.remote, OPEN);
    let refused = [
        good.clone().by(STRANGER),
        good.clone().from(hosts.stranger),
        good.clone().to(hosts.denied),
        hosts.udp_to(hosts.remote, SHUT),
    ];
    (good.frame(), refused.map(|packet| packet.frame()))
}

#[test]
fn frames_in_pieces() {
    let Some(mut book) = Book::new("frames_in_pieces") else { return };
    let plain = NetHeader::default();
    for hosts in BOTH {
        let (good, refused) = frames(&hosts);
        let line = format!("M1 {}", hosts.name);
        book.tried.line(&line);
        for cut in 1..good.len() + 12 {
            book.send(&format!("{line} {cut}"), &plain, &good, &[cut]);
            book.arrives(&format!("{line} {cut}"), &good);
        }
        let line = format!("M2 {}", hosts.name);
        let before = book.counts();
        for cut in 1..good.len() + 12 {
            refused.iter().for_each(|frame| book.send(&format!("{line} {cut}"), &plain, frame, &[cut]));
        }
        book.only_a_marker(&line);
        book.counted(&line, &before, "tx", 4 * (good.len() as u64 + 11));
    }
    book.done();
}

#[test]
fn frames_byte_by_byte() {
    let Some(mut book) = Book::new("frames_byte_by_byte") else { return };
    for hosts in BOTH {
        let (good, refused) = frames(&hosts);
        for indirect in [false, true] {
            let line = format!("M3 {}", hosts.name);
            book.tried.line(&line);
            in_bytes(&mut book, &good, indirect);
            book.arrives(&line, &good);
            let line = format!("M4 {}", hosts.name);
            let before = book.counts();
            refused.iter().for_each(|frame| in_bytes(&mut book, frame, indirect));
            book.only_a_marker(&line);
            book.counted(&line, &before, "tx", 4);
        }
    }
    book.done();
}

/// Sends a frame in one part for each byte.
fn in_bytes(book: &mut Book, frame: &[u8], indirect: bool) {
    let queue = book.session.tx(0);
    let parts = queue.place(&NetHeader::default(), frame, &vec![1; frame.len() + 11]);
    assert_eq!(parts.len(), frame.len() + 12);
    let offered = if indirect { queue.submit_indirect(&parts) } else { queue.submit(&parts) };
    offered.expect("room");
    queue.kick().expect("a kick");
    queue.used(LIMIT).expect("used");
}

/// Each header begins in one memory region and ends in the next.
#[test]
fn frames_across_regions() {
    let regions = RegionSpec::adjoining(0x10_0000, &[(33 << 20, 0), (31 << 20, 0x5000)]);
    let setup = Setup { regions, ..Setup::default() };
    let Some(mut book) = Book::with("frames_across_regions", Some(POLICY), &[], &setup) else { return };
    let border = 0x10_0000 + (33 << 20);
    // The transmit queue's buffers begin in the middle of memory: nothing else lies at the border.
    let memory = book.session.nic.mem.clone();
    for hosts in BOTH {
        let (good, refused) = frames(&hosts);
        let line = format!("M5 {}", hosts.name);
        book.tried.line(&line);
        for before in 1..good.len() as u64 + 12 {
            at(&mut book, &memory, border - before, &good);
            book.arrives(&format!("{line} {before}"), &good);
        }
        let line = format!("M6 {}", hosts.name);
        let counts = book.counts();
        for before in 1..good.len() as u64 + 12 {
            refused.iter().for_each(|frame| at(&mut book, &memory, border - before, frame));
        }
        book.only_a_marker(&line);
        book.counted(&line, &counts, "tx", 4 * (good.len() as u64 + 11));
    }
    book.done();
}

/// Sends a frame whose header begins at this address.
fn at(book: &mut Book, memory: &GuestMemory, address: u64, frame: &[u8]) {
    let bytes = [&NetHeader::default().encode()[..], frame].concat();
    memory.write(address, &bytes);
    let queue = book.session.tx(0);
    queue.submit(&[Part::out(address, bytes.len() as u32)]).expect("room");
    queue.kick().expect("a kick");
    queue.used(LIMIT).expect("used");
}

/// Frames that the guest offers at once, and the least number of arrived and of refused ones.
const BATCH: u64 = 50;
const SOME: u64 = 100;

/// A byte of a buffer that another thread changes all the time: its offset, and its values.
type Flip = (usize, [u8; 2]);

/// Changes bytes until told to stop: all as they were first, then one or all of them changed.
fn flip(memory: &GuestMemory, address: u64, flips: &[Flip], over: &AtomicBool) {
    let mut round = 0usize;
    while !over.load(Ordering::Relaxed) {
        let changed = round / 2 % (flips.len() + 1);
        for (number, (offset, values)) in flips.iter().enumerate() {
            let is_changed = round % 2 == 1 && (changed == number || changed == flips.len());
            memory.write(address + *offset as u64, &[values[usize::from(is_changed)]]);
        }
        round += 1;
    }
}

/// Another thread of the guest changes the frame and its header while the daemon judges and sends it.
#[test]
fn frames_that_change() {
    let Some(mut book) = Book::new("frames_that_change") else { return };
    let frames = 20_000 * rounds(1) as u64;
    for hosts in BOTH {
        let good = hosts.udp_to(hosts.remote, OPEN);
        let other = hosts.udp_to(hosts.denied, SHUT).by(STRANGER);
        let (first, second) = (good.frame(), other.frame());
        // Their checksums differ as well, which says nothing here.
        let transport = good.transport();
        let sums = [24, 25, transport + 6, transport + 7];
        let differs = |at: &usize| first[*at] != second[*at] && !sums.contains(at);
        let mut flips: Vec<Flip> =
            (0..first.len()).filter(differs).map(|at| (12 + at, [first[at], second[at]])).collect();
        // The checksum's place: the transport's, or the destination address or port.
        flips.push((6, [transport as u8, transport as u8 - 4]));
        flips.push((8, [6, 2]));
        let (csum_start, csum_offset) = (transport as u16, 6);
        let header = NetHeader { flags: gso::NEEDS_CSUM, csum_start, csum_offset, ..NetHeader::default() };
        let line = format!("M7 {}", hosts.name);
        let before = book.counts();
        let (arrived, refused) = hammer(&mut book, &line, &header, &first, &flips, frames);
        book.counted(&line, &before, "tx", refused);
        println!("{line}: {arrived} arrived, {refused} were refused");
    }
    book.done();
}

/// Sends a frame at least `count` times while its bytes flip. Returns how many arrived and how many did not;
/// all that arrive are as they were first.
fn hammer(
    book: &mut Book,
    line: &str,
    header: &NetHeader,
    frame: &[u8],
    flips: &[Flip],
    count: u64,
) -> (u64, u64) {
    let memory = book.session.nic.mem.clone();
    let parts = book.session.tx(0).place(header, frame, &[]);
    let (address, over) = (parts[0].addr, AtomicBool::new(false));
    let (mut sent, mut arrived) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| flip(&memory, address, flips, &over));
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let end = Instant::now() + LIMIT;
            // A busy machine may run the other thread late.
            while sent < count || arrived < SOME || sent - arrived < SOME {
                assert!(Instant::now() < end, "{line}: {arrived} of {sent} arrived");
                sent += BATCH;
                let queue = book.session.tx(0);
                for _ in 0..BATCH {
                    queue.submit(&parts).expect("room");
                }
                queue.kick().expect("a kick");
                for _ in 0..BATCH {
                    queue.used(LIMIT).expect("used");
                }
                while let Some((got, bytes)) = book.rig.wire.recv(Duration::ZERO).expect("the wire") {
                    assert!(bytes == frame, "{line}: arrived:\n{bytes:02x?}\ninstead of:\n{frame:02x?}");
                    assert_eq!((got.csum_start, got.csum_offset), (header.csum_start, header.csum_offset));
                    arrived += 1;
                }
            }
        }));
        over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    (arrived, sent - arrived)
}

/// Frames that are refused leave no trace in the guest's memory, not even in free receive buffers.
#[test]
fn refused_frames_leave_no_trace() {
    let setup = Setup { regions: vec![RegionSpec::linear(0x10_0000, 4 << 20, 0)], ..Setup::default() };
    let Some(mut book) = Book::with("refused_frames_leave_no_trace", Some(POLICY), &[], &setup) else {
        return;
    };
    let mark = b"a marker that must not be in memory";
    let memory = book.session.nic.mem.clone();
    let buffers: BTreeMap<_, _> =
        (0..256u16).map(|head| (head, book.session.rx(0).parts_of(head).to_vec())).collect();
    let parts: Vec<Part> = buffers.into_values().flatten().collect();
    assert_eq!(parts.len(), 64, "all receive buffers");
    parts.iter().for_each(|part| memory.write(part.addr, &vec![0xa5; part.len as usize]));
    for hosts in BOTH {
        let data = |from, to| transport::udp(from, to, &mark.repeat(20));
        let tries = [
            hosts.inward(hosts.remote, UDP, data(OWN, SHUT)),
            hosts.inward(hosts.elsewhere, UDP, data(OWN, OPEN)),
            hosts.inward(hosts.remote, UDP, data(OWN, OPEN)).by(STRANGER),
            hosts.inward(hosts.remote, UDP, data(OWN, OPEN)).at(STRANGER),
            hosts.inward(hosts.remote, UDP, data(OWN, OPEN)).to(hosts.stranger),
            hosts.inward(hosts.stranger, UDP, data(OWN, OPEN)).by(STRANGER),
            hosts.inward(hosts.remote, 47, data(OWN, OPEN)),
            hosts.inward(hosts.remote, UDP, data(OWN, OPEN)).fragment(8, false),
        ];
        for (number, packet) in tries.iter().enumerate() {
            book.refused_in(&format!("M8 {} {number}", hosts.name), &packet.frame());
        }
        let mut vlan = tries[1].frame();
        vlan[12..14].copy_from_slice(&[0x81, 0]);
        book.refused_in(&format!("M8 {} VLAN", hosts.name), &vlan);
    }
    let all = memory.read(0x10_0000, 4 << 20);
    assert!(!all.windows(mark.len()).any(|bytes| bytes == mark), "M8: a refused frame is in guest memory");
    let touched = parts.iter().filter(|part| memory.read(part.addr, 12) != [0xa5; 12]).count();
    assert_eq!(touched, 18, "M8: as many buffers are used as frames were allowed");
    book.done();
}
