//! State shared by the device and its back-end's thread: commands one way, the state of the link the other
//! way.
//!
//! The device uses it through its [`Link`](super::link::Link). The thread is a
//! [`BackendThread`](super::thread::BackendThread).

use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use volt_net::config::NetConfig;
use volt_virtio::features::Features;
use volt_virtio::notify::Notifier;

use crate::virtio::net::vhost_user::connection::Cancellation;
use crate::virtio::net::vhost_user::link_state::LinkState;
use crate::virtio::net::vhost_user::setup::Setup;

/// Time for a back-end to stop its vrings at a reset, while a vCPU waits.
pub const STOP_LIMIT: Duration = Duration::from_secs(1);

/// Properties that a new back-end must have, because the guest relies on them.
pub struct Requirements {
    /// Path of its socket.
    pub socket: PathBuf,
    /// Queue pairs of the device.
    pub pairs: u16,
    /// The back-end features that the guest was offered.
    pub offered: Features,
    /// MTU of the first back-end.
    pub mtu: Option<u16>,
    /// The guest's link goes down after the back-end has been away for that long.
    pub link_down_after: Option<Duration>,
}

/// State shared by both ends of the thread.
pub(super) struct Shared {
    /// The configuration space. The thread owns the link's bit in `status`.
    pub(super) config: Arc<Mutex<NetConfig>>,
    pub(super) state: Mutex<LinkState>,
    pub(super) cancellation: Cancellation,
    /// Written after each command.
    pub(super) wake: Notifier,
}

pub(super) enum Command {
    Start(Box<Setup>),
    Stop { done: Sender<()> },
    Quit,
}
