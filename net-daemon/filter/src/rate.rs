//! A limit of events in a second, in a word: second << 32 | events in it.
//!
//! Threads may count at the same time and lose each other's event: then some more pass.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Whether fewer than `most` events were counted in the second `now`.
pub(crate) fn has_room(word: &AtomicU64, now: u32, most: u32) -> bool {
    counted(word, now) < most
}

/// Counts an event in the second `now`.
pub(crate) fn count(word: &AtomicU64, now: u32) {
    word.store(u64::from(now) << 32 | u64::from(counted(word, now).saturating_add(1)), Relaxed);
}

fn counted(word: &AtomicU64, now: u32) -> u32 {
    let before = word.load(Relaxed);
    if (before >> 32) as u32 == now { before as u32 } else { 0 }
}
