//! Connections to peers, made without waiting.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, send, socket_with};

/// What a program in vfkit's place sends first (gvproxy's `--listen-vfkit`).
const VFKIT: &[u8] = b"VFKT";

/// Connects a new stream socket.
pub(crate) fn stream(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    to(&socket, path)?;
    Ok(socket)
}

/// Connects a datagram socket, so that only the peer can send to it.
pub(crate) fn datagram(socket: &impl AsFd, path: &Path, vfkit: bool) -> io::Result<()> {
    to(socket, path)?;
    if vfkit {
        send(socket, VFKIT, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    }
    Ok(())
}

/// The system refuses a connection to a file of another kind as if nobody listened.
fn to(socket: &impl AsFd, path: &Path) -> io::Result<()> {
    let is_other = || path.metadata().is_ok_and(|file| !file.file_type().is_socket());
    match rustix::net::connect(socket, &SocketAddrUnix::new(path)?) {
        Err(_) if is_other() => Err(io::Error::other("it is not a socket")),
        result => Ok(result?),
    }
}

/// Whether a peer may yet appear at the path: there is none, or it is busy.
pub(super) fn may_appear(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused, io::ErrorKind::WouldBlock];
    kinds.contains(&error.kind())
}
