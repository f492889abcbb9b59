//! Whoever moves the frames of a network device over an interface: this process or the kernel.
//!
//! [`Net`](super::Net) has one [`DataPath`] for as long as it lives. It starts that at each activation and
//! stops it at each reset; the control vring's thread changes its pairs and offloads meanwhile, and any
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

/// Why a data path did not start.
#[derive(Debug, Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Device(#[from] virtio_net::ActivateError),
    #[error(transparent)]
    VhostNet(#[from] VhostNetError),
    #[error("the host is out of resources")]
    Host(#[from] io::Error),
}

/// What a data path gets at `DRIVER_OK`.
pub(super) struct DataSetup<'a> {
    pub(super) memory: &'a GuestMemoryMmap,
    /// What the driver acknowledged.
    pub(super) acked: Features,
    /// The receive and transmit vrings that are ready.
    pub(super) vrings: &'a [Vring],
    pub(super) interrupt: &'a Arc<dyn Interrupt>,
}

/// Whoever moves the frames of a [`Net`](super::Net). Called by a vCPU's thread and by the control vring's.
pub(super) trait DataPath: Send + Sync {
    /// Serves the vrings, the first pair's alone at first. [`DataPath::stop`] follows an error too.
    fn start(&self, setup: DataSetup<'_>) -> Result<(), StartError>;

    /// Stops, so that nothing of the guest's memory is touched after the return. Without a start it does
    /// nothing.
    fn stop(&self);

    /// Lets frames come by the first `pairs` pairs and no others.
    fn set_active_pairs(&self, pairs: u16);

    /// Puts these receive offloads in force.
    fn set_offloads(&self, offloads: Features);

    /// Changes the rate limits and answers all that are in force then; `None` where frames pass elsewhere.
    fn change_limits(&self, change: LimitsChange) -> Option<RateLimits>;

    /// Touches nothing of the guest's until [`DataPath::resume`], as far as this process moves the frames.
    fn pause(&self) -> Result<(), DeviceError>;

    /// Goes on after [`DataPath::pause`].
    fn resume(&self);

    /// Limits and counters as the API shows them (`docs/reference/http-api.md`); `None` where frames pass elsewhere.
    fn traffic(&self) -> Option<TrafficStatus>;
}
