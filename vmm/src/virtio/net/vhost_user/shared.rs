//! What the device and its back-end's thread share: commands one way, the state of the link the other.
//!
//! The device has it by its [`Link`](super::link::Link), the thread is a
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

/// Time for a back-end to give the vrings back at a reset, in which a vCPU waits.
pub const STOP_LIMIT: Duration = Duration::from_secs(1);

/// What a back-end that comes back has to be, because the guest knows it so.
pub struct Requirements {
    /// Where it listens.
    pub socket: PathBuf,
    /// Queue pairs of the device.
    pub pairs: u16,
    /// What the guest was offered of the back-end's features.
    pub offered: Features,
    /// The back-end's MTU at first.
    pub mtu: Option<u16>,
    /// The guest sees its link down when the back-end is away that long.
    pub link_down_after: Option<Duration>,
}

/// What both ends of the thread hold.
pub(super) struct Shared {
    /// The configuration space; the thread owns the link's bit in `status`.
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
