//! A vring served by the VMM itself: takes chains off the ring, and returns used entries and interrupts.
//!
//! Based on `virtio-queue`, with the checks that it leaves to its callers: a ring with impossible indices is
//! an error here, not an empty ring that is polled forever.

use std::sync::Arc;

use thiserror::Error;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::{Activation, Vring};

/// Why a ring can no longer be served.
#[derive(Debug, Error)]
pub enum RingError {
    /// Indices that no driver writes, or a ring outside of guest memory.
    #[error("vring {index} cannot be trusted")]
    Broken {
        /// The vring.
        index: u16,
        /// The error in the ring.
        #[source]
        source: virtio_queue::Error,
    },
    /// An available entry names a descriptor that the ring does not have.
    #[error("vring {index} offers descriptor {head} of {size}")]
    Head {
        /// The vring.
        index: u16,
        /// The descriptor number in the available ring.
        head: u16,
        /// Number of descriptors in the table.
        size: u16,
    },
}

/// One vring with its memory and its interrupt.
pub struct Ring {
    vring: Vring,
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
}

impl Ring {
    /// Creates the ring of `vring`, from the same activation.
    pub fn new(vring: Vring, activation: &Activation) -> Ring {
        Ring { vring, memory: activation.memory.clone(), interrupt: activation.interrupt.clone() }
    }

    /// Returns the eventfd that is readable when the driver made chains available.
    pub fn kick(&self) -> &Arc<EventFd> {
        &self.vring.kick
    }

    /// Tells the driver that this ring is lost.
    pub fn give_up(&self) {
        self.interrupt.needs_reset();
    }

    /// Serves one chain. `request` gets the chain or its error, and returns the number of bytes written from
    /// the start of the writable half. Returns `false` if there is no chain; the driver then kicks for the
    /// next one.
    ///
    /// # Errors
    ///
    /// Fails if the ring can no longer be served.
    pub fn serve(
        &mut self,
        request: impl FnOnce(Result<&Chain<'_>, ChainError>) -> u32,
    ) -> Result<bool, RingError> {
        let index = self.vring.index;
        let (queue, memory) = (&mut self.vring.queue, &self.memory);
        let broken = |source| RingError::Broken { index, source };
        let Some(descriptors) = queue.iter(memory).map_err(broken)?.next() else {
            return queue.enable_notification(memory).map_err(broken);
        };
        let (head, size) = (descriptors.head_index(), queue.size());
        if head >= size {
            return Err(RingError::Head { index, head, size });
        }
        let used = match Chain::read(descriptors, memory) {
            Ok(chain) => request(Ok(&chain)),
            Err(error) => request(Err(error)),
        };
        queue.add_used(memory, head, used).map_err(broken)?;
        // After each chain, not after a batch: a request can take long, and the driver's event index already
        // limits the number of interrupts.
        if queue.needs_notification(memory).map_err(broken)? {
            self.interrupt.used(index);
        }
        Ok(true)
    }
}
