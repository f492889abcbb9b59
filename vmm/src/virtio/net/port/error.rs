//! Why a network device with an interface cannot be created.

use std::io;

use thiserror::Error;
use volt_net::builder::BuildError;
use volt_net::port::macvtap::MacvtapError;
use volt_net::port::peer::PeerError;
use volt_virtio::features::{Class, Features};

use crate::opener::VHOST_NET;

/// Why a network device cannot be created.
#[derive(Debug, Error)]
pub enum PortError {
    /// The interface cannot be used.
    #[error("network interface {name}")]
    Interface {
        /// Name of the interface.
        name: String,
        /// The error.
        #[source]
        source: BuildError,
    },
    /// The macvtap interface cannot be used.
    #[error(transparent)]
    Macvtap(#[from] MacvtapError),
    /// The peer's socket cannot be used.
    #[error("network peer {name}")]
    Peer {
        /// Path of the peer's socket.
        name: String,
        /// The error.
        #[source]
        source: PeerError,
    },
    /// vhost-net is required, and cannot be used.
    #[error("{label}: vhost-net=require, but vhost-net cannot be used")]
    VhostNet {
        /// The label of the device.
        label: String,
        /// The error.
        #[source]
        source: VhostNetError,
    },
    /// The kernel would pass frames that the guard refuses.
    #[error("{label}: guard=on without vhost-net only: the kernel moves the frames and judges none")]
    Guarded {
        /// The label of the device.
        label: String,
    },
    /// There is no thread or eventfd.
    #[error("the host is out of resources for a network device")]
    Host(#[from] io::Error),
}

/// Why the kernel's vhost-net cannot be used.
#[derive(Debug, Error)]
pub enum VhostNetError {
    /// There is no vhost-net, or this user has no permission.
    #[error("cannot open {VHOST_NET}: load the kernel module 'vhost_net', and check the file's permissions")]
    Open(#[source] io::Error),
    /// A request failed.
    #[error("vhost-net: {request} failed")]
    Request {
        /// The name of the request.
        request: &'static str,
        /// The error.
        #[source]
        source: vhost::Error,
    },
    /// vhost-net refuses the interface's queue.
    #[error("vhost-net: SET_BACKEND failed")]
    Queue(#[source] io::Error),
    /// The kernel is too old.
    #[error("this kernel's vhost-net lacks {}", .0.named(Class::Net))]
    Features(Features),
    /// Guest memory has no form that vhost accepts.
    #[error("guest memory cannot be shared with vhost-net")]
    Memory,
}
