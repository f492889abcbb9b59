//! The few settings of a network interface that go by its name (`netdevice(7)`).
#![expect(unsafe_code, reason = "interface ioctls")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType};

/// Longest interface name in bytes.
pub(super) const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// An `ifreq` for interface `name`, which must have at most [`MAX_NAME`] bytes.
pub(super) fn request(name: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..MAX_NAME].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// Whether an interface of that name exists in this network namespace.
pub(super) fn exists(name: &str) -> bool {
    socket().and_then(|fd| ioctl(&fd, libc::SIOCGIFINDEX, &mut request(name))).is_ok()
}

/// The interface's MTU in bytes.
pub(super) fn mtu(name: &str) -> io::Result<i32> {
    let mut request = request(name);
    ioctl(&socket()?, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: SIOCGIFMTU fills this member.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// Sets the interface's MTU in bytes.
pub(super) fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = mtu.into();
    ioctl(&socket()?, libc::SIOCSIFMTU, &mut request)
}

/// Sets the interface up.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    let (fd, mut request) = (socket()?, request(name));
    ioctl(&fd, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS filled this member.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    ioctl(&fd, libc::SIOCSIFFLAGS, &mut request)
}

/// Any socket reaches the interfaces of its network namespace.
fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?)
}

fn ioctl(fd: &OwnedFd, request: libc::Ioctl, argument: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all requests of this file read and write an ifreq.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
