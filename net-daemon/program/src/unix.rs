//! Unix sockets with a path: made with their owner and permissions, found again, removed at the end; who is
//! at the other end.
//!
//! Used for front-ends, and for the control sockets of volt-netd and volt-vmm.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::geteuid;
use thiserror::Error;

use crate::{accounts, peer};

/// Most bytes in the path of a Unix socket: `sun_path` without its end (`unix(7)`).
pub const MAX_PATH: usize = 107;
/// Connections that wait to be accepted: as many as the system allows (`net.core.somaxconn`).
const BACKLOG: i32 = -1;

/// A path that no Unix socket can have.
#[derive(Debug, Error)]
#[error(
    "{} has {} bytes, and the path of a Unix socket at most {MAX_PATH}: choose a shorter one",
    .0.display(), .0.as_os_str().len()
)]
pub struct PathTooLong(pub PathBuf);

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// No socket can be there.
    #[error(transparent)]
    TooLong(#[from] PathTooLong),
    /// Somebody listens there.
    #[error("{} is in use by a daemon that runs: stop that one, or choose another path", .0.display())]
    InUse(PathBuf),
    /// There is another kind of file.
    #[error("{} exists and is no socket: choose another path, or remove it", .0.display())]
    NotSocket(PathBuf),
    /// There is a socket that is used in another way.
    #[error("{} is another program's socket, for datagrams or packets: choose another path", .0.display())]
    NotStream(PathBuf),
    /// There is a socket to which this user may not connect.
    #[error(
        "{} exists, and this user may not connect to it to see whether a daemon listens there: \
         remove it if none does, or choose another path", .0.display()
    )]
    Unknown(PathBuf),
    /// The system refuses.
    #[error("cannot listen on {}: does its directory exist, and may this user write there?", .path.display())]
    Listen {
        /// Of the socket.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// The system refuses.
    #[error("cannot set the permissions of {}", .path.display())]
    Permissions {
        /// Of the socket.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// The system refuses.
    #[error("cannot give {} to group '{group}': that takes one of its members, or root", .path.display())]
    Owner {
        /// Of the socket.
        path: PathBuf,
        /// Its name or number.
        group: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Not a group of this system.
    #[error("there is no group '{0}'")]
    Group(String),
}

/// Why nobody answers at a path.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// No socket can be there.
    #[error(transparent)]
    TooLong(#[from] PathTooLong),
    /// There is another kind of file.
    #[error("it is no socket")]
    NotSocket,
    /// There is a socket that is used in another way.
    #[error("it is another program's socket, for datagrams or packets")]
    NotStream,
    /// The system's reason.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl From<ConnectError> for io::Error {
    fn from(error: ConnectError) -> io::Error {
        match error {
            ConnectError::System(error) => error,
            other => io::Error::other(other),
        }
    }
}

/// Who may connect.
#[derive(Clone, Debug)]
pub struct Access {
    /// Permissions.
    pub mode: u32,
    /// The group that owns the socket, by name or number; otherwise that of the process.
    pub group: Option<String>,
    /// The user who owns the socket; otherwise that of the process.
    pub user: Option<u32>,
}

impl Access {
    /// For the process's own user and root only.
    pub const PRIVATE: Access = Access { mode: 0o600, group: None, user: None };
}

/// Listens on `path`. A stale socket, whose process has died, is replaced; after an error there is none.
///
/// # Errors
///
/// See [`BindError`].
pub fn bind(path: &Path, access: &Access) -> Result<(UnixListener, SocketFile), BindError> {
    let group = access.group.as_deref().map(group).transpose()?;
    let address = address(path)?;
    make_room(path)?;
    let failed = |source| BindError::Listen { path: path.to_owned(), source };
    let socket = stream().map_err(failed)?;
    // Whoever removes it may run in another directory.
    let absolute = std::path::absolute(path).map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(|error| failed(error.into()))?;
    let file = SocketFile { inode: inode_of(path).map_err(failed)?, path: absolute };
    // Nobody may get in before the permissions are set: nobody can, as long as it does not listen.
    let listening = permit(path, access, group)
        .and_then(|()| rustix::net::listen(&socket, BACKLOG).map_err(|error| failed(error.into())));
    listening.inspect_err(|_| file.remove())?;
    Ok((socket.into(), file))
}

/// Sets owner and permissions.
fn permit(path: &Path, access: &Access, group: Option<u32>) -> Result<(), BindError> {
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group).map_err(|source| BindError::Owner {
            path: path.to_owned(),
            group: access.group.clone().unwrap_or_default(),
            source,
        })?;
    }
    if access.user.is_some() {
        std::os::unix::fs::chown(path, access.user, None)
            .map_err(|source| BindError::Permissions { path: path.to_owned(), source })?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(access.mode))
        .map_err(|source| BindError::Permissions { path: path.to_owned(), source })
}

