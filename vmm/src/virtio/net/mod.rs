//! The network devices (virtio 1.2, section 5.1).
//!
//! [`open`] makes one of any kind from its configuration. Whoever moves the frames, the VMM itself serves the
//! control vring and the configuration space.
//!
//! | module | holds |
//! |---|---|
//! | [`control`] | the control vring of every network device |
//! | [`port`] | the device over an interface of the host, whose frames this process or the kernel moves |
//! | [`vhost_user`] | the device whose frames a vhost-user back-end moves |

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

/// Why there is no network device.
#[derive(Debug, Error)]
pub enum NetError {
    /// The one behind a socket.
    #[error(transparent)]
    Socket(#[from] VhostUserNetError),
    /// The one over an interface.
    #[error(transparent)]
    Port(#[from] PortError),
}

/// Makes the network device that `config` describes, for a machine that is paused by `gate`.
///
/// Waits for the back-end behind a socket.
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
