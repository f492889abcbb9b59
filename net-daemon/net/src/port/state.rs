//! Ports in a state: the data that a process needs to continue with them. The ports export it, and
//! [`import`](super::import) reads it.

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
    /// Returns the name of the interface, if there is one.
    pub fn interface(&self) -> Option<&str> {
        match self {
            PortState::Tap(tap) => Some(&tap.name),
            PortState::Macvtap(macvtap) => Some(macvtap.name()),
            PortState::Socket(_) => None,
        }
    }
}

/// A TAP interface in a state. The open files carry header size, offloads and attached queues.
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
    /// Whether an interface that is created stays when its last descriptor is closed.
    pub persist: bool,
    /// MTU for an interface that is created.
    pub mtu: Option<u16>,
    /// User ID that may open an interface that is created. `None`: only root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
}

/// The data needed to reopen a port's interface, in this process or in another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reopening {
    /// A TAP interface.
    Tap {
        /// How it was opened.
        options: TapOptions,
        /// Whether the interface existed before. If so, the program must not create it again.
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
