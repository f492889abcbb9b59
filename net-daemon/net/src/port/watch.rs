//! News of the network interfaces of this namespace, whichever they are about.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// Most news that are taken before others have their turn.
const MOST: usize = 256;
/// `RTMGRP_LINK` of `linux/rtnetlink.h`.
const LINKS: u32 = 1;

/// Becomes readable when an interface comes, goes, or is set up or down. What the news say is left to be
/// asked: they may be many, and some get lost.
#[derive(Debug)]
pub struct LinkWatch(OwnedFd);

impl LinkWatch {
    /// Watches the interfaces of this process's network namespace.
    ///
    /// # Errors
    ///
    /// When the system has no netlink socket for this process.
    pub fn new() -> io::Result<LinkWatch> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 is NETLINK_ROUTE.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, LINKS))?;
        Ok(LinkWatch(socket))
    }

    /// Takes the news that have come, or many of them: what is left makes it readable again.
    pub fn clear(&self) {
        // A message that is cut off is gone as well. ENOBUFS says that some were lost, and more may be there.
        let take = || recv(&self.0, &mut [0; 64], RecvFlags::DONTWAIT);
        let _ = (0..MOST).find(|_| !matches!(take(), Ok(_) | Err(rustix::io::Errno::NOBUFS)));
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
