//! What a back-end is told from activation to reset, and what the driver's commands change of it meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use vm_memory::GuestMemoryMmap;
use volt_net::net::ctrl::GUEST_OFFLOADS;
use volt_net::virtio::features::Features;

use crate::irq::Interrupt;
use crate::virtio::Vring;

/// Features that are between the guest and the back-end alone: offered as the back-end offers them,
/// acknowledged as the guest does. A feature that needs the VMM's help is not among them, nor is one that
/// nobody here has heard of.
pub const PASSED: Features = Features::CSUM
    .with(Features::GUEST_CSUM)
    .with(Features::GUEST_TSO4)
    .with(Features::GUEST_TSO6)
    .with(Features::GUEST_ECN)
    .with(Features::GUEST_UFO)
    .with(Features::HOST_TSO4)
    .with(Features::HOST_TSO6)
    .with(Features::HOST_ECN)
    .with(Features::HOST_UFO)
    .with(Features::MRG_RXBUF)
    .with(Features::INDIRECT_DESC)
    .with(Features::EVENT_IDX)
    .with(Features::VERSION_1)
    .with(Features::IN_ORDER)
    .with(Features::GUEST_USO4)
    .with(Features::GUEST_USO6)
    .with(Features::HOST_USO)
    .with(Features::GUEST_HDRLEN);

/// The VMM's own features of which a back-end is told when it knows them: MQ moves its control vring.
const TOLD: Features = Features::MTU.with(Features::MQ);

/// What a back-end is told from activation to reset.
pub struct Setup {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// What the guest acknowledged.
    pub acked: Features,
    /// The data vrings that the driver made ready.
    pub vrings: Vec<Vring>,
    /// Has the eventfds that the back-end calls.
    pub interrupt: Arc<dyn Interrupt>,
    /// What the driver's control commands change.
    pub wishes: Arc<Wishes>,
}

impl Setup {
    /// What the back-end is told of the acknowledged features, for one that offers `offered`: with the receive
    /// offloads that are in force.
    pub(super) fn told_features(&self, offered: Features) -> Features {
        let in_force = self.acked.without(GUEST_OFFLOADS).with(self.wishes.offloads());
        in_force.common(PASSED.with(TOLD)).common(offered).with(Features::PROTOCOL_FEATURES)
    }
}

/// What the driver wants at the moment; written by the control vring's thread, read by the link's.
#[derive(Debug)]
pub struct Wishes {
    pairs: AtomicU16,
    offloads: AtomicU64,
}

impl Wishes {
    /// Those of a driver that has sent no command: one pair, and all receive offloads that it acknowledged.
    pub fn new(acked: Features) -> Wishes {
        Wishes { pairs: AtomicU16::new(1), offloads: AtomicU64::new(acked.common(GUEST_OFFLOADS).0) }
    }

    /// Pairs in use, from the first on.
    pub fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Acquire)
    }

    /// See [`Wishes::pairs`].
    pub fn set_pairs(&self, pairs: u16) {
        self.pairs.store(pairs, Ordering::Release);
    }

    fn offloads(&self) -> Features {
        Features(self.offloads.load(Ordering::Acquire))
    }

    /// The receive offloads in force.
    pub fn set_offloads(&self, offloads: Features) {
        self.offloads.store(offloads.0, Ordering::Release);
    }
}
