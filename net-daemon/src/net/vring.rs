//! A running vring: the ring, the descriptors to notify by, and whether its driver has been scolded.

use std::sync::Arc;

use log::{debug, warn};

use crate::event::notify::Notifier;
use crate::net::counters::{Counter, Counters};
use crate::virtio::chain::ChainError;
use crate::virtio::ring::Ring;

/// A started ring with its notifiers.
#[derive(Debug)]
pub struct Vring {
    /// Number of the virtqueue in the device.
    pub index: usize,
    /// The device's side of the ring.
    pub ring: Ring,
    /// Driver to device.
    pub kick: Arc<Notifier>,
    /// Device to driver; a driver that polls gives none.
    pub call: Option<Arc<Notifier>>,
    /// Tells the front-end that the ring is broken.
    pub err: Option<Arc<Notifier>>,
    /// Whether a malformed chain has been logged.
    pub scolded: bool,
}

impl Vring {
    /// Publishes what was pushed, and notifies the driver if it wants that.
    #[inline]
    pub fn publish(&mut self, counters: &Counters) {
        if self.ring.publish() {
            self.call(counters);
        }
    }

    /// Notifies the driver.
    #[inline]
    pub fn call(&self, counters: &Counters) {
        if let Some(call) = &self.call {
            counters.calls.add(1);
            call.notify();
        }
    }

    /// Counts a malformed chain, and names the first one.
    #[cold]
    pub fn bad_chain(&mut self, error: ChainError, counter: &Counter) {
        counter.add(1);
        if self.scolded {
            debug!("vring {}: bad descriptor chain: {error}", self.index);
        } else {
            warn!(
                "vring {}: bad descriptor chain, returned unused: {error} (more are only counted)",
                self.index
            );
            self.scolded = true;
        }
    }
}
