//! Why there is no network device over an interface.

use std::io;

use thiserror::Error;
use volt_net::builder::BuildError;
use volt_net::port::macvtap::MacvtapError;
use volt_virtio::features::{Class, Features};

use crate::opener::VHOST_NET;

/// Why there is no network device.
#[derive(Debug, Error)]
pub enum PortError {
    /// The interface cannot be used.
    #[error("network interface {name}")]
    Interface {
        /// Of the interface.
        name: String,
        /// What is wrong.
        #[source]
        source: BuildError,
    },
    /// The macvtap interface cannot be used.
    #[error(transparent)]
    Macvtap(#[from] MacvtapError),
    /// The kernel cannot do what is required of it.
    #[error("{label}: vhost-net is required")]
    VhostNet {
        /// The device.
        label: String,
        /// Why not.
        #[source]
        source: VhostNetError,
    },
    /// No thread, no eventfd.
    #[error("the host is out of resources for a network device")]
    Host(#[from] io::Error),
}

/// Why the kernel's vhost-net cannot be used.
#[derive(Debug, Error)]
pub enum VhostNetError {
    /// There is none, or not for us.
    #[error("cannot open {VHOST_NET}: load the kernel module 'vhost_net', and check who may open the file")]
    Open(#[source] io::Error),
    /// It refuses something.
    #[error("vhost-net: {request} failed")]
    Request {
        /// What was asked.
        request: &'static str,
        /// Its answer.
        #[source]
        source: vhost::Error,
    },
    /// It does not take the interface's queue.
    #[error("vhost-net: SET_BACKEND failed")]
    Queue(#[source] io::Error),
    /// An old kernel.
    #[error("this kernel's vhost-net lacks {}", .0.named(Class::Net))]
    Features(Features),
    /// Guest memory is not as vhost needs it.
    #[error("guest memory cannot be shown to vhost-net")]
    Memory,
}
