//! Settings of a network interface that are accessed by its name (`netdevice(7)`).
#![expect(unsafe_code, reason = "interface ioctls")]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType};

use crate::config::Mac;

/// Longest interface name in bytes.
pub(super) const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// Returns an `ifreq` for interface `name`, which must have at most [`MAX_NAME`] bytes.
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
    index(name).is_ok()
}

/// Returns the interface's index in this network namespace.
pub(super) fn index(name: &str) -> io::Result<i32> {
    // A truncated name would be that of another interface.
    if name.len() > MAX_NAME {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut request = request(name);
    ioctl(&socket()?, libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: SIOCGIFINDEX fills this member.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

/// Returns the interface's Ethernet address. If `socket` is an open file of a macvtap interface, returns the
/// address of that interface.
pub(super) fn mac(socket: &impl AsRawFd, name: &str) -> io::Result<Mac> {
    let mut request = request(name);
    ioctl(socket, libc::SIOCGIFHWADDR, &mut request)?;
    // SAFETY: SIOCGIFHWADDR fills this member.
    let address = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
    let [a, b, c, d, e, f, ..] = address.map(|byte| byte as u8);
    Ok(Mac([a, b, c, d, e, f]))
}

/// Returns the name of the interface's driver (`ETHTOOL_GDRVINFO`).
pub(super) fn driver(name: &str) -> io::Result<String> {
    const GDRVINFO: u32 = 3;
    /// `struct ethtool_drvinfo` from `linux/ethtool.h`; the fields after the driver's name are not split up.
    #[repr(C)]
    struct DriverInfo {
        command: u32,
        driver: [u8; 32],
        rest: [u32; 40],
    }
    let mut info = DriverInfo { command: GDRVINFO, driver: [0; 32], rest: [0; 40] };
    let mut request = request(name);
    request.ifr_ifru.ifru_data = (&raw mut info).cast();
    ioctl(&socket()?, libc::SIOCETHTOOL, &mut request)?;
    let text: Vec<u8> = info.driver.into_iter().take_while(|byte| *byte != 0).collect();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Returns the number of the interface's queues that receive and send (`ETHTOOL_GCHANNELS`), if its driver
/// tells.
pub(super) fn queues(name: &str) -> Option<u32> {
    const GCHANNELS: u32 = 0x3c;
    /// `struct ethtool_channels` from `linux/ethtool.h`.
    #[repr(C)]
    #[derive(Default)]
    struct Channels {
        command: u32,
        /// The most receive, transmit, other and combined ones.
        most: [u32; 4],
        rx: u32,
        tx: u32,
        other: u32,
        combined: u32,
    }
    let mut channels = Channels { command: GCHANNELS, ..Channels::default() };
    let mut request = request(name);
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    ioctl(&socket().ok()?, libc::SIOCETHTOOL, &mut request).ok()?;
    Some(channels.rx.min(channels.tx) + channels.combined).filter(|queues| *queues > 0)
}

/// Returns the interface's MTU in bytes.
pub(super) fn mtu(socket: &OwnedFd, name: &str) -> io::Result<i32> {
    let mut request = request(name);
    ioctl(socket, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: SIOCGIFMTU fills this member.
    Ok(unsafe { request.ifr_ifru.ifru_mtu })
}

/// Sets the interface's MTU in bytes.
pub(super) fn set_mtu(name: &str, mtu: u16) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = mtu.into();
    ioctl(&socket()?, libc::SIOCSIFMTU, &mut request)
}

/// Whether the interface is up. `None` if there is no interface of that name in this namespace: it may be in
/// another namespace or have another name, and its queues still work.
pub(super) fn is_up(socket: &OwnedFd, name: &str) -> Option<bool> {
    let mut request = request(name);
    match ioctl(socket, libc::SIOCGIFFLAGS, &mut request) {
        // SAFETY: SIOCGIFFLAGS fills this member.
        Ok(()) => Some(i32::from(unsafe { request.ifr_ifru.ifru_flags }) & libc::IFF_UP != 0),
        Err(_) => None,
    }
}

/// Sets the interface up.
pub(super) fn set_up(name: &str) -> io::Result<()> {
    let (fd, mut request) = (socket()?, request(name));
    ioctl(&fd, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS filled this member.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    ioctl(&fd, libc::SIOCSIFFLAGS, &mut request)
}

/// Creates a socket for interface ioctls. Any socket accesses the interfaces of its network namespace. A
/// stream socket reaches nobody else without a connection.
pub(super) fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?)
}

fn ioctl(fd: &impl AsRawFd, request: libc::Ioctl, argument: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all requests of this file read and write an ifreq.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
