//! Frames from a socket port into chains of the receive queue: complete, in order, in `num_buffers` chains,
//! with correct used lengths and without writes elsewhere.

use std::collections::VecDeque;

use arbitrary::Arbitrary;
use volt_net::batch::Turn;
use volt_net::rx::Rx;
use volt_virtio::features::Features;

use super::STEPS;
use super::guest::{BUFFERS, Borders, Driver, DriverStep, Guest, MEMORY, Part, chain};
use super::rig::{Rig, vring};

/// Length of the frame's header.
const HEADER: usize = 12;
/// Length of the shortest frame with its header.
const SHORTEST: usize = HEADER + 14;
/// Length of the longest: the largest IP packet after an Ethernet header with two VLAN tags.
const LONGEST: usize = HEADER + 14 + 8 + 65535;
/// Number of frames that fit into a socket pair without a reader.
const WAITING: usize = 8;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    borders: Borders,
    log: u8,
    event_idx: bool,
    indirect: bool,
    mergeable: bool,
    checksums: bool,
    /// Whether the driver also acts invalidly; contents are then not checked, because its buffers may
    /// overlap.
    wild: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Driver(DriverStep),
    /// The same chain many times.
    Buffers(u8, u16),
    Frame {
        len: u16,
        long: bool,
        seed: u8,
    },
    Run,
}

struct Peer {
    guest: Guest,
    driver: Driver,
    rx: Rx,
    rig: Rig,
    wild: bool,
    /// Sent, and not seen yet.
    frames: VecDeque<Vec<u8>>,
    /// Next used element to check.
    seen: u16,
    /// Sent, and dropped.
    dropped: u64,
    /// Dropped frames that the driver could have received.
    dropped_fit: u64,
    /// Available chains that the device has not returned.
    posted: VecDeque<Posted>,
}

#[derive(Clone, Copy)]
struct Posted {
    bytes: u64,
    descriptors: usize,
    indirect: bool,
}

pub(super) fn run(input: Input) {
    let guest = Guest::new(input.borders);
    let mut features = Features::VERSION_1;
    for (wanted, feature) in [
        (input.event_idx, Features::EVENT_IDX),
        (input.indirect, Features::INDIRECT_DESC),
        (input.mergeable, Features::NET_MRG_RXBUF),
        (input.checksums, Features::NET_GUEST_CSUM),
    ] {
        features = if wanted { features.union(feature) } else { features };
    }
    let driver = Driver::new(input.log, features);
    let Some(vring) = vring(&guest, &driver) else { return };
    let rx = Rx::new(vring, features);
    let mut peer = Peer {
        guest,
        driver,
        rx,
        rig: Rig::new(),
        wild: input.wild,
        frames: VecDeque::new(),
        seen: 0,
        dropped: 0,
        dropped_fit: 0,
        posted: VecDeque::new(),
    };
    for step in input.steps.iter().take(STEPS) {
        let goes_on = match step {
            Step::Driver(step) => {
                peer.driver_step(step);
                true
            }
            Step::Buffers(count, len) => {
                (0..*count).for_each(|_| peer.offer(&[(*len, true)], false));
                true
            }
            Step::Frame { len, long, seed } => {
                let len = if *long { usize::from(*len) + LONGEST - 65535 } else { usize::from(*len) % 2048 };
                peer.send(len, *seed);
                true
            }
            Step::Run => peer.drain(),
        };
        if !goes_on {
            return;
        }
    }
    peer.drain();
}

impl Peer {
    fn driver_step(&mut self, step: &DriverStep) {
        match step {
            DriverStep::Offer { parts, indirect } => {
                let parts: Vec<_> = parts.iter().take(64).map(|(len, _)| (*len, true)).collect();
                self.offer(&parts, *indirect);
            }
            DriverStep::Event(_) | DriverStep::Flags(_) => self.driver.step(&self.guest, step),
            _ if self.wild => self.driver.step(&self.guest, step),
            _ => {}
        }
    }

