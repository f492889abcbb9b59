//! The data path of a network device with an interface: this process or the kernel moves the frames.
//!
//! [`Net`](super::Net) has one [`DataPath`] during its lifetime. It starts the path at each activation and
//! stops it at each reset. Meanwhile the control vring's thread changes its pairs and offloads, and any
//! thread its limits.

use std::io;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use volt_net::device::DeviceError;
use volt_net::limiter::{LimitsChange, RateLimits};
use volt_net::virtio_net;
use volt_virtio::features::Features;

use crate::virtio::Vring;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::net::port::error::VhostNetError;
use crate::virtio::status::TrafficStatus;

/// Why a data path cannot start.
#[derive(Debug, Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Device(#[from] virtio_net::ActivateError),
    #[error(transparent)]
    VhostNet(#[from] VhostNetError),
    #[error("the host is out of resources")]
    Host(#[from] io::Error),
}

/// The resources of a data path from `DRIVER_OK` on.
pub(super) struct DataSetup<'a> {
    pub(super) memory: &'a GuestMemoryMmap,
    /// The features that the driver acknowledged.
    pub(super) acked: Features,
    /// The receive and transmit vrings that are ready.
    pub(super) vrings: &'a [Vring],
    pub(super) interrupt: &'a Arc<dyn Interrupt>,
}

/// The data path of a [`Net`](super::Net). Called by a vCPU's thread and by the control vring's.
pub(super) trait DataPath: Send + Sync {
    /// Serves the vrings, at first those of the first pair only. [`DataPath::stop`] is called after an error,
    /// too.
    fn start(&self, setup: DataSetup<'_>) -> Result<(), StartError>;

    /// Stops. The guest's memory is not touched after the return. Does nothing without a start.
    fn stop(&self);

    /// Uses the first `pairs` pairs, and no others.
    fn set_active_pairs(&self, pairs: u16);

    /// Sets the receive offloads.
    fn set_offloads(&self, offloads: Features);

    /// Changes the rate limits. Returns all limits in force, or `None` if this process does not move the
    /// frames.
    fn change_limits(&self, change: LimitsChange) -> Option<RateLimits>;

    /// Pauses the frames that this process moves. The guest's memory is untouched until [`DataPath::resume`].
    fn pause(&self) -> Result<(), DeviceError>;

    /// Continues after [`DataPath::pause`].
    fn resume(&self);

    /// Returns limits and counters for the API (`docs/reference/http-api.md`), or `None` if this process does
    /// not move the frames.
    fn traffic(&self) -> Option<TrafficStatus>;
}
