//! What a back-end is told from activation to reset, and what the driver's commands change of it meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use vm_memory::GuestMemoryMmap;
use volt_net::control::command::GUEST_OFFLOADS;
use volt_virtio::features::Features;

use crate::virtio::Vring;
use crate::virtio::interrupt::Interrupt;

/// Features that are between the guest and the back-end alone: offered as the back-end offers them,
/// acknowledged as the guest does. A feature that needs the VMM's help is not among them, nor is one that
/// nobody here has heard of.
pub const PASSED: Features = Features::NET_CSUM
    .union(Features::NET_GUEST_CSUM)
    .union(Features::NET_GUEST_TSO4)
    .union(Features::NET_GUEST_TSO6)
    .union(Features::NET_GUEST_ECN)
    .union(Features::NET_GUEST_UFO)
    .union(Features::NET_HOST_TSO4)
    .union(Features::NET_HOST_TSO6)
    .union(Features::NET_HOST_ECN)
    .union(Features::NET_HOST_UFO)
    .union(Features::NET_MRG_RXBUF)
    .union(Features::INDIRECT_DESC)
    .union(Features::EVENT_IDX)
    .union(Features::VERSION_1)
    .union(Features::IN_ORDER)
    .union(Features::NET_GUEST_USO4)
    .union(Features::NET_GUEST_USO6)
    .union(Features::NET_HOST_USO)
    .union(Features::NET_GUEST_HDRLEN);

/// The VMM's own features of which a back-end is told when it knows them: MQ moves its control vring.
const TOLD: Features = Features::NET_MTU.union(Features::NET_MQ);

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
    pub settings: Arc<DriverSettings>,
}

impl Setup {
    /// What the back-end is told of the acknowledged features, for one that offers `offered`: with the
    /// receive offloads that are in force.
    pub(super) fn features_for(&self, offered: Features) -> Features {
        let in_force = self.acked.difference(GUEST_OFFLOADS).union(self.settings.offloads());
        in_force.intersection(PASSED.union(TOLD)).intersection(offered).union(Features::PROTOCOL_FEATURES)
    }
}

/// What the driver wants at the moment; written by the control vring's thread, read by the link's.
#[derive(Debug)]
pub struct DriverSettings {
    pairs: AtomicU16,
    offloads: AtomicU64,
}

impl DriverSettings {
    /// Those of a driver that has sent no command: one pair, and all receive offloads that it acknowledged.
    pub fn new(acked: Features) -> DriverSettings {
        DriverSettings {
            pairs: AtomicU16::new(1),
            offloads: AtomicU64::new(acked.intersection(GUEST_OFFLOADS).bits()),
        }
    }

    /// Pairs in use, from the first on.
    pub fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Acquire)
    }

    /// See [`DriverSettings::pairs`].
    pub fn set_pairs(&self, pairs: u16) {
        self.pairs.store(pairs, Ordering::Release);
    }

    fn offloads(&self) -> Features {
        Features::from_bits_retain(self.offloads.load(Ordering::Acquire))
    }

    /// The receive offloads in force.
    pub fn set_offloads(&self, offloads: Features) {
        self.offloads.store(offloads.bits(), Ordering::Release);
    }
}
