//! The socket of the metrics server.

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

/// Permissions of a Unix socket. Metrics are not secret, but clients can keep the server busy.
const MODE: u32 = 0o660;

/// Why metrics cannot be served at an address.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    #[error("cannot serve metrics")]
    Unix(#[from] EndpointError),
    #[error("cannot serve metrics at {0}: another program listens there, choose another port")]
    InUse(SocketAddr),
    #[error("cannot serve metrics at {0}: choose an address of this host, and a port that this user may use")]
    Tcp(SocketAddr, #[source] io::Error),
}

/// A listening socket of the metrics server.
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
    /// Listens at `address`. A socket file belongs to `user`, if given.
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
                // Port 0 is any free port.
                let address = socket.local_addr().unwrap_or(*address);
                Ok(MetricsListener::Tcp { socket: Numbered::fresh(socket), address })
            }
        }
    }

    /// Exports the listener. Its successor removes the file.
    pub(crate) fn export<'a>(&'a self, out: &mut Exporter<'a>) -> MetricsState {
        match self {
            MetricsListener::Unix(listener) => MetricsState::Unix(listener.export(out)),
            MetricsListener::Tcp { socket, address } => {
                MetricsState::Tcp { fd: socket.export(out), address: *address }
            }
        }
    }

    /// Imports the listener of a state. Another process may still own it.
    pub(crate) fn import(state: MetricsState, from: &mut Importer) -> Result<MetricsListener, StateError> {
        Ok(match state {
            MetricsState::Unix(state) => MetricsListener::Unix(Listener::import(state, from)?),
            MetricsState::Tcp { fd, address } => {
                let socket = Numbered::known(fd, TcpListener::from(from.take(fd)?));
                MetricsListener::Tcp { socket, address }
            }
        })
    }

    /// Makes this process the owner of an imported listener.
    pub(crate) fn own(&mut self) {
        if let MetricsListener::Unix(listener) = self {
            listener.own();
        }
    }

    /// Returns the listener, if it has a file.
    pub(crate) fn with_file(&mut self) -> Option<&mut Listener> {
        if let MetricsListener::Unix(listener) = self { Some(listener) } else { None }
    }

    /// Returns its number in a state.
    pub(crate) fn id(&self) -> FdId {
        match self {
            MetricsListener::Unix(listener) => listener.id(),
            MetricsListener::Tcp { socket, .. } => socket.id(),
        }
    }

    /// Duplicates the socket, for the metrics server.
    pub(crate) fn socket(&self) -> io::Result<OwnedFd> {
        match self {
            MetricsListener::Unix(listener) => listener.as_fd().try_clone_to_owned(),
            MetricsListener::Tcp { socket, .. } => socket.as_fd().try_clone_to_owned(),
        }
    }
}

impl MetricsState {
    /// Returns whether the listener is at `address`.
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
