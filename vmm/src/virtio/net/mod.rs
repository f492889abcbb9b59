//! The network devices (virtio 1.2, section 5.1).
//!
//! [`open`] creates one of any kind from its configuration. The VMM itself serves the control vring and the
//! configuration space of all kinds.
//!
//! | module | holds |
//! |---|---|
//! | [`control`] | the control vring of every network device |
//! | [`port`] | the device with an interface of the host; this process or the kernel moves its frames |
//! | [`vhost_user`] | the device with a vhost-user back-end, which moves its frames |

use std::sync::Arc;

use thiserror::Error;

use crate::board::pause_gate::PauseGate;
use crate::config::NetDeviceConfig;
use crate::virtio::VirtioDevice;
use crate::virtio::net::port::{Net, PortError};
use crate::virtio::net::vhost_user::{VhostUserNet, VhostUserNetError};

pub mod changes;
pub mod control;
pub mod port;
pub mod vhost_user;

/// Why a network device cannot be created.
#[derive(Debug, Error)]
pub enum NetError {
    /// The device with a back-end.
    #[error(transparent)]
    Socket(#[from] VhostUserNetError),
    /// The device with an interface.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Creates the network device that `config` describes, for a machine that pauses at `gate`.
///
/// Waits for a back-end.
///
/// # Errors
///
/// See [`NetError`].
pub fn open(config: &NetDeviceConfig, gate: &Arc<PauseGate>) -> Result<Box<dyn VirtioDevice>, NetError> {
    Ok(match config {
        NetDeviceConfig::Socket(config) => Box::new(VhostUserNet::connect(config, gate)?),
        NetDeviceConfig::Port(config) => Box::new(Net::open(config, gate)?),
    })
}
