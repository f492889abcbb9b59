//! Who is at the other end of a Unix socket.
//!
//! Not by rustix, whose process numbers are none for a peer of another PID namespace, which has the number 0.
#![expect(unsafe_code, reason = "SO_PEERCRED in its plain form is libc's")]

use std::os::fd::{AsFd, AsRawFd};

/// The user's number, where the socket is connected.
pub(crate) fn user(connection: &impl AsFd) -> Option<u32> {
    credentials(connection).map(|peer| peer.uid)
}

/// The process's number, where it has one here.
pub(crate) fn process(connection: &impl AsFd) -> Option<i32> {
    credentials(connection).map(|peer| peer.pid).filter(|pid| *pid > 0)
}

fn credentials(connection: &impl AsFd) -> Option<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: writes at most `len` bytes, which the structure has.
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
