//! Learnt addresses, in memory that outlives the process.
//!
//! ```text
//! words  0      the last DHCP exchange that the guest began: second of its beginning << 32 | its number
//!        1      the leased address: expiry in seconds << 32 | address; 0: none
//!        2 ...  addresses that the guest configured: high and low word of each, 0 and 0 for a free place
//! ```
//!
//! A place is taken by its low word last, so that a process that dies in between has taken none. Host parts
//! of IPv6 addresses are not 0: that is the anycast address of routers (RFC 4291, 2.6.1).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::setup::ADDRESSES;

/// Words of the memory.
pub(crate) const WORDS: usize = PLACES + 2 * ADDRESSES;

const EXCHANGE: usize = 0;
const LEASE: usize = 1;
const PLACES: usize = 2;

/// One thread at a time takes a place. Not per frame: a guest has a few addresses in its life.
static TAKING: Mutex<()> = Mutex::new(());

/// The memory of learnt addresses.
#[derive(Clone, Copy)]
pub(crate) struct Learnt<'a>(&'a [AtomicU64]);

impl<'a> Learnt<'a> {
    /// Uses the first [`WORDS`] of `memory`.
    pub(crate) fn new(memory: &'a [AtomicU64]) -> Learnt<'a> {
        Learnt(&memory[..WORDS])
    }

    /// Notes that the guest has begun this DHCP exchange, unless it has before.
    pub(crate) fn asked(self, exchange: u32, now: u32) {
        if !self.has_asked(exchange) {
            self.0[EXCHANGE].store(u64::from(now.max(1)) << 32 | u64::from(exchange), Relaxed);
        }
    }

    /// Whether the guest has begun this DHCP exchange last.
    pub(crate) fn has_asked(self, exchange: u32) -> bool {
        let word = self.0[EXCHANGE].load(Relaxed);
        word != 0 && word as u32 == exchange
    }

    /// Notes the address that the server leases in the last exchange, in place of the previous one. The time
    /// begins with the exchange: the guest could take the answer late. Without a time it has no end.
    pub(crate) fn leased(self, address: Ipv4Addr, seconds: Option<u32>) {
        let asked = (self.0[EXCHANGE].load(Relaxed) >> 32) as u32;
        let expiry = seconds.map_or(u32::MAX, |seconds| asked.saturating_add(seconds));
        self.0[LEASE].store(u64::from(expiry) << 32 | u64::from(address.to_bits()), Relaxed);
    }

    /// Notes that the guest has given its lease up.
    pub(crate) fn release(self) {
        self.0[LEASE].store(0, Relaxed);
    }

    /// Returns the leased address.
    pub(crate) fn lease(self, now: u32) -> Option<Ipv4Addr> {
        let lease = self.0[LEASE].load(Relaxed);
        (lease != 0 && (lease >> 32) as u32 >= now).then(|| Ipv4Addr::from_bits(lease as u32))
    }

    /// Adds an address that the guest configured. Returns `false` if it has too many, with `others` that
    /// were given.
    pub(crate) fn add(self, address: Ipv6Addr, others: usize) -> bool {
        let _one = TAKING.lock();
        if self.has(address) {
            return true;
        }
        if address.to_bits() as u64 == 0 {
            return false;
        }
        let used = others + self.all().count() + usize::from(self.0[LEASE].load(Relaxed) != 0);
        let free = self.places().find(|(_, low)| low.load(Relaxed) == 0);
        let (Some((high, low)), true) = (free, used < ADDRESSES) else { return false };
        let bits = address.to_bits();
        high.store((bits >> 64) as u64, Relaxed);
        low.store(bits as u64, Release);
        true
    }

    /// Whether the guest has configured `address`.
    pub(crate) fn has(self, address: Ipv6Addr) -> bool {
        self.all().any(|own| own == address)
    }

    /// Returns the addresses that the guest configured.
    pub(crate) fn all(self) -> impl Iterator<Item = Ipv6Addr> + use<'a> {
        self.places().filter_map(|(high, low)| {
            let low = low.load(Acquire);
            let bits = u128::from(high.load(Relaxed)) << 64 | u128::from(low);
            (low != 0).then(|| Ipv6Addr::from_bits(bits))
        })
    }

    fn places(self) -> impl Iterator<Item = (&'a AtomicU64, &'a AtomicU64)> {
        self.0[PLACES..].as_chunks::<2>().0.iter().map(|[high, low]| (high, low))
    }
}
