//! The memory of a filter, which outlives the process, and its parts:
//!
//! ```text
//! flows | neighbours | learnt addresses | refused frames by way and reason | policy number, its hash, errors
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::Way;
use crate::flows::table;
use crate::learnt;
use crate::reason::Reason;

/// Memory that outlives the process: words that are 0 at first. Other processes judge with it before and
/// after this one.
pub type Memory = Arc<dyn AsRef<[AtomicU64]> + Send + Sync>;

/// Hosts on the link whose MAC addresses are known at the same time.
pub(crate) const NEIGHBOURS: usize = 1024;
const NEIGHBOUR_WORDS: usize = table::words(NEIGHBOURS);
/// Room for the counts of each way. Later versions have further reasons.
const REASONS: usize = 64;
/// Words of the last part.
const POLICY: usize = 0;
const POLICY_HASH: usize = 1;
const ERRORS: usize = 2;
const LAST_PART: usize = 3;

/// Returns how many words a filter needs whose flow table has `flow_words`.
pub(crate) fn words(flow_words: usize) -> usize {
    flow_words + NEIGHBOUR_WORDS + learnt::WORDS + 2 * REASONS + LAST_PART
}

/// The parts. Each is found when it is used: few frames use more than one.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    words: &'a [AtomicU64],
    flow_words: usize,
}

impl<'a> Parts<'a> {
    /// Uses as many words of `memory` as [`words`] says.
    #[inline]
    pub(crate) fn new(memory: &'a Memory, flow_words: usize) -> Parts<'a> {
        Parts { words: (**memory).as_ref(), flow_words }
    }

    #[inline]
    pub(crate) fn flows(self) -> &'a [AtomicU64] {
        &self.words[..self.flow_words]
    }

    pub(crate) fn neighbours(self) -> &'a [AtomicU64] {
        &self.words[self.flow_words..][..NEIGHBOUR_WORDS]
    }

    pub(crate) fn learnt(self) -> &'a [AtomicU64] {
        &self.words[self.flow_words + NEIGHBOUR_WORDS..][..learnt::WORDS]
    }

    /// Returns the count of frames that were refused for this reason.
    pub(crate) fn refused(self, way: Way, reason: Reason) -> &'a AtomicU64 {
        let at = self.flow_words + NEIGHBOUR_WORDS + learnt::WORDS;
        &self.words[at + way as usize * REASONS + reason as usize]
    }

    fn last(self, word: usize) -> &'a AtomicU64 {
        &self.words[self.flow_words + NEIGHBOUR_WORDS + learnt::WORDS + 2 * REASONS + word]
    }

    /// The number of the policy that was in force last.
    pub(crate) fn policy(self) -> &'a AtomicU64 {
        self.last(POLICY)
    }

    /// The hash of its text.
    pub(crate) fn policy_hash(self) -> &'a AtomicU64 {
        self.last(POLICY_HASH)
    }

    /// ICMP errors of the guest: second << 32 | their number.
    pub(crate) fn errors(self) -> &'a AtomicU64 {
        self.last(ERRORS)
    }
}
