//! User and process at the other end of a Unix socket.
//!
//! Uses libc because rustix cannot represent the process number 0 of a peer in another PID namespace.
#![expect(unsafe_code, reason = "only libc has SO_PEERCRED in its plain form")]

use std::os::fd::{AsFd, AsRawFd};

/// Returns the user's number, if the socket is connected.
pub(crate) fn user(connection: &impl AsFd) -> Option<u32> {
    credentials(connection).map(|peer| peer.uid)
}

/// Returns the process's number, if it has one in this PID namespace.
pub(crate) fn process(connection: &impl AsFd) -> Option<i32> {
    credentials(connection).map(|peer| peer.pid).filter(|pid| *pid > 0)
}

fn credentials(connection: &impl AsFd) -> Option<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: writes at most `len` bytes, the size of the structure.
    let result = unsafe {
        libc::getsockopt(
            connection.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    (result == 0 && len as usize == size_of::<libc::ucred>()).then_some(peer)
}
