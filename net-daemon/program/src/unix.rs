//! Unix sockets with a path: creation with owner and permissions, connecting, removal, and the peer's user
//! and process.
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

/// Longest path of a Unix socket in bytes: `sun_path` without its terminator (`unix(7)`).
pub const MAX_PATH: usize = 107;
/// Number of connections that wait to be accepted: as many as the system allows (`net.core.somaxconn`).
const BACKLOG: i32 = -1;

/// A path that is too long for a Unix socket.
#[derive(Debug, Error)]
#[error(
    "{} has {} bytes, but the path of a Unix socket has at most {MAX_PATH}: choose a shorter one",
    .0.display(), .0.as_os_str().len()
)]
pub struct PathTooLong(pub PathBuf);

/// Why a socket cannot be created.
#[derive(Debug, Error)]
pub enum BindError {
    /// The path is too long.
    #[error(transparent)]
    TooLong(#[from] PathTooLong),
    /// Another process listens there.
    #[error("{} is in use by a running daemon: stop it, or choose another path", .0.display())]
    InUse(PathBuf),
    /// The path is a file of another type.
    #[error("{} exists and is not a socket: choose another path, or remove it", .0.display())]
    NotSocket(PathBuf),
    /// The path is a socket of another type.
    #[error("{} is another program's socket, of another type: choose another path", .0.display())]
    NotStream(PathBuf),
    /// The path is a socket to which this user may not connect.
    #[error(
        "{} exists, and this user may not connect to it to check whether a daemon listens there: \
         remove it if none does, or choose another path", .0.display()
    )]
    Unknown(PathBuf),
    /// The system refuses.
    #[error(
        "cannot listen on {}: its directory must exist, and this user needs write permission", .path.display()
    )]
    Listen {
        /// The path of the socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The system refuses.
    #[error("cannot set the permissions of {}", .path.display())]
    Permissions {
        /// The path of the socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The system refuses.
    #[error("cannot give {} to group '{group}': only its members and root can", .path.display())]
    Owner {
        /// The path of the socket.
        path: PathBuf,
        /// The group's name or number.
        group: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The system has no such group.
    #[error("there is no group '{0}'")]
    Group(String),
}

/// Why a connection to a path fails.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The path is too long.
    #[error(transparent)]
    TooLong(#[from] PathTooLong),
    /// The path is a file of another type.
    #[error("it is not a socket")]
    NotSocket,
    /// The path is a socket of another type.
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

/// Permissions and owner of a socket.
#[derive(Clone, Debug)]
pub struct Access {
    /// Permissions.
    pub mode: u32,
    /// The group that owns the socket, by name or number; `None` for the process's group.
    pub group: Option<String>,
    /// The user who owns the socket; `None` for the process's user.
    pub user: Option<u32>,
}

impl Access {
    /// Allows only the process's own user and root.
    pub const PRIVATE: Access = Access { mode: 0o600, group: None, user: None };
}

/// Listens on `path`. Replaces a stale socket, whose process has died. After an error, no new socket remains.
///
/// # Errors
///
/// See [`BindError`].
pub fn bind(path: &Path, access: &Access) -> Result<(UnixListener, SocketFile), BindError> {
    let (socket, file) = bind_as(SocketType::STREAM, path, access)?;
    // Only after the permissions are set: nobody can connect before that.
    let listening = rustix::net::listen(&socket, BACKLOG);
    let failed = |error: rustix::io::Errno| BindError::Listen { path: path.to_owned(), source: error.into() };
    listening.map_err(failed).inspect_err(|_| file.remove())?;
    Ok((socket.into(), file))
}

/// Creates a socket for datagrams at `path`, which is not in blocking mode. Otherwise as [`bind`].
///
/// # Errors
///
/// See [`BindError`].
pub fn bind_datagram(path: &Path, access: &Access) -> Result<(OwnedFd, SocketFile), BindError> {
    bind_as(SocketType::DGRAM, path, access)
}

fn bind_as(kind: SocketType, path: &Path, access: &Access) -> Result<(OwnedFd, SocketFile), BindError> {
    let group = access.group.as_deref().map(group).transpose()?;
    let address = address(path)?;
    make_room(kind, path)?;
    let failed = |source| BindError::Listen { path: path.to_owned(), source };
    let socket = socket(kind).map_err(failed)?;
    // The process that removes the file may have another working directory.
    let absolute = std::path::absolute(path).map_err(failed)?;
    rustix::net::bind(&socket, &address).map_err(|error| failed(error.into()))?;
    let file = SocketFile { inode: inode_of(path).map_err(failed)?, path: absolute };
    permit(path, access, group).inspect_err(|_| file.remove())?;
    Ok((socket, file))
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

/// Removes a stale socket, whose daemon has died. A live one is an error.
fn make_room(kind: SocketType, path: &Path) -> Result<(), BindError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotSocket(path.to_owned()));
    }
    let failed = |source| BindError::Listen { path: path.to_owned(), source };
    match socket(kind).map_err(ConnectError::from).and_then(|socket| connect_by(socket, path)) {
        Err(ConnectError::System(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
            io::ErrorKind::PermissionDenied => Err(BindError::Unknown(path.to_owned())),
            // The backlog is full.
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

/// Connects to the socket at `path` without waiting.
///
/// # Errors
///
/// See [`ConnectError`]. `WouldBlock`: its backlog is full.
pub fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    Ok(connect_by(socket(SocketType::STREAM)?, path)?.into())
}

/// Like [`connect`], but waits up to `limit` for room in the backlog. The connection is in blocking mode.
///
/// # Errors
///
/// See [`ConnectError`].
pub fn connect_within(path: &Path, limit: Duration) -> Result<UnixStream, ConnectError> {
    let socket = socket(SocketType::STREAM)?;
    rustix::io::ioctl_fionbio(&socket, false).map_err(io::Error::from)?;
    set_socket_timeout(&socket, Timeout::Send, Some(limit)).map_err(io::Error::from)?;
    Ok(connect_by(socket, path)?.into())
}

fn connect_by(socket: OwnedFd, path: &Path) -> Result<OwnedFd, ConnectError> {
    let kind = || fs::metadata(path).ok().map(|metadata| metadata.file_type());
    match rustix::net::connect(&socket, &address(path)?) {
        Ok(()) => Ok(socket),
        Err(rustix::io::Errno::PROTOTYPE) => Err(ConnectError::NotStream),
        Err(_) if kind().is_some_and(|kind| !kind.is_socket()) => Err(ConnectError::NotSocket),
        Err(error) => Err(io::Error::from(error).into()),
    }
}

/// Creates a non-blocking socket.
fn socket(kind: SocketType) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

fn address(path: &Path) -> Result<SocketAddrUnix, PathTooLong> {
    check_path(path)?;
    SocketAddrUnix::new(path).map_err(|_| PathTooLong(path.to_owned()))
}

/// Checks whether a socket can have this path.
///
/// # Errors
///
/// The path is too long.
pub fn check_path(path: &Path) -> Result<(), PathTooLong> {
    if path.as_os_str().len() > MAX_PATH { Err(PathTooLong(path.to_owned())) } else { Ok(()) }
}

/// A peer's user who is neither this process's user nor root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stranger(u32);

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            u32::MAX => write!(f, "an unknown user"),
            user => write!(f, "user {user}"),
        }
    }
}

/// Checks whether the peer's user is this process's own or root. A process in another PID namespace has no
/// number here, but has a user. A user of another user namespace without a number here is a stranger.
///
/// # Errors
///
/// The user is a stranger.
pub fn check_user(connection: &impl AsFd) -> Result<(), Stranger> {
    let user = peer::user(connection).unwrap_or(u32::MAX);
    if user == 0 || user == geteuid().as_raw() { Ok(()) } else { Err(Stranger(user)) }
}

/// Returns the peer's process, if it has a number in this PID namespace.
pub fn peer_process(connection: &impl AsFd) -> Option<i32> {
    peer::process(connection)
}

fn group(name: &str) -> Result<u32, BindError> {
    let by_number = || name.parse().ok();
    accounts::group(name).or_else(by_number).ok_or_else(|| BindError::Group(name.to_owned()))
}

/// The file of a socket. It is removed at the end, unless another process has replaced it by then.
#[derive(Clone, Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    /// Describes a file that another process created: its path, and the device and number of its inode.
    pub fn again(path: PathBuf, inode: (u64, u64)) -> SocketFile {
        SocketFile { path, inode }
    }

    /// Describes the file that is at `path` now.
    ///
    /// # Errors
    ///
    /// There is none.
    pub fn at(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { inode: inode_of(path)?, path: std::path::absolute(path)? })
    }

    /// Returns the device and number of its inode.
    pub fn inode(&self) -> (u64, u64) {
        self.inode
    }

    /// Returns its absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it, unless another process has replaced it.
    pub fn remove(&self) {
        if inode_of(&self.path).is_ok_and(|inode| inode == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn inode_of(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}
