//! Where front-ends come from: a socket to listen on, one to connect to, or an open descriptor.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use thiserror::Error;

/// Why there is no endpoint.
#[derive(Debug, Error)]
pub(crate) enum EndpointError {
    #[error("{} is in use by a daemon that runs: stop that one, or choose another --socket", .0.display())]
    InUse(PathBuf),
    #[error("{} exists and is no socket: choose another --socket, or remove it", .0.display())]
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
    /// Each connection is a front-end. The file goes with the listener.
    Listen(UnixListener, #[expect(dead_code, reason = "held for its drop")] Option<SocketFile>),
    /// The front-end listens.
    Client(PathBuf),
    /// One connection and no other.
    Connected(Option<UnixStream>),
}

impl Endpoint {
    /// Listens on `path`.
    pub(crate) fn listen(path: &Path, access: &Access) -> Result<Endpoint, EndpointError> {
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
        listener.set_nonblocking(true)?;
        Ok(Endpoint::Listen(listener, Some(file)))
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
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true)?;
            return Ok(Endpoint::Listen(listener, None));
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
#[derive(Debug)]
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

impl Drop for SocketFile {
    fn drop(&mut self) {
        if inode(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}