    /// A valid driver offers no more descriptors than the ring holds, and its buffers do not overlap.
    fn offer(&mut self, parts: &[(u16, bool)], indirect: bool) {
        let indirect = indirect && self.driver.features.contains(Features::INDIRECT_DESC);
        let chain = Posted {
            bytes: parts.iter().map(|(len, _)| u64::from(*len)).sum(),
            descriptors: if indirect { 1 } else { parts.len() },
            indirect,
        };
        let descriptors: usize = self.posted.iter().map(|chain| chain.descriptors).sum();
        let bytes: u64 = self.posted.iter().map(|chain| chain.bytes).sum();
        let fits = descriptors + chain.descriptors <= usize::from(self.driver.layout.size)
            && bytes + chain.bytes <= (MEMORY - BUFFERS) / 4
            // There is room for only one table.
            && !(indirect && self.posted.iter().any(|chain| chain.indirect));
        if self.wild || (fits && !parts.is_empty()) {
            self.driver.offer(&self.guest, parts, indirect);
            self.posted.push_back(chain);
        }
    }

    fn send(&mut self, len: usize, seed: u8) {
        if self.frames.len() == WAITING {
            return;
        }
        let mut frame: Vec<u8> = (0..len).map(|n| (n ^ n >> 8) as u8 ^ seed).collect();
        for (to, from) in frame.iter_mut().zip(header(seed)) {
            *to = from;
        }
        if self.rig.wire.send(&frame).is_ok() && len >= SHORTEST {
            self.frames.push_back(frame);
        }
    }

    /// Runs the device until it is idle. Returns `false` if the driver broke the ring.
    fn drain(&mut self) -> bool {
        for _ in 0..256 {
            let before = self.rx.base();
            let turn = self.rx.run(&self.rig.queue, &mut self.rig.health, &self.rig.counters);
            let done = self.rx.base().wrapping_sub(before);
            if !self.wild {
                assert!(done <= self.driver.layout.size);
                self.check();
            }
            match turn {
                Ok(Turn::Idle) => {
                    if !self.wild {
                        self.all_dropped();
                    }
                    return true;
                }
                Ok(Turn::NoBuffers) => return true,
                Ok(_) => {}
                Err(_) => {
                    assert!(self.wild, "the device stopped a valid ring");
                    return false;
                }
            }
        }
        panic!("no end to it");
    }

    /// Checks the chains used since the last call.
    fn check(&mut self) {
        let mut left = self.rx.base().wrapping_sub(self.seen);
        while left > 0 {
            let (first, len) = self.used();
            left -= 1;
            if len == 0 {
                // A chain too short for any frame is returned unchanged.
                let room: u32 = first.iter().map(|(_, len, _)| len).sum();
                assert!((room as usize) < HEADER);
                continue;
            }
            let mut bytes = self.contents(&first, len);
            let count = u16::from_le_bytes([bytes[10], bytes[11]]);
            assert!(count >= 1 && (count == 1 || self.driver.features.contains(Features::NET_MRG_RXBUF)));
            for _ in 1..count {
                assert!(left > 0, "a merged frame's buffers are shown together");
                let (parts, len) = self.used();
                left -= 1;
                assert!(len > 0, "a buffer of a merged frame without a byte");
                bytes.extend(self.contents(&parts, len));
            }
            self.frame(bytes, count);
        }
    }

    /// Returns the next used element's chain and length.
    fn used(&mut self) -> (Vec<Part>, u32) {
        let layout = self.driver.layout;
        let slot = u64::from(self.seen % layout.size);
        let at = layout.used + 4 + slot * 8;
        let head = self.guest.u16(layout.avail + 4 + slot * 2).unwrap();
        assert_eq!(self.guest.u32(at), Some(head.into()), "chains come back in order");
        self.seen = self.seen.wrapping_add(1);
        self.posted.pop_front().expect("an available chain");
        let indirect = self.driver.features.contains(Features::INDIRECT_DESC);
        let read = |at, len| self.guest.read(at, len);
        let parts = chain(read, (layout.desc, layout.size), indirect, head);
        (parts.unwrap_or_default(), self.guest.u32(at + 4).unwrap())
    }