/// A stale socket, whose daemon has died, makes room; a live one does not.
fn make_room(path: &Path) -> Result<(), BindError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotSocket(path.to_owned()));
    }
    let failed = |source| BindError::Listen { path: path.to_owned(), source };
    match connect(path) {
        Err(ConnectError::System(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
            io::ErrorKind::PermissionDenied => Err(BindError::Unknown(path.to_owned())),
            // A full backlog.
            io::ErrorKind::WouldBlock => Err(BindError::InUse(path.to_owned())),
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(failed(error)),
        },
        Err(ConnectError::NotStream) => Err(BindError::NotStream(path.to_owned())),
        Err(ConnectError::NotSocket) => Err(BindError::NotSocket(path.to_owned())),
        Err(ConnectError::TooLong(error)) => Err(error.into()),
        Ok(_) => Err(BindError::InUse(path.to_owned())),
    }
}

/// Connects to the socket at `path` without waiting: `WouldBlock` when its backlog is full.
///
/// # Errors
///
/// See [`ConnectError`].
pub fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    connect_by(stream()?, path)
}

/// The same, and waits so long for room in its backlog. The connection waits for what it sends and receives.
///
/// # Errors
///
/// See [`ConnectError`].
pub fn connect_within(path: &Path, limit: Duration) -> Result<UnixStream, ConnectError> {
    let socket = stream()?;
    rustix::io::ioctl_fionbio(&socket, false).map_err(io::Error::from)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit)).map_err(io::Error::from)?;
    connect_by(socket, path)
}

fn connect_by(socket: OwnedFd, path: &Path) -> Result<UnixStream, ConnectError> {
    let kind = || fs::metadata(path).ok().map(|metadata| metadata.file_type());
    match rustix::net::connect(&socket, &address(path)?) {
        Ok(()) => Ok(socket.into()),
        Err(rustix::io::Errno::PROTOTYPE) => Err(ConnectError::NotStream),
        Err(_) if kind().is_some_and(|kind| !kind.is_socket()) => Err(ConnectError::NotSocket),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// A socket that does not wait.
fn stream() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn address(path: &Path) -> Result<SocketAddrUnix, PathTooLong> {
    check_path(path)?;
    SocketAddrUnix::new(path).map_err(|_| PathTooLong(path.to_owned()))
}

/// Whether a socket can have this path.
///
/// # Errors
///
/// When it is too long.
pub fn check_path(path: &Path) -> Result<(), PathTooLong> {
    if path.as_os_str().len() > MAX_PATH { Err(PathTooLong(path.to_owned())) } else { Ok(()) }
}

/// A user at the other end of a connection who is neither this process's nor root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger(u32);

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            u32::MAX => write!(f, "a user who cannot be told"),
            user => write!(f, "user {user}"),
        }
    }
}

/// Whether whoever has connected is this process's own user or root. A process of another PID namespace has
/// no number here, but a user; one whose user namespace is not this one's, and whose user has no number here,
/// is a stranger.
///
/// # Errors
///
/// When it is a stranger.
pub fn check_user(connection: &impl AsFd) -> Result<(), Stranger> {
    let user = peer::user(connection).unwrap_or(u32::MAX);
    if user == 0 || user == geteuid().as_raw() { Ok(()) } else { Err(Stranger(user)) }
}

/// The process that has connected, if it has a number in this one's PID namespace.
pub fn peer_process(connection: &impl AsFd) -> Option<i32> {
    peer::process(connection)
}

fn group(name: &str) -> Result<u32, BindError> {
    let by_number = || name.parse().ok();
    accounts::group(name).or_else(by_number).ok_or_else(|| BindError::Group(name.to_owned()))
}

/// The socket in the file system: removed at the end, unless it is somebody else's by then.
#[derive(Clone, Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// One that another process has made: where it is, with the device and the number of its inode.
    pub fn again(path: PathBuf, inode: (u64, u64)) -> SocketFile {
        SocketFile { path, inode }
    }

    /// The device and the number of its inode.
    pub fn inode(&self) -> (u64, u64) {
        self.inode
    }

    /// Where it is: an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless it is somebody else's by now.
    pub fn remove(&self) {
        if inode_of(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
