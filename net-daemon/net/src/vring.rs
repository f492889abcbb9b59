//! A running vring: the ring and its notification descriptors.

use std::sync::Arc;

use log::{debug, warn};
use volt_virtio::chain::ChainError;
use volt_virtio::notify::Notifier;
use volt_virtio::ring::Ring;

use crate::counters::{Counter, Counters};
use crate::crash_note::Watch;

/// The message for a kick descriptor that cannot deliver kicks any more.
pub(crate) const NO_KICK: &str = "its kick descriptor is closed or cannot be read: no further kick can come";

/// A started ring with its notifiers.
#[derive(Debug)]
pub struct Vring {
    /// Number of the virtqueue in the device.
    pub index: usize,
    /// The device's side of the ring.
    pub ring: Ring,
    /// Driver to device.
    pub kick: Arc<Notifier>,
    /// Device to driver. `None`: the driver polls.
    pub call: Option<Arc<Notifier>>,
    /// Tells the front-end that the ring is broken.
    pub err: Option<Arc<Notifier>>,
    /// Whether a malformed chain has been logged.
    pub bad_chain_logged: bool,
    /// Tells a supervisor which chain is being served. `None`: no supervisor.
    pub watch: Option<Watch>,
}

impl Vring {
    /// Publishes the pushed elements, and notifies the driver if it wants a notification.
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

    /// Notes that the worker looks at the chain at `index` of the available ring from now on.
    ///
    /// # Errors
    ///
    /// Fails if the worker must not look at that chain.
    #[inline]
    pub fn begin(&mut self, index: u16) -> Result<(), ChainError> {
        self.watch.as_mut().map_or(Ok(()), |watch| watch.begin(index))
    }

    /// Notes that the worker looks at no chain.
    #[inline]
    pub fn idle(&self) {
        if let Some(watch) = &self.watch {
            watch.idle();
        }
    }

    /// Counts a malformed chain, and logs the first one.
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
