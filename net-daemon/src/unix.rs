//! Unix sockets that listen: made with their owner and permissions, found again, removed at the end.
//!
//! Used for front-ends, and for the control sockets of volt-netd and volt-vmm.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum BindError {
    /// Somebody listens there.
    #[error("{} is in use by a daemon that runs: stop that one, or choose another path", .0.display())]
    InUse(PathBuf),
    /// There is another kind of file.
    #[error("{} exists and is no socket: choose another path, or remove it", .0.display())]
    NotSocket(PathBuf),
    /// The system refuses.
    #[error("cannot listen on {}: does its directory exist, and may this user write there?", .path.display())]
    Listen {
        /// Of the socket.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// The system refuses.
    #[error("cannot set owner and permissions of {}", .path.display())]
    Permissions {
        /// Of the socket.
        path: PathBuf,
        /// Its reason.
        source: io::Error,
    },
    /// Not a group of this system.
    #[error("there is no group '{0}'")]
    Group(String),
}

/// Who may connect.
#[derive(Clone, Debug)]
pub struct Access {
    /// Permissions.
    pub mode: u32,
    /// The group that owns the socket, by name or number; otherwise that of the process.
    pub group: Option<String>,
}

impl Access {
    /// For the process's own user and root only.
    pub const PRIVATE: Access = Access { mode: 0o600, group: None };
}

/// Listens on `path`. A stale socket, whose process has died, is replaced.
///
/// # Errors
///
/// See [`BindError`].
pub fn bind(path: &Path, access: &Access) -> Result<(UnixListener, SocketFile), BindError> {
    let group = access.group.as_deref().map(group).transpose()?;
    make_room(path)?;
    let failed = |source| BindError::Listen { path: path.to_owned(), source };
    // Nobody may get in before the permissions are set.
    let mask = rustix::process::umask(Mode::RWXU | Mode::RWXG | Mode::RWXO);
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    let listener = bound.map_err(failed)?;
    let file = SocketFile::new(path).map_err(failed)?;
    let permitted = std::os::unix::fs::chown(path, None, group)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(access.mode)));
    permitted.map_err(|source| BindError::Permissions { path: path.to_owned(), source })?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok((listener, file))
}

/// A stale socket, whose daemon has died, makes room; a live one does not.
fn make_room(path: &Path) -> Result<(), BindError> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err(BindError::NotSocket(path.to_owned()));
    }
    let failed = |source| BindError::Listen { path: path.to_owned(), source };
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(source) if source.kind() != io::ErrorKind::WouldBlock => Err(failed(source)),
        // Connected, or refused for now by a full backlog.
        _ => Err(BindError::InUse(path.to_owned())),
    }
}

/// Connects to the socket at `path` without waiting: `WouldBlock` when its backlog is full.
///
/// # Errors
///
/// The system's.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

fn group(name: &str) -> Result<u32, BindError> {
    let by_number = || name.parse().ok();
    let found = nix::unistd::Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    found.or_else(by_number).ok_or_else(|| BindError::Group(name.to_owned()))
}

/// The socket in the file system: removed at the end, unless it is somebody else's by then.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), inode: inode_of(path)? })
    }

    /// Where it is.
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
