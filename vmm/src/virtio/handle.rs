//! The interface to a device beside its transport. The API shows and changes devices with it, and a pause
//! stops them.
//!
//! [`VirtioDevice::handle`](crate::virtio::VirtioDevice::handle) returns a [`DeviceHandle`] before a
//! transport takes the device. It can be called from any thread, at any time. It may outlive the device, and
//! keeps nothing of it open.

use thiserror::Error;
use volt_net::device::DeviceError;
use volt_net::limiter::{LimitsChange, RateLimits};

use crate::virtio::status::DeviceStatus;

/// The kind of device, which a caller gives with the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// A network device, named by its interface or socket.
    Net,
    /// A disk, named by its image.
    Disk,
    /// A device that callers cannot name.
    Other,
}

impl DeviceKind {
    /// Returns its name for sentences.
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Net => "network device",
            DeviceKind::Disk => "disk",
            DeviceKind::Other => "device",
        }
    }
}

/// Shows and changes a device.
pub trait DeviceHandle: Send + Sync {
    /// Returns the device's status.
    fn status(&self) -> DeviceStatus;

    /// Changes the rate limits of a network device at once. Returns all limits in force.
    ///
    /// # Errors
    ///
    /// Fails if this process does not move the device's frames.
    fn change_limits(&self, _change: LimitsChange) -> Result<RateLimits, LimitsError> {
        Err(LimitsError::BackEnd)
    }

    /// Pauses the frames that this process moves: guest memory is untouched until [`DeviceHandle::resume`].
    /// Frames that the kernel or a back-end moves continue until the guest's buffers are used up. Threads
    /// that serve other vrings wait at the [`PauseGate`](crate::board::pause_gate::PauseGate).
    ///
    /// # Errors
    ///
    /// Fails if a worker does not stop.
    fn pause(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Continues after [`DeviceHandle::pause`]. Otherwise does nothing.
    fn resume(&self) {}
}

/// Why the rate of a device cannot be limited.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LimitsError {
    /// A back-end moves the frames.
    #[error("a vhost-user back-end moves this device's frames: set its limits ('volt-netd ctl limits')")]
    BackEnd,
    /// The kernel moves the frames.
    #[error("the kernel's vhost-net moves this device's frames without limits: use 'tc' on the interface")]
    Kernel,
    /// The guest has released the device.
    #[error("the device has just been removed")]
    Gone,
}

/// The handle of a device that has only a label.
pub struct Labelled(pub String);

impl DeviceHandle for Labelled {
    fn status(&self) -> DeviceStatus {
        DeviceStatus { device: self.0.clone(), details: None }
    }
}
