//! A running vring: the ring and the descriptors to notify by.

use std::sync::Arc;

use log::{debug, warn};
use volt_virtio::chain::ChainError;
use volt_virtio::notify::Notifier;
use volt_virtio::ring::Ring;

use crate::counters::{Counter, Counters};
use crate::crash_note::Watch;

/// What is said of a kick descriptor that has come to its end.
pub(crate) const NO_KICK: &str = "its kick descriptor is closed or cannot be read: no kick can come any more";

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
    pub bad_chain_logged: bool,
    /// Below a supervisor: what it is told of the chains that are served.
    pub watch: Option<Watch>,
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

    /// The chain at `index` of the available ring is looked at from here on.
    ///
    /// # Errors
    ///
    /// When it must not be looked at.
    #[inline]
    pub fn begin(&mut self, index: u16) -> Result<(), ChainError> {
        self.watch.as_mut().map_or(Ok(()), |watch| watch.begin(index))
    }

    /// No chain is looked at.
    #[inline]
    pub fn idle(&self) {
        if let Some(watch) = &self.watch {
            watch.idle();
        }
    }

    /// Counts a malformed chain, and names the first one.
    #[cold]
    pub fn bad_chain(&mut self, error: ChainError, counter: &Counter, counters: &Counters) {
        if error == ChainError::Deadly {
            warn!(
                event = "chain_left_unserved", vring = self.index;
                "vring {}: a chain is returned unserved: {error}", self.index
            );
            counters.deadly_chains.add(1);
            return;
        }
        counter.add(1);
        if self.bad_chain_logged {
            debug!("vring {}: bad descriptor chain: {error}", self.index);
        } else {
            warn!(
                event = "bad_chain", vring = self.index;
                "vring {}: bad descriptor chain, returned unused: {error} (more are only counted)",
                self.index
            );
            self.bad_chain_logged = true;
        }
    }
}
