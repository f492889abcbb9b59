//! A vring that the VMM serves itself: chains off the ring, used entries and interrupts back.
//!
//! On `virtio-queue`, with what that leaves to its callers: a ring whose indices cannot be is an error
//! here, and not an empty ring to be asked again for ever.

use std::sync::Arc;

use thiserror::Error;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::{Activation, Vring};

/// Why a ring can be served no more.
#[derive(Debug, Error)]
pub enum RingError {
    /// Indices that no driver writes, or a ring out of reach.
    #[error("vring {index} cannot be trusted")]
    Broken {
        /// The vring.
        index: u16,
        /// What is wrong with it.
        #[source]
        source: virtio_queue::Error,
    },
    /// An available entry names a descriptor that the ring does not have.
    #[error("vring {index} offers descriptor {head} of {size}")]
    Head {
        /// The vring.
        index: u16,
        /// The number in the available ring.
        head: u16,
        /// Descriptors in the table.
        size: u16,
    },
}

/// One vring, the memory that it is in, and the interrupt behind it.
pub struct Ring {
    vring: Vring,
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
}

impl Ring {
    /// The ring of `vring`, from the same activation.
    pub fn new(vring: Vring, activation: &Activation) -> Ring {
        Ring { vring, memory: activation.memory.clone(), interrupt: activation.interrupt.clone() }
    }

    /// Readable when the driver made chains available.
    pub fn kick(&self) -> &Arc<EventFd> {
        &self.vring.kick
    }

    /// Tells the driver that this ring is lost.
    pub fn give_up(&self) {
        self.interrupt.needs_reset();
    }

    /// Serves one chain: `request` gets it, or what is wrong with it, and answers how many bytes it
    /// wrote from the start of the writable half. `false` when there was none; then the driver kicks
    /// for the next.
    ///
    /// # Errors
    ///
    /// The ring cannot be served any more.
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
        // After each one, not after a batch: a request can take long, and the driver's event index keeps
        // interrupts apart anyway.
        if queue.needs_notification(memory).map_err(broken)? {
            self.interrupt.used(index);
        }
        Ok(true)
    }
}
