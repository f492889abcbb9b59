//! The socket that metrics are served at.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use volt_net::state::{Exporter, FdId, Importer, Numbered, StateError};
use volt_program::unix::Access;

use crate::endpoint::{EndpointError, Listener, ListenerState};
use crate::metrics::address::Address;

/// Metrics say nothing that only the daemon's user may know, but who may connect can also keep it busy.
const MODE: u32 = 0o660;

/// Why metrics cannot be served there.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    #[error("metrics cannot be served")]
    Unix(#[from] EndpointError),
    #[error("metrics cannot be served at {0}: another program listens there, choose another port")]
    InUse(SocketAddr),
    #[error("metrics cannot be served at {0}: is that an address of this host, and a port that it may use?")]
    Tcp(SocketAddr, #[source] io::Error),
}

/// A socket that metrics are served at.
#[derive(Debug)]
pub(crate) enum MetricsListener {
    Unix(Listener),
    Tcp { socket: Numbered<TcpListener>, address: SocketAddr },
}

/// A [`MetricsListener`] in a state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MetricsState {
    Unix(ListenerState),
    Tcp { fd: FdId, address: SocketAddr },
}

impl MetricsListener {
    /// Listens at `address`, where `user` serves, if not the one who started the daemon.
    pub(crate) fn open(address: &Address, user: Option<u32>) -> Result<MetricsListener, ListenError> {
        match address {
            Address::Unix(path) => {
                let access = Access { mode: MODE, user, ..Access::PRIVATE };
                Ok(MetricsListener::Unix(Listener::bind(path, &access)?))
            }
            Address::Tcp(address) => {
                let socket = TcpListener::bind(address).map_err(|error| match error.kind() {
                    io::ErrorKind::AddrInUse => ListenError::InUse(*address),
                    _ => ListenError::Tcp(*address, error),
                })?;
                // Port 0 is any.
                let address = socket.local_addr().unwrap_or(*address);
                Ok(MetricsListener::Tcp { socket: Numbered::fresh(socket), address })
            }
        }
    }

    /// Writes it out. The file is its successor's to remove.
    pub(crate) fn export<'a>(&'a self, out: &mut Exporter<'a>) -> MetricsState {
        match self {
            MetricsListener::Unix(listener) => MetricsState::Unix(listener.export(out)),
            MetricsListener::Tcp { socket, address } => {
                MetricsState::Tcp { fd: socket.export(out), address: *address }
            }
        }
    }

    /// Takes over that of a state. It may still be another process's.
    pub(crate) fn import(state: MetricsState, from: &mut Importer) -> Result<MetricsListener, StateError> {
        Ok(match state {
            MetricsState::Unix(state) => MetricsListener::Unix(Listener::import(state, from)?),
            MetricsState::Tcp { fd, address } => {
                let socket = Numbered::known(fd, TcpListener::from(from.take(fd)?));
                MetricsListener::Tcp { socket, address }
            }
        })
    }

    /// What was taken over from a state is this process's from here on.
    pub(crate) fn own(&mut self) {
        if let MetricsListener::Unix(listener) = self {
            listener.own();
        }
    }

    /// The one that has a file.
    pub(crate) fn with_file(&mut self) -> Option<&mut Listener> {
        if let MetricsListener::Unix(listener) = self { Some(listener) } else { None }
    }

    /// Its number in a state.
    pub(crate) fn id(&self) -> FdId {
        match self {
            MetricsListener::Unix(listener) => listener.id(),
            MetricsListener::Tcp { socket, .. } => socket.id(),
        }
    }

    /// The same socket, for the thread that serves.
    pub(crate) fn socket(&self) -> io::Result<OwnedFd> {
        match self {
            MetricsListener::Unix(listener) => listener.as_fd().try_clone_to_owned(),
            MetricsListener::Tcp { socket, .. } => socket.as_fd().try_clone_to_owned(),
        }
    }
}

impl MetricsState {
    /// Whether it is at `address`.
    pub(crate) fn is_at(&self, address: &Address) -> bool {
        match (self, address) {
            (MetricsState::Unix(state), Address::Unix(path)) => state.is_at(path),
            (MetricsState::Tcp { address, .. }, Address::Tcp(wanted)) => address == wanted,
            _ => false,
        }
    }
}

impl fmt::Display for MetricsListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MetricsListener::Unix(listener) => {
                write!(f, "unix:{}", listener.path().unwrap_or(Path::new("?")).display())
            }
            MetricsListener::Tcp { address, .. } => write!(f, "http://{address}/metrics"),
        }
    }
}
