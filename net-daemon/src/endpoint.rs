//! The source of front-ends: a socket to listen on, one to connect to, or an open descriptor.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf, absolute};
use std::sync::Arc;

use rustix::net::{AddressFamily, SocketType, getpeername, sockopt};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use volt_net::state::{Exporter, FdId, Importer, Numbered, StateError};
use volt_program::opener::{Opener, WirePath};
use volt_program::unix::{Access, BindError, PathTooLong, bind, check_path};

use crate::own_file::{FileState, OwnFile};

/// Why an endpoint cannot be opened.
#[derive(Debug, Error)]
pub(crate) enum EndpointError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("descriptor {0} of --fd is not a Unix stream socket, listening or connected")]
    Fd(i32),
    #[error(transparent)]
    TooLong(#[from] PathTooLong),
    #[error("socket error")]
    System(#[from] io::Error),
}

/// A source of front-ends.
#[derive(Debug)]
pub(crate) enum Endpoint {
    /// The daemon listens, and each connection is a front-end.
    Listen(Listener),
    /// The front-end listens, and the daemon connects.
    Client(PathBuf),
    /// A single open connection.
    Connected(Option<UnixStream>),
}

/// An [`Endpoint`] in a state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EndpointState {
    Listen(ListenerState),
    Client(#[serde(with = "volt_net::state::path")] PathBuf),
    Connected,
}

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: Numbered<UnixListener>,
    file: Option<OwnFile>,
}

/// A [`Listener`] in a state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListenerState {
    fd: FdId,
    file: Option<FileState>,
}

impl Listener {
    /// Listens on `path`.
    pub(crate) fn bind(path: &Path, access: &Access) -> Result<Listener, EndpointError> {
        let (listener, file) = bind(path, access)?;
        Ok(Listener::over(listener, Some(OwnFile::new(file)))?)
    }

    fn over(socket: UnixListener, file: Option<OwnFile>) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        Ok(Listener { socket: Numbered::fresh(socket), file })
    }

    /// Accepts the next connection.
    ///
    /// # Errors
    ///
    /// `WouldBlock`: there is none.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.socket.accept()?.0)
    }

    /// Returns the socket's number in a state.
    pub(crate) fn id(&self) -> FdId {
        self.socket.id()
    }

    /// Returns the socket's path, if a daemon created it.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(OwnFile::path)
    }

    /// Exports the listener. Its successor removes the file.
    pub(crate) fn export<'a>(&'a self, out: &mut Exporter<'a>) -> ListenerState {
        ListenerState { fd: self.socket.export(out), file: self.file.as_ref().map(OwnFile::export) }
    }

    /// Makes `opener` remove the file, and returns the file for the opener's duties.
    pub(crate) fn removed_by(&mut self, opener: &Arc<Opener>) -> Option<(WirePath, (u64, u64))> {
        Some(self.file.as_mut()?.removed_by(opener))
    }

    /// Makes this process the owner of an imported listener's file.
    pub(crate) fn own(&mut self) {
        self.file.iter_mut().for_each(OwnFile::own);
    }

    /// Imports the listener of a state. Another process may still own it.
    pub(crate) fn import(state: ListenerState, from: &mut Importer) -> Result<Listener, StateError> {
        let socket = UnixListener::from(from.take(state.fd)?);
        // A socket from systemd's store is in blocking mode again.
        let failed = |error| StateError::System("a listening socket cannot be made non-blocking", error);
        socket.set_nonblocking(true).map_err(failed)?;
        let file = state.file.map(OwnFile::import);
        Ok(Listener { socket: Numbered::known(state.fd, socket), file })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl ListenerState {
    /// Returns whether its file is at `path`.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let file = self.file.as_ref().map(|file| file.path.as_path());
        file.is_some() && absolute(path).ok().as_deref() == file
    }
}

