//! What is carried out for a client on one thread, and the client, who waits for it on another for a bounded
//! time. Whichever comes first counts: the completion, or the end of the client's patience.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const DONE: u8 = 1;
const LATE: u8 = 2;

/// Whether a request is carried out, or its client was told that it takes too long.
#[derive(Debug, Default)]
pub(super) struct Completion(AtomicU8);

impl Completion {
    /// The request counts as carried out from here on. False when its client was told before that it takes
    /// too long: then what was done for it is to be undone, or told in the log.
    pub(super) fn finish(&self) -> bool {
        self.settle(DONE)
    }

    /// The client is told that it takes too long. False when it is carried out already, and the answer is on
    /// its way.
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
