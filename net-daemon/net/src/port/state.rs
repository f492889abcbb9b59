//! Ports in a state: what a process that goes on with one has to know. Made by the ports, read by
//! [`import`](super::import).

use serde::{Deserialize, Serialize};

use crate::state::FdId;

/// A port in a state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// A TAP interface.
    Tap(TapState),
    /// A macvtap interface.
    Macvtap(MacvtapState),
    /// Datagram sockets.
    Socket(Vec<FdId>),
}

impl PortState {
    /// Name of the interface, if there is one.
    pub fn interface(&self) -> Option<&str> {
        match self {
            PortState::Tap(tap) => Some(&tap.name),
            PortState::Macvtap(macvtap) => Some(macvtap.name()),
            PortState::Socket(_) => None,
        }
    }
}

/// A TAP interface in a state. Header size, offloads and which queues take part go with the open files.
#[derive(Debug, Serialize, Deserialize)]
pub struct TapState {
    /// Name of the interface.
    pub name: String,
    pub(super) queues: Vec<FdId>,
    pub(super) attached: Vec<bool>,
    pub(super) uso: bool,
    pub(super) options: Option<TapOptions>,
    pub(super) existed: bool,
}

/// How to open a TAP interface by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapOptions {
    /// Name of the interface.
    pub name: String,
    /// Queue pairs, 1 to [`MAX_QUEUES`](super::tap::MAX_QUEUES).
    pub queues: usize,
    /// An interface that is created stays when its last descriptor is closed.
    pub persist: bool,
    /// MTU for an interface that is created.
    pub mtu: Option<u16>,
    /// Number of the user who may open an interface that is created, if not root alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
}

/// What is needed to open a port's interface again, in this process or in another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reopening {
    /// A TAP interface.
    Tap {
        /// How it was opened.
        options: TapOptions,
        /// Whether it was there before; then it is not ours to create again.
        existed: bool,
    },
    /// A macvtap interface.
    Macvtap {
        /// Name of the interface.
        name: String,
        /// Queue pairs.
        queues: usize,
    },
}

/// A macvtap interface in a state.
#[derive(Debug, Serialize, Deserialize)]
pub struct MacvtapState {
    pub(super) tap: TapState,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) queues: usize,
}

impl MacvtapState {
    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.tap.name
    }
}
