//! A port to a peer: another program behind a Unix socket, such as passt, gvproxy or QEMU. Unlike a
//! [`SocketPort`](super::socket::SocketPort), its wire has no virtio headers.
//!
//! | module | holds |
//! |---|---|
//! | [`peer_options`](super::peer_options) | how to reach the peer |
//! | `connect` | connecting |
//! | `queue` | frames of the guest, completed or cut |
//! | `connection` | a socket until its peer is gone |
//! | `stream`, `datagram` | the two wires |
//! | `memory` | frames on their way, which outlive the process |
//!
//! A connection that ends does not come back: until [`Port::adopt`] or [`Port::reopen`], the queue accepts
//! and delivers nothing. What was on its way is lost then.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use log::{info, warn};
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socketpair};
use thiserror::Error;
use volt_virtio::features::Features;

use self::connection::{Connection, Kind};
use self::memory::PeerMemory;
use self::queue::PeerQueue;
use crate::port::peer_options::{DatagramOptions, PeerOptions, StreamOptions};
use crate::port::state::{PeerState, PortState, Reopening};
use crate::port::{Port, PortQueue, Reopener};
use crate::shared_words::WordsError;
use crate::state::{Exporter, Importer, Numbered, StateError};

pub(crate) mod connect;
mod connection;
mod datagram;
mod memory;
mod queue;
mod stream;

