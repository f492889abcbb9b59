//! The settings of a back-end from activation to reset, and the changes by the driver's commands.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use vm_memory::GuestMemoryMmap;
use volt_net::control::command::GUEST_OFFLOADS;
use volt_virtio::features::Features;

use crate::virtio::Vring;
use crate::virtio::interrupt::Interrupt;

/// Features between the guest and the back-end alone. They are offered if the back-end offers them, and
/// acknowledged if the guest does. Features that need the VMM's help, or that are unknown here, are not
/// included.
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

/// The VMM's own features that are also sent to a back-end that offers them. MQ moves its control vring.
const TOLD: Features = Features::NET_MTU.union(Features::NET_MQ);

/// The settings of a back-end from activation to reset.
pub struct Setup {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// The features that the guest acknowledged.
    pub acked: Features,
    /// The data vrings that the driver made ready.
    pub vrings: Vec<Vring>,
    /// Has the eventfds for the back-end's calls.
    pub interrupt: Arc<dyn Interrupt>,
    /// The driver's changes by control commands.
    pub settings: Arc<DriverSettings>,
}

impl Setup {
    /// Returns the features for SET_FEATURES to a back-end that offers `offered`, with the receive offloads
    /// in force.
    pub(super) fn features_for(&self, offered: Features) -> Features {
        let in_force = self.acked.difference(GUEST_OFFLOADS).union(self.settings.offloads());
        in_force.intersection(PASSED.union(TOLD)).intersection(offered).union(Features::PROTOCOL_FEATURES)
    }
}

/// The driver's present wishes. Written by the control vring's thread, read by the link's.
#[derive(Debug)]
pub struct DriverSettings {
    pairs: AtomicU16,
    offloads: AtomicU64,
}

impl DriverSettings {
    /// Returns the settings of a driver that has sent no command: one pair, and all receive offloads that it
    /// acknowledged.
    pub fn new(acked: Features) -> DriverSettings {
        DriverSettings {
            pairs: AtomicU16::new(1),
            offloads: AtomicU64::new(acked.intersection(GUEST_OFFLOADS).bits()),
        }
    }

    /// Returns the number of pairs in use, from the first on.
    pub fn pairs(&self) -> u16 {
        self.pairs.load(Ordering::Acquire)
    }

    /// Sets the number of pairs in use.
    pub fn set_pairs(&self, pairs: u16) {
        self.pairs.store(pairs, Ordering::Release);
    }

    fn offloads(&self) -> Features {
        Features::from_bits_retain(self.offloads.load(Ordering::Acquire))
    }

    /// Sets the receive offloads in force.
    pub fn set_offloads(&self, offloads: Features) {
        self.offloads.store(offloads.bits(), Ordering::Release);
    }
}
