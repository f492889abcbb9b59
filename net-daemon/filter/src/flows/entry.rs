//! One entry of the flow table.
//!
//! ```text
//! words  0 ...  the key
//!        5      the peer's MAC address << 16 | who opened it << 8
//!        6      number of the policy << 32 | seconds when it was last seen
//!        7      lifetime in seconds << 32 | state of TCP
//!        8, 9   TCP from the guest: sequence numbers, window
//!       10, 11  TCP to the guest
//! ```
//!
//! Each word is stored as a whole. Threads that carry frames of one flow at the same time may each store
//! words of theirs: windows are then a little older than they could be, which tracking tolerates.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::Way;
use crate::flows::key::{self, Key};
use crate::wire::ethernet::Mac;

/// Words of an entry.
pub const WORDS: usize = 12;

const MAC: usize = key::WORDS;
const SEEN: usize = MAC + 1;
const STATE: usize = MAC + 2;
/// Two words for each way.
const ENDS: usize = MAC + 3;

/// One flow, or one neighbour.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a>(&'a [AtomicU64; WORDS]);

impl<'a> Entry<'a> {
    pub(super) fn new(words: &'a [AtomicU64]) -> Entry<'a> {
        Entry(words.first_chunk().expect("as many words"))
    }

    #[inline]
    pub(super) fn has(self, key: &Key) -> bool {
        self.0.iter().zip(key.0).all(|(mine, word)| mine.load(Relaxed) == word)
    }

    pub(super) fn clear(self, key: &Key, now: u32) {
        for (at, word) in self.0.iter().enumerate() {
            word.store(key.0.get(at).copied().unwrap_or(0), Relaxed);
        }
        self.seen(now);
    }

    /// Whether it was not seen for its lifetime.
    #[inline]
    pub(super) fn is_expired(self, now: u32) -> bool {
        let seen = self.0[SEEN].load(Relaxed) as u32;
        now.saturating_sub(seen) > (self.0[STATE].load(Relaxed) >> 32) as u32
    }

    /// Returns the second when it was last in use.
    #[inline]
    pub fn last_seen(self) -> u32 {
        self.0[SEEN].load(Relaxed) as u32
    }

    /// Notes that it is in use.
    #[inline]
    pub fn seen(self, now: u32) {
        let word = self.0[SEEN].load(Relaxed);
        if word as u32 != now {
            self.0[SEEN].store(word >> 32 << 32 | u64::from(now), Relaxed);
        }
    }

    /// Returns the number of the policy that has allowed it.
    #[inline]
    pub fn policy(self) -> u32 {
        (self.0[SEEN].load(Relaxed) >> 32) as u32
    }

    /// Sets the number of the policy that has allowed it.
    pub fn set_policy(self, number: u32) {
        let seen = self.0[SEEN].load(Relaxed) as u32;
        self.0[SEEN].store(u64::from(number) << 32 | u64::from(seen), Relaxed);
    }

    /// Returns the peer's MAC address: its own, or that of the gateway.
    #[inline]
    pub fn mac(self) -> Mac {
        let [.., a, b, c, d, e, f] = (self.0[MAC].load(Relaxed) >> 16).to_be_bytes();
        [a, b, c, d, e, f]
    }

    /// Sets the peer's MAC address.
    pub fn set_mac(self, mac: Mac) {
        let rest = self.0[MAC].load(Relaxed) & 0xffff;
        let [a, b, c, d, e, f] = mac;
        self.0[MAC].store(u64::from_be_bytes([0, 0, a, b, c, d, e, f]) << 16 | rest, Relaxed);
    }

    /// Returns who opened it.
    #[inline]
    pub fn opened(self) -> Way {
        if self.0[MAC].load(Relaxed) & 0x100 == 0 { Way::Out } else { Way::In }
    }

    /// Sets who opened it.
    pub fn set_opened(self, way: Way) {
        let rest = self.0[MAC].load(Relaxed) & !0x100;
        self.0[MAC].store(rest | if way == Way::In { 0x100 } else { 0 }, Relaxed);
    }

    /// Returns the state of a TCP connection.
    #[inline]
    pub(super) fn state(self) -> u32 {
        self.0[STATE].load(Relaxed) as u32
    }

    /// Sets the state, and the lifetime in seconds.
    #[inline]
    pub(super) fn set_state(self, state: u32, lifetime: u32) {
        let word = u64::from(lifetime) << 32 | u64::from(state);
        if self.0[STATE].load(Relaxed) != word {
            self.0[STATE].store(word, Relaxed);
        }
    }

    /// Sets the lifetime of an entry without states.
    pub fn set_lifetime(self, seconds: u32) {
        self.set_state(self.state(), seconds);
    }

    /// Returns the two words of a TCP end: the one whose frames go this way.
    #[inline]
    pub(super) fn end(self, way: Way) -> [u64; 2] {
        let at = ENDS + 2 * way as usize;
        [self.0[at].load(Relaxed), self.0[at + 1].load(Relaxed)]
    }

    /// Sets the two words of a TCP end.
    #[inline]
    pub(super) fn set_end(self, way: Way, words: [u64; 2]) {
        let at = ENDS + 2 * way as usize;
        for (at, word) in [at, at + 1].into_iter().zip(words) {
            if self.0[at].load(Relaxed) != word {
                self.0[at].store(word, Relaxed);
            }
        }
    }
}