/// Why there is no port to a peer.
#[derive(Debug, Error)]
pub enum PeerError {
    /// The system refuses, and waiting does not help.
    #[error(
        "cannot connect to {}: it must be another program's socket, of the same type, that this user may use",
        .path.display()
    )]
    Connect {
        /// The peer's path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Memory for frames.
    #[error("memory for frames on their way")]
    Memory(#[from] WordsError),
    /// The system refuses.
    #[error("socket error")]
    System(#[from] io::Error),
}

/// A port to a peer, with one queue pair.
#[derive(Debug)]
pub struct PeerPort {
    name: String,
    options: PeerOptions,
    queue: Arc<PeerQueue>,
    /// Accepts the peer.
    listener: Option<Numbered<OwnedFd>>,
}

impl PeerPort {
    /// Creates a port. `own` is the socket at [`PeerOptions::own_path`], if there is one. `connect` connects,
    /// as [`open_again`](super::reopening::open_again) does. A peer that is not there yet is no error, but
    /// logged: the port is gone until it is reopened.
    ///
    /// # Errors
    ///
    /// See [`PeerError`].
    pub fn open(
        options: PeerOptions,
        own: Option<OwnedFd>,
        connect: impl FnOnce(&Reopening, Option<BorrowedFd<'_>>) -> io::Result<Vec<OwnedFd>>,
    ) -> Result<PeerPort, PeerError> {
        let options = options.absolute()?;
        let name = options.name();
        if let Some(own) = &own {
            set_nonblocking(own)?;
        }
        let connected = match connecting(&options) {
            Some(what) => connect(&what, own.as_ref().map(AsFd::as_fd)),
            None => Err(io::ErrorKind::WouldBlock.into()),
        };
        let (is_there, new) = match connected {
            Ok(mut sockets) => (true, sockets.pop()),
            Err(source) if connect::may_appear(&source) => {
                tell_absent(&name, &options, &source);
                (false, None)
            }
            Err(source) => return Err(PeerError::Connect { path: options.path().to_owned(), source }),
        };
        let (socket, listener) = match &options {
            PeerOptions::Stream(_) => (new.map_or_else(nobody, Ok)?, own),
            PeerOptions::Datagram(_) => (own.ok_or(io::Error::from(io::ErrorKind::InvalidInput))?, None),
        };
        let listener = listener.map(Numbered::fresh);
        let connection =
            Connection::new(kind(&options), Arc::new(Numbered::fresh(socket)), PeerMemory::new()?);
        if !is_there {
            connection.end();
        }
        Ok(PeerPort { name, options, queue: Arc::new(PeerQueue(connection)), listener })
    }

    pub(super) fn import(state: PeerState, from: &mut Importer) -> Result<PeerPort, StateError> {
        let PeerState { options, socket, memory, listener } = state;
        let failed = |error| StateError::System("a socket cannot be made non-blocking", error);
        let mut take = |id| {
            let socket = from.take(id)?;
            set_nonblocking(&socket).map_err(failed)?;
            Ok::<_, StateError>(Numbered::known(id, socket))
        };
        let (socket, listener) = (take(socket)?, listener.map(&mut take).transpose()?);
        let memory = PeerMemory::open(memory, from.take(memory)?).map_err(StateError::Frames)?;
        let queue = Arc::new(PeerQueue(Connection::new(kind(&options), Arc::new(socket), memory)));
        Ok(PeerPort { name: options.name(), options, queue, listener })
    }

    /// Begins a new connection.
    fn connected(&mut self, socket: Arc<Numbered<OwnedFd>>) -> io::Result<()> {
        let memory = PeerMemory::new().map_err(io::Error::other)?;
        self.queue = Arc::new(PeerQueue(Connection::new(kind(&self.options), socket, memory)));
        Ok(())
    }
}

/// Returns how to connect; `None` if the peer does.
fn connecting(options: &PeerOptions) -> Option<Reopening> {
    match options {
        PeerOptions::Stream(StreamOptions { listen: true, .. }) => None,
        PeerOptions::Stream(StreamOptions { path, .. }) => Some(Reopening::Stream { path: path.clone() }),
        PeerOptions::Datagram(DatagramOptions { path, vfkit, .. }) => {
            Some(Reopening::Datagram { path: path.clone(), vfkit: *vfkit })
        }
    }
}

fn kind(options: &PeerOptions) -> Kind {
    match options {
        PeerOptions::Stream(_) => Kind::Stream,
        PeerOptions::Datagram(_) => Kind::Datagram,
    }
}

fn set_nonblocking(socket: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(socket)?;
    Ok(rustix::fs::fcntl_setfl(socket, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// Returns a socket without a peer.
fn nobody() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?.0)
}

fn tell_absent(name: &str, options: &PeerOptions, error: &io::Error) {
    let path = options.path().display();
    match options {
        PeerOptions::Stream(StreamOptions { listen: true, .. }) => info!(
            event = "peer_awaited", interface = name; "{name}: waiting for the peer on {path}"
        ),
        _ => warn!(
            event = "peer_absent", interface = name;
            "{name}: no peer at {path} yet: {error}; frames of the guest are dropped until there is one"
        ),
    }
}

impl Port for PeerPort {
    fn name(&self) -> &str {
        &self.name
    }

    fn queue(&self, _pair: usize) -> Arc<dyn PortQueue> {
        self.queue.clone()
    }

    fn extra_features(&self) -> Features {
        Features::NET_HOST_USO
    }

    fn mtu(&self) -> Option<u16> {
        None
    }

    fn set_offloads(&mut self, _acked: Features) -> io::Result<()> {
        Ok(())
    }

    fn attach(&mut self, _active: &[bool]) -> io::Result<()> {
        Ok(())
    }

    fn is_gone(&self) -> bool {
        self.queue.0.memory.is_broken()
    }

    /// `WouldBlock`: no peer has connected.
    fn reopen(&mut self) -> io::Result<()> {
        let listener = self.listener.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        self.connected(Arc::new(Numbered::fresh(accept_with(&**listener, flags)?)))
    }

    fn reopening(&self) -> Reopener<'_> {
        match connecting(&self.options) {
            Some(what @ Reopening::Datagram { .. }) => {
                Reopener::Process(what, Some(self.queue.0.socket.as_fd()))
            }
            Some(what) => Reopener::Process(what, None),
            None => Reopener::Port,
        }
    }

    fn adopt(&mut self, mut queues: Vec<OwnedFd>) -> io::Result<()> {
        match (&self.options, queues.pop()) {
            (PeerOptions::Stream(_), Some(socket)) => {
                set_nonblocking(&socket)?;
                self.connected(Arc::new(Numbered::fresh(socket)))
            }
            // It is the own socket that was connected.
            (PeerOptions::Datagram(_), None) => self.connected(self.queue.0.socket.clone()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn own(&mut self) {
        if !self.queue.0.resume() {
            warn!(
                event = "peer_stream_lost", interface:% = self.name;
                "{}: the previous process died while it moved bytes of the stream: this connection is closed",
                self.name
            );
        }
    }

    fn export<'a>(&'a self, out: &mut Exporter<'a>) -> Option<PortState> {
        let memory = self.queue.0.memory.file()?;
        Some(PortState::Peer(PeerState {
            options: self.options.clone(),
            socket: self.queue.0.socket.export(out),
            memory: out.fd(self.queue.0.memory.id(), memory),
            listener: self.listener.as_ref().map(|listener| listener.export(out)),
        }))
    }
}

#[cfg(test)]
mod tests;
