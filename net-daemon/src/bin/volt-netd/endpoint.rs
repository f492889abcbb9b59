//! Where front-ends come from: a socket to listen on, one to connect to, or an open descriptor.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use volt_net::state::{Exporter, FdId, Importer, StateError};

/// Why there is no endpoint.
#[derive(Debug, Error)]
pub(crate) enum EndpointError {
    #[error("{} is in use by a daemon that runs: stop that one, or choose another path", .0.display())]
    InUse(PathBuf),
    #[error("{} exists and is no socket: choose another path, or remove it", .0.display())]
    NotSocket(PathBuf),
    #[error("cannot listen on {}: does its directory exist, and may this user write there?", .path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot set owner and permissions of {}", .path.display())]
    Permissions { path: PathBuf, source: io::Error },
    #[error("there is no group '{0}'")]
    Group(String),
    #[error("descriptor {0} of --fd is not a Unix stream socket, listening or connected")]
    Fd(i32),
    #[error("socket error")]
    System(#[from] io::Error),
}

/// Who may connect.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) mode: u32,
    pub(crate) group: Option<String>,
}

/// A source of front-ends.
#[derive(Debug)]
pub(crate) enum Endpoint {
    /// Each connection is a front-end.
    Listen(Listener),
    /// The front-end listens.
    Client(PathBuf),
    /// One connection and no other.
    Connected(Option<UnixStream>),
}

/// An [`Endpoint`] in a state.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EndpointState {
    Listen(ListenerState),
    Client(PathBuf),
    Connected,
}

/// A socket that listens. Its file goes with it.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: UnixListener,
    id: FdId,
    file: Option<SocketFile>,
    /// Whether the file is this process's to remove.
    owned: bool,
}

/// A [`Listener`] in a state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListenerState {
    fd: FdId,
    file: Option<SocketFile>,
}

impl Listener {
    /// Listens on `path`.
    pub(crate) fn bind(path: &Path, access: &Access) -> Result<Listener, EndpointError> {
        let group = access.group.as_deref().map(group).transpose()?;
        make_room(path)?;
        let failed = |source| EndpointError::Listen { path: path.to_owned(), source };
        // Nobody may get in before the permissions are set.
        let mask = rustix::process::umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
        let bound = UnixListener::bind(path);
        rustix::process::umask(mask);
        let listener = bound.map_err(failed)?;
        let file = SocketFile::new(path).map_err(failed)?;
        let permitted = std::os::unix::fs::chown(path, None, group)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(access.mode)));
        permitted.map_err(|source| EndpointError::Permissions { path: path.to_owned(), source })?;
        Ok(Listener::over(listener, Some(file))?)
    }

    fn over(socket: UnixListener, file: Option<SocketFile>) -> io::Result<Listener> {
        socket.set_nonblocking(true)?;
        Ok(Listener { socket, id: FdId::fresh(), file, owned: true })
    }

    /// The next connection; `WouldBlock` where there is none.
    pub(crate) fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.socket.accept()?.0)
    }

    /// Where it is in the file system, if it was made by a daemon.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.path.as_path())
    }

    /// Writes it out. The file is its successor's to remove.
    pub(crate) fn export<'a>(&'a self, out: &mut Exporter<'a>) -> ListenerState {
        ListenerState { fd: out.fd(self.id, &self.socket), file: self.file.clone() }
    }

    /// The file of an imported listener is this process's to remove from here on.
    pub(crate) fn own(&mut self) {
        self.owned = true;
    }

    /// Takes over the listener of a state. It may still be another process's.
    pub(crate) fn import(state: ListenerState, from: &mut Importer) -> Result<Listener, StateError> {
        Ok(Listener { socket: from.take(state.fd)?.into(), id: state.fd, file: state.file, owned: false })
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl EndpointState {
    /// Whether a front-end would look for this daemon at `path`.
    pub(crate) fn is_at(&self, path: Option<&Path>) -> bool {
        match self {
            EndpointState::Listen(state) => state.file.as_ref().map(|file| file.path.as_path()) == path,
            EndpointState::Client(own) => Some(own.as_path()) == path,
            EndpointState::Connected => path.is_none(),
        }
    }
}

impl Endpoint {
    /// Writes the endpoint out.
    pub(crate) fn export<'a>(&'a self, out: &mut Exporter<'a>) -> EndpointState {
        match self {
            Endpoint::Listen(listener) => EndpointState::Listen(listener.export(out)),
            Endpoint::Client(path) => EndpointState::Client(path.clone()),
            Endpoint::Connected(_) => EndpointState::Connected,
        }
    }

    /// Takes over the endpoint of a state.
    pub(crate) fn import(state: EndpointState, from: &mut Importer) -> Result<Endpoint, StateError> {
        Ok(match state {
            EndpointState::Listen(state) => Endpoint::Listen(Listener::import(state, from)?),
            EndpointState::Client(path) => Endpoint::Client(path),
            EndpointState::Connected => Endpoint::Connected(None),
        })
    }

    /// What was taken over from a state is this process's from here on.
    pub(crate) fn own(&mut self) {
        if let Endpoint::Listen(listener) = self {
            listener.own();
        }
    }

    /// What to call it.
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

    /// Takes an open socket.
    pub(crate) fn from_fd(fd: OwnedFd) -> Result<Endpoint, EndpointError> {
        let number = fd.as_raw_fd();
        let unix = matches!(sockopt::socket_domain(&fd), Ok(AddressFamily::UNIX));
        let stream = matches!(sockopt::socket_type(&fd), Ok(SocketType::STREAM));
        if !unix || !stream {
            return Err(EndpointError::Fd(number));
        }
        if sockopt::socket_acceptconn(&fd).map_err(io::Error::from)? {
            return Ok(Endpoint::Listen(Listener::over(fd.into(), None)?));
        }
        let stream = UnixStream::from(fd);
        stream.peer_addr().map_err(|_| EndpointError::Fd(number))?;
        Ok(Endpoint::Connected(Some(stream)))
    }
}

/// A stale socket, whose daemon has died, makes room; a live one does not.
fn make_room(path: &Path) -> Result<(), EndpointError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(EndpointError::NotSocket(path.to_owned()));
    }
    let failed = |source| EndpointError::Listen { path: path.to_owned(), source };
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(source) if source.kind() != io::ErrorKind::WouldBlock => Err(failed(source)),
        // Connected, or refused for now by a full backlog.
        _ => Err(EndpointError::InUse(path.to_owned())),
    }
}

/// Connects to the socket at `path` without waiting: `WouldBlock` when its backlog is full.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn group(name: &str) -> Result<u32, EndpointError> {
    let by_number = || name.parse().ok();
    let found = nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    found.or_else(by_number).ok_or_else(|| EndpointError::Group(name.to_owned()))
}

/// The socket in the file system: removed at the end, unless it is somebody else's by then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), inode: inode(path)? })
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = self.file.as_ref().filter(|_| self.owned)
            && inode(&file.path).is_ok_and(|inode| inode == file.inode)
        {
            let _ = fs::remove_file(&file.path);
        }
    }
}
