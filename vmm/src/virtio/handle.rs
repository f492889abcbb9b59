//! A device for everybody but its transport: what the API shows and changes, and what a pause stops.
//!
//! [`VirtioDevice::handle`](crate::virtio::VirtioDevice::handle) gives a [`DeviceHandle`] out before a
//! transport takes the device. It is called from any thread, at any time, and may outlive the device, of
//! which it keeps nothing open.

use thiserror::Error;
use volt_net::device::DeviceError;
use volt_net::limiter::{LimitsChange, RateLimits};

use crate::virtio::status::DeviceStatus;

/// What a device is for whoever names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// Named by its interface or socket.
    Net,
    /// Named by its image.
    Disk,
    /// Not to be named.
    Other,
}

impl DeviceKind {
    /// In sentences.
    pub fn name(self) -> &'static str {
        match self {
            DeviceKind::Net => "network device",
            DeviceKind::Disk => "disk",
            DeviceKind::Other => "device",
        }
    }
}

/// Shows and changes a device beside its transport.
pub trait DeviceHandle: Send + Sync {
    /// How the device is.
    fn status(&self) -> DeviceStatus;

    /// Changes the rate limits of a network device, at once, and answers all that are in force then.
    ///
    /// # Errors
    ///
    /// Where this process does not move its frames.
    fn change_limits(&self, _change: LimitsChange) -> Result<RateLimits, LimitsError> {
        Err(LimitsError::BackEnd)
    }

    /// Touches nothing of the guest's until [`DeviceHandle::resume`], as far as this process moves frames.
    /// What the kernel or a back-end moves goes on as far as the guest has left it buffers; threads that
    /// serve other vrings wait at the [`PauseGate`](crate::board::pause_gate::PauseGate).
    ///
    /// # Errors
    ///
    /// When a worker does not stop.
    fn pause(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Goes on after [`DeviceHandle::pause`]; otherwise it does nothing.
    fn resume(&self) {}
}

/// The rate of a device cannot be limited here.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LimitsError {
    /// Its frames do not come by.
    #[error("a vhost-user back-end moves this device's frames: ask that ('volt-netd ctl limits')")]
    BackEnd,
    /// Nor do these.
    #[error(
        "the kernel's vhost-net moves this device's frames, past any limit here: use 'tc' on the interface"
    )]
    Kernel,
    /// The guest has given it back.
    #[error("the device has just been removed")]
    Gone,
}

/// The handle of a device that has nothing to tell but its label.
pub struct Labelled(pub String);

impl DeviceHandle for Labelled {
    fn status(&self) -> DeviceStatus {
        DeviceStatus { device: self.0.clone(), details: None }
    }
}
