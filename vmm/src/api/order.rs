//! What is carried out for a client, and the client, who waits for it for a bounded time. Whichever comes first counts.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const DONE: u8 = 1;
const LATE: u8 = 2;

/// An order that is carried out on one thread and waited for on another.
#[derive(Debug, Default)]
pub(super) struct Order(AtomicU8);

impl Order {
    /// The order counts as carried out from here on. False when its client was told before that it takes too long: then what
    /// was done for it is to be undone, or told in the log.
    pub(super) fn finish(&self) -> bool {
        self.settle(DONE)
    }

    /// The client is told that it takes too long. False when it is carried out already, and the answer is on its way.
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
        let order = Order::default();
        assert!(order.finish() && order.finish());
        assert!(!order.give_up());
        let order = Order::default();
        assert!(order.give_up());
        assert!(!order.finish() && !order.finish());
    }
}
