//! A running vring: the ring, the descriptors to notify by, and whether its driver has been scolded.

use std::sync::Arc;

use log::{debug, warn};

use crate::event::notify::Notifier;
use crate::net::counters::{Counter, Counters};
use crate::net::journal::Note;
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
    /// Where it is noted what is served.
    pub note: Note,
    /// Index in the available ring of a chain that must not be looked at.
    pub killer: Option<u16>,
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

    /// Notes that the chain at `index` of the available ring comes next.
    ///
    /// # Errors
    ///
    /// When it must not be looked at.
    #[inline]
    pub fn approach(&mut self, index: u16) -> Result<(), ChainError> {
        self.note.serving(index);
        match self.killer {
            Some(killer) if killer == index => Err(ChainError::Killer),
            _ => Ok(()),
        }
    }

    /// Counts a malformed chain, and names the first one.
    #[cold]
    pub fn bad_chain(&mut self, error: ChainError, counter: &Counter, counters: &Counters) {
        if error == ChainError::Killer {
            warn!("vring {}: a chain is returned unserved: {error}", self.index);
            counters.deadly_chains.add(1);
            self.killer = None;
            return;
        }
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
