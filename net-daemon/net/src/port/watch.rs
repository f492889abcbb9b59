//! Notifications about the network interfaces of this namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// Maximum number of notifications to take in one go.
const MOST: usize = 256;
/// `RTMGRP_LINK` of `linux/rtnetlink.h`.
const LINKS: u32 = 1;

/// Becomes readable when an interface is created, deleted, or set up or down. Does not say which:
/// notifications may be many, and some get lost.
#[derive(Debug)]
pub struct LinkWatch(OwnedFd);

impl LinkWatch {
    /// Watches the interfaces of this process's network namespace.
    ///
    /// # Errors
    ///
    /// Fails if this process cannot have a netlink socket.
    pub fn new() -> io::Result<LinkWatch> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, LINKS))?;
        Ok(LinkWatch(socket))
    }

    /// Takes the pending notifications, up to a limit. Remaining ones make it readable again.
    pub fn clear(&self) {
        // A truncated message is consumed, too. ENOBUFS means that some were lost, and more may be pending.
        let take = || recv(&self.0, &mut [0; 64], RecvFlags::DONTWAIT);
        let _ = (0..MOST).find(|_| !matches!(take(), Ok(_) | Err(rustix::io::Errno::NOBUFS)));
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
