//! The race between a request, which one thread carries out, and its client, for which another thread waits a
//! bounded time. The first to finish wins.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const DONE: u8 = 1;
const LATE: u8 = 2;

/// Whether a request was carried out first, or its client was told first that it takes too long.
#[derive(Debug, Default)]
pub(super) struct Completion(AtomicU8);

impl Completion {
    /// Marks the request as carried out. Returns false if the client was already told that it takes too long:
    /// the caller must then undo the request, or log its result.
    pub(super) fn finish(&self) -> bool {
        self.settle(DONE)
    }

    /// Marks the client as told that the request takes too long. Returns false if the request was already
    /// carried out, and the answer is on its way.
    pub(super) fn give_up(&self) -> bool {
        self.settle(LATE)
    }

    fn settle(&self, as_what: u8) -> bool {
        match self.0.compare_exchange(OPEN, as_what, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => true,
            Err(settled) => settled == as_what,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_first_counts() {
        let completion = Completion::default();
        assert!(completion.finish() && completion.finish());
        assert!(!completion.give_up());
        let completion = Completion::default();
        assert!(completion.give_up());
        assert!(!completion.finish() && !completion.finish());
    }
}
