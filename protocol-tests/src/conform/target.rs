//! The tested back-end, and the other end of its frames.

use crate::far_end::VETH_PEER;
use std::path::PathBuf;

/// The location of the back-end.
#[derive(Clone, Debug)]
pub enum Target {
    /// It listens already.
    Socket(PathBuf),
    /// A command to start for each check, and for each connection of a check if it serves only one;
    /// `{socket}` stands for the path of its socket.
    Command(String),
}

/// The destination of its frames.
#[derive(Clone, Debug)]
pub enum Wire {
    /// Unknown.
    Unseen,
    /// They return on the receive queue.
    Echo,
    /// An interface of this namespace.
    Interface(String),
    /// A TAP with this name in a new namespace, in which the command runs.
    Tap(String),
    /// Like `Tap`, with several queues.
    MultiQueueTap(String),
    /// The other end of a veth pair in a new namespace, in which the command runs with this end.
    Veth(String),
}

impl Wire {
    /// Returns the interface at the far side.
    pub(super) fn interface(&self) -> Option<&str> {
        match self {
            Wire::Interface(name) | Wire::Tap(name) | Wire::MultiQueueTap(name) => Some(name),
            Wire::Veth(_) => Some(VETH_PEER),
            Wire::Unseen | Wire::Echo => None,
        }
    }
}
