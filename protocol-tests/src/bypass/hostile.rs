//! A guest and a wire that send refused and allowed frames without pause, while the daemon is replaced.
//!
//! All frames are numbered. What arrives must be an allowed frame, byte by byte.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::book::{MARKERS, marker};
use super::hosts::{BOTH, Hosts, OPEN, OWN, SHUT, STRANGER};
use super::packet::{Packet, ether};
use super::transport::{self, UDP};
use crate::far_end::FarEnd;
use crate::frame::NetHeader;
use crate::rig::LIMIT;
use crate::session::Session;

/// Frames that the guest offers at once.
const BATCH: u32 = 32;
/// The first number, apart from those of [`super::book::Book::marker`].
const FIRST: u32 = 1_000_000;

/// What was sent, and what arrived.
#[derive(Debug, Default)]
pub struct Account {
    /// Refused frames of the guest.
    pub refused: u64,
    /// Refused frames to the guest.
    pub refused_in: u64,
    /// Numbers of the guest's allowed frames, and how often each arrived.
    pub allowed: BTreeMap<u32, u64>,
    /// Allowed frames that the guest received.
    pub received: u64,
}

impl Account {
    /// Returns the number of allowed frames that did not arrive.
    pub fn lost(&self) -> usize {
        self.allowed.values().filter(|count| **count == 0).count()
    }

    /// Returns the number of allowed frames that arrived again.
    pub fn repeated(&self) -> u64 {
        self.allowed.values().map(|count| count.saturating_sub(1)).sum()
    }
}

/// Both ends of the traffic.
#[derive(Debug)]
pub struct Hostile<'a> {
    session: &'a mut Session,
    wire: &'a dyn FarEnd,
    next: u32,
    account: Account,
}

fn hosts(number: u32) -> Hosts {
    BOTH[(number / 2 % 2) as usize]
}

/// Whether the frame with this number is allowed.
fn is_allowed(number: u32) -> bool {
    number.is_multiple_of(2)
}

/// Returns a frame of the guest that is refused.
fn refused(number: u32) -> Vec<u8> {
    let hosts = hosts(number);
    let data = |port| transport::udp(OWN, port, &number.to_be_bytes());
    let good = hosts.out(hosts.remote, UDP, data(OPEN));
    match number / 4 % 7 {
        0 => good.by(STRANGER).frame(),
        1 => good.from(hosts.stranger).frame(),
        2 => good.to(hosts.denied).frame(),
        3 => hosts.out(hosts.remote, UDP, data(SHUT)).frame(),
        4 => good.fragment(8, false).frame(),
        5 => good.at(STRANGER).frame(),
        _ => ether(good.macs, 0x8100, &good.frame()[12..]),
    }
}

/// Returns a frame to the guest: allowed, or refused.
fn inward(number: u32) -> Vec<u8> {
    let hosts = hosts(number);
    let data = |port| transport::udp(MARKERS, port, &number.to_be_bytes());
    let good: Packet = hosts.inward(hosts.remote, UDP, data(OPEN));
    match number % 8 {
        0..=3 => good.frame(),
        4 => good.by(STRANGER).frame(),
        5 => good.from(hosts.elsewhere).frame(),
        6 => hosts.inward(hosts.remote, UDP, data(SHUT)).frame(),
        _ => good.to(hosts.stranger).frame(),
    }
}

impl<'a> Hostile<'a> {
    /// Prepares traffic between this card and this wire.
    pub fn new(session: &'a mut Session, wire: &'a dyn FarEnd) -> Hostile<'a> {
        Hostile { session, wire, next: FIRST, account: Account::default() }
    }

    /// Sends until `over`, and adds to `sent` meanwhile. Returns what happened.
    ///
    /// # Panics
    /// If a frame arrives that is not allowed, or a chain does not come back.
    pub fn run(mut self, sent: &AtomicU64, over: &AtomicBool) -> Account {
        while !over.load(Ordering::Relaxed) {
            self.batch();
            sent.fetch_add(u64::from(BATCH), Ordering::Relaxed);
        }
        self.settle();
        self.account
    }

    fn batch(&mut self) {
        let numbers = self.next..self.next + BATCH;
        self.next = numbers.end;
        for number in numbers.clone() {
            let frame = match is_allowed(number) {
                true => {
                    self.account.allowed.insert(number, 0);
                    marker(&hosts(number), number)
                }
                false => {
                    self.account.refused += 1;
                    refused(number)
                }
            };
            self.session.tx(0).offer(&NetHeader::default(), &frame, &[]).expect("room");
        }
        self.session.tx(0).kick().expect("a kick");
        for number in numbers.clone().take(8) {
            self.wire.send(&inward(number)).expect("sent");
            self.account.refused_in += u64::from(number % 8 > 3);
        }
        for _ in numbers {
            let used = self.session.tx(0).used(LIMIT).expect("the daemon returns all chains");
            assert_eq!(used.len, 0, "nothing is written to a transmit chain");
            self.session.tx(0).parts(used);
        }
        self.take();
    }

    /// Takes what has arrived, at both ends.
    fn take(&mut self) {
        while let Some((_, frame)) = self.wire.recv(Duration::ZERO).expect("the wire") {
            let number = frame.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            let known =
                self.account.allowed.get_mut(&number).filter(|_| frame == marker(&hosts(number), number));
            *known.unwrap_or_else(|| panic!("not allowed, and on the wire: {frame:02x?}")) += 1;
        }
        while let Ok(frame) = self.session.rx(0).recv_only(Duration::ZERO, true) {
            let number = frame.bytes.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes));
            let fits = number % 8 < 4 && frame.bytes == inward(number);
            assert!(fits, "not allowed, and with the guest: {:02x?}", frame.bytes);
            self.account.received += 1;
        }
        self.session.rx(0).kick().expect("a kick");
    }

    /// Waits for the last frame each way.
    fn settle(&mut self) {
        self.next += self.next % 2;
        let last = self.next;
        self.batch();
        let end = Instant::now() + LIMIT;
        let last_in = (last..).find(|number| number % 8 < 4).unwrap_or(last);
        let mut got = self.account.received;
        self.wire.send(&inward(last_in)).expect("sent");
        while self.account.allowed.range(last..).any(|(_, count)| *count == 0) || got == self.account.received
        {
            assert!(Instant::now() < end, "the last frames do not arrive");
            got = got.min(self.account.received);
            self.take();
            std::thread::yield_now();
        }
    }
}
