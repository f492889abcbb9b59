//! What is tested: a back-end, and the way to the other end of its frames.

use std::path::PathBuf;

/// Where the back-end is.
#[derive(Clone, Debug)]
pub enum Target {
    /// It listens already.
    Socket(PathBuf),
    /// A command to start for each check, and for each connection of a check where it serves one only;
    /// `{socket}` stands for where it shall listen.
    Command(String),
}

/// Where its frames go.
#[derive(Clone, Debug)]
pub enum Wire {
    /// Nobody can see them.
    Unseen,
    /// They come back on the receive queue.
    Echo,
    /// An interface of this namespace.
    Interface(String),
    /// A TAP of this name in a new namespace, in which the command is run.
    Tap(String),
    /// The same with several queues.
    MultiQueueTap(String),
}

impl Wire {
    /// The interface at its end.
    pub(super) fn interface(&self) -> Option<&str> {
        match self {
            Wire::Interface(name) | Wire::Tap(name) | Wire::MultiQueueTap(name) => Some(name),
            Wire::Unseen | Wire::Echo => None,
        }
    }
}