impl EndpointState {
    /// Returns the listening socket, if the program that started the daemon passed it.
    pub(crate) fn given_listener(&self) -> Option<FdId> {
        match self {
            EndpointState::Listen(ListenerState { fd, file: None }) => Some(*fd),
            _ => None,
        }
    }

    /// Returns whether a daemon with this path or open socket would serve the same front-ends.
    pub(crate) fn is_at(&self, path: Option<&Path>, socket: Option<&OwnedFd>) -> bool {
        let is = |own: &Path| path.and_then(|path| absolute(path).ok()).is_some_and(|path| path == own);
        match self {
            EndpointState::Listen(state @ ListenerState { file: Some(_), .. }) => {
                path.is_some_and(|path| state.is_at(path))
            }
            EndpointState::Listen(_) => socket.is_some_and(|socket| listens(socket) == Some(true)),
            EndpointState::Client(own) => is(own),
            EndpointState::Connected => socket.is_some_and(|socket| listens(socket) == Some(false)),
        }
    }
}

impl Endpoint {
    /// Exports the endpoint.
    pub(crate) fn export<'a>(&'a self, out: &mut Exporter<'a>) -> EndpointState {
        match self {
            Endpoint::Listen(listener) => EndpointState::Listen(listener.export(out)),
            Endpoint::Client(path) => EndpointState::Client(path.clone()),
            Endpoint::Connected(_) => EndpointState::Connected,
        }
    }

    /// Imports the endpoint of a state.
    pub(crate) fn import(state: EndpointState, from: &mut Importer) -> Result<Endpoint, StateError> {
        Ok(match state {
            EndpointState::Listen(state) => Endpoint::Listen(Listener::import(state, from)?),
            EndpointState::Client(path) => Endpoint::Client(path),
            EndpointState::Connected => Endpoint::Connected(None),
        })
    }

    /// Makes this process the owner of an imported endpoint.
    pub(crate) fn own(&mut self) {
        if let Endpoint::Listen(listener) = self {
            listener.own();
        }
    }

    /// Returns the listening socket.
    pub(crate) fn listener(&mut self) -> Option<&mut Listener> {
        if let Endpoint::Listen(listener) = self { Some(listener) } else { None }
    }

    /// Returns the path of a front-end that listens.
    pub(crate) fn frontend(&self) -> Option<&Path> {
        if let Endpoint::Client(path) = self { Some(path) } else { None }
    }

    /// Describes the endpoint for logs and status.
    pub(crate) fn describe(&self) -> String {
        match self {
            Endpoint::Listen(listener) => match listener.path() {
                Some(path) => format!("listening on {}", path.display()),
                None => "on an open socket".to_owned(),
            },
            Endpoint::Client(path) => format!("connecting to {}", path.display()),
            Endpoint::Connected(_) => "on an open connection".to_owned(),
        }
    }

    /// Creates an endpoint that connects to `path`.
    pub(crate) fn client(path: &Path) -> Result<Endpoint, EndpointError> {
        // A successor may have another working directory.
        let path = absolute(path)?;
        check_path(&path)?;
        Ok(Endpoint::Client(path))
    }

    /// Creates an endpoint from an open socket.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Endpoint, EndpointError> {
        match listens(&fd) {
            Some(true) => Ok(Endpoint::Listen(Listener::over(fd.into(), None)?)),
            Some(false) => Ok(Endpoint::Connected(Some(fd.into()))),
            None => Err(EndpointError::Fd(fd.as_raw_fd())),
        }
    }
}

/// Returns `true` for a listening Unix stream socket, `false` for a connected one, and `None` for anything
/// else.
fn listens(socket: &OwnedFd) -> Option<bool> {
    let unix = matches!(sockopt::socket_domain(socket), Ok(AddressFamily::UNIX));
    let stream = matches!(sockopt::socket_type(socket), Ok(SocketType::STREAM));
    let listens = sockopt::socket_acceptconn(socket).ok().filter(|_| unix && stream)?;
    (listens || getpeername(socket).is_ok()).then_some(listens)
}
