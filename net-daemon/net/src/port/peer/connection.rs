//! A socket to a peer, until the peer is gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use rustix::net::{Shutdown, shutdown};
use thiserror::Error;
use volt_virtio::part::{IoPart, write_parts};

use super::memory::{LONGEST, PeerMemory};
use crate::port::{ETHERNET_LEN, HEADER_LEN};
use crate::state::Numbered;

/// How frames are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Each behind its length, in a stream of bytes.
    Stream,
    /// Each in its datagram.
    Datagram,
}

/// Why a connection ended.
#[derive(Debug, Error)]
pub(super) enum Broken {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer closed the connection in the middle of a frame")]
    MidFrame,
    #[error("the peer sent the length {0}, and a frame has {ETHERNET_LEN} to {LONGEST} bytes")]
    Length(usize),
    #[error("{0}")]
    System(io::Error),
}

/// A socket without virtio headers, and the frames on their way.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) kind: Kind,
    /// The next queue has the same socket, if that is connected again.
    pub(super) socket: Arc<Numbered<OwnedFd>>,
    pub(super) memory: PeerMemory,
    /// End of the bytes in the inbox that this batch has taken.
    pub(super) taken: AtomicUsize,
}

impl Connection {
    pub(super) fn new(kind: Kind, socket: Arc<Numbered<OwnedFd>>, memory: PeerMemory) -> Connection {
        Connection { kind, socket, memory, taken: AtomicUsize::new(0) }
    }

    /// Continues where the previous process stopped, which is gone by now. Returns `false` if nobody knows
    /// where that is: the connection is closed then.
    pub(super) fn resume(&self) -> bool {
        self.taken.store(self.memory.inbox().from, Relaxed);
        let is_known = !self.memory.is_under_way();
        if !is_known {
            self.end();
        }
        is_known
    }

    /// Closes the connection for both ends.
    pub(super) fn end(&self) {
        self.memory.set_broken();
        if self.kind == Kind::Stream {
            let _ = shutdown(self.socket.as_fd(), Shutdown::Both);
        }
    }

    /// Gives the connection up. Returns the error for the caller, with the reason the first time.
    #[cold]
    pub(super) fn broken(&self, why: Broken) -> io::Error {
        let kind = match why {
            Broken::MidFrame | Broken::Length(_) => io::ErrorKind::InvalidData,
            Broken::Closed | Broken::System(_) => io::ErrorKind::BrokenPipe,
        };
        let is_news = !self.memory.is_broken();
        self.end();
        if is_news { io::Error::new(kind, why) } else { gone() }
    }

    /// Makes the frames that the guest has got no longer part of the inbox.
    pub(super) fn release(&self) {
        let (span, taken) = (self.memory.inbox(), self.taken.load(Relaxed));
        if taken > span.from {
            let left = span.without(taken - span.from);
            self.memory.set_inbox(left);
            self.taken.store(left.from, Relaxed);
        }
    }
}

/// The error of a port without a connection.
pub(super) fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// Writes the header of a frame from a wire without headers: nothing is left to do.
#[inline]
pub(super) fn put_header(parts: &[IoPart<'_>]) {
    write_parts(parts, 0, &[0; HEADER_LEN]);
}
