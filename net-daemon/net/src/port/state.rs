//! Ports in a state: the data that a process needs to continue with them. The ports export it, and
//! [`import`](super::import) reads it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::port::peer_options::PeerOptions;
use crate::state::FdId;

/// A port in a state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PortState {
    /// A TAP interface.
    Tap(TapState),
    /// A macvtap interface.
    Macvtap(MacvtapState),
    /// The socket of a peer, from format 4 on.
    Peer(PeerState),
    /// Datagram sockets.
    Socket(Vec<FdId>),
    /// An interface by AF_XDP, from format 4 on.
    Xdp(XdpState),
}

impl PortState {
    /// Whether programs before format 4 know no such port.
    pub fn is_recent(&self) -> bool {
        matches!(self, PortState::Peer(_) | PortState::Xdp(_))
    }

    /// Returns the name of the interface, if there is one.
    pub fn interface(&self) -> Option<String> {
        match self {
            PortState::Tap(tap) => Some(tap.name.clone()),
            PortState::Macvtap(macvtap) => Some(macvtap.name().to_owned()),
            PortState::Peer(peer) => Some(peer.options.name()),
            PortState::Socket(_) => None,
            PortState::Xdp(xdp) => Some(xdp.name.clone()),
        }
    }
}

/// The socket of a peer in a state.
#[derive(Debug, Serialize, Deserialize)]
pub struct PeerState {
    /// How to reach the peer.
    pub options: PeerOptions,
    pub(super) socket: FdId,
    pub(super) memory: FdId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) listener: Option<FdId>,
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
    /// An interface by AF_XDP.
    Xdp(XdpOptions),
    /// A peer that listens.
    Stream {
        /// The path of its socket.
        #[serde(with = "crate::state::path")]
        path: PathBuf,
    },
    /// A peer that gets datagrams.
    Datagram {
        /// The path of its socket.
        #[serde(with = "crate::state::path")]
        path: PathBuf,
        /// Whether it expects the datagram of programs in vfkit's place first.
        vfkit: bool,
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

/// An interface by AF_XDP in a state. The descriptors carry its memory and the positions of its rings.
#[derive(Debug, Serialize, Deserialize)]
pub struct XdpState {
    /// Name of the interface.
    pub name: String,
    /// For each queue pair, the socket and its memory.
    pub(super) queues: Vec<(FdId, FdId)>,
    /// The attachment of the program.
    pub(super) link: FdId,
    pub(super) options: Option<XdpOptions>,
}

/// How to open an interface by AF_XDP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpOptions {
    /// Name of the interface.
    pub name: String,
    /// The first queue, from 0.
    pub queue: u32,
    /// Queue pairs, 1 or more: each has one of the following queues.
    pub pairs: usize,
    /// What the driver does.
    pub mode: XdpMode,
}

/// What an interface's driver does for AF_XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// As much as it can.
    #[default]
    Auto,
    /// It reads and writes the memory of frames by itself.
    ZeroCopy,
    /// It runs the program, and the kernel copies frames.
    Copy,
    /// Nothing: the program runs in the kernel's network stack.
    Generic,
}