    /// Returns the first `len` bytes of a chain, which must contain them.
    fn contents(&self, parts: &[Part], len: u32) -> Vec<u8> {
        let bytes = parts.iter().flat_map(|(at, len, _)| self.guest.read(*at, *len as usize).unwrap());
        let bytes: Vec<u8> = bytes.take(len as usize).collect();
        assert_eq!(bytes.len(), len as usize, "a used length beyond the chain");
        bytes
    }

    /// Frames that do not fit the guest's buffers, or that the driver must not get, are dropped and counted;
    /// all others arrive in order.
    fn frame(&mut self, bytes: Vec<u8>, count: u16) {
        while let Some(sent) = self.frames.pop_front() {
            let given = given(&sent, self.driver.features, count);
            if given.as_ref() == Some(&bytes) {
                return;
            }
            self.drop_one(given.is_some());
        }
        panic!("an unknown, repeated or reordered frame: {} bytes", bytes.len());
    }

    /// No frame is left, so those not yet seen were dropped.
    fn all_dropped(&mut self) {
        while let Some(sent) = self.frames.pop_front() {
            self.drop_one(given(&sent, self.driver.features, 1).is_some());
        }
        let counters = &self.rig.counters;
        assert_eq!(self.dropped, counters.rx_too_long.get() + counters.rx_not_offloaded.get());
    }

    /// A frame was dropped and counted; `fit`: the driver could have received it.
    fn drop_one(&mut self, fit: bool) {
        self.dropped += 1;
        self.dropped_fit += u64::from(fit);
        let counters = &self.rig.counters;
        let (too_long, unfinished) = (counters.rx_too_long.get(), counters.rx_not_offloaded.get());
        assert!(
            self.dropped_fit <= too_long && self.dropped <= too_long + unfinished,
            "{} frames were lost, {} of them fit for the driver: {too_long} are counted as too long, \
             {unfinished} as not for it",
            self.dropped,
            self.dropped_fit
        );
    }
}

/// Returns a frame's header: with or without an incomplete checksum, at a position that only some frames
/// have, and sometimes with segmentation.
fn header(seed: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = seed & 3;
    header[1] = if seed % 16 == 15 { seed >> 4 } else { 0 };
    header[6..8].copy_from_slice(&(u16::from(seed >> 2) * 8).to_le_bytes());
    header[8..10].copy_from_slice(&(u16::from(seed >> 5) * 40).to_le_bytes());
    header
}

/// Returns the frame that a driver with `features` receives in `count` buffers: without segmentation, and
/// without an incomplete checksum unless the driver completes checksums (virtio 1.2, 5.1.6.4). `None` if it
/// must not receive the frame.
fn given(sent: &[u8], features: Features, count: u16) -> Option<Vec<u8>> {
    let mut frame = sent.to_vec();
    frame[10..12].copy_from_slice(&count.to_le_bytes());
    if frame[1] != 0 {
        return None;
    }
    if features.contains(Features::NET_GUEST_CSUM) {
        return Some(frame);
    }
    if frame[0] & 1 != 0 {
        let field = |at: usize| usize::from(u16::from_le_bytes([sent[at], sent[at + 1]]));
        let (start, at) = (HEADER + field(6), HEADER + field(6) + field(8));
        if at + 2 > frame.len() {
            return None;
        }
        // RFC 1071. The result is never 0, which means no checksum in UDP.
        let covered = frame[start..].iter().enumerate();
        let sum: u64 = covered.map(|(n, byte)| u64::from(*byte) << (8 * (1 - n % 2))).sum();
        let checksum = !((sum % 0xffff) as u16);
        frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    }
    frame[0] = 0;
    Some(frame)
}
