//! The TAP driver's ioctls (`Documentation/networking/tuntap.rst` of the kernel).
#![expect(unsafe_code, reason = "TAP ioctls")]

use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use volt_virtio::features::Features;

use crate::port::link;
use crate::port::tap::TapError;

/// UDP segmentation. The kernel accepts both address families or none.
pub(super) const USO: c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

fn check(result: c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Binds a new `/dev/net/tun` file to interface `name` as a queue with frame headers.
pub(in crate::port) fn set_interface(file: &impl AsRawFd, name: &str, multi_queue: bool) -> io::Result<()> {
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let multi = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let mut request = link::request(name);
    request.ifr_ifru.ifru_flags = (flags | multi) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

/// Sets little-endian frame headers of `len` bytes, as in virtio 1.
pub(super) fn set_header(file: &impl AsRawFd, len: usize) -> io::Result<()> {
    let (len, little) = (len as c_int, 1 as c_int);
    // SAFETY: both read an int.
    unsafe {
        check(libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len))?;
        check(libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETLE, &raw const little))
    }
}

/// Sets the offloads that frames of the interface may need: a set of `TUN_F_*`.
pub(super) fn set_offload(file: &impl AsFd, offloads: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe {
        libc::ioctl(file.as_fd().as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
    })
}

/// Returns the `TUN_F_*` bits for the acknowledged features. All need checksums, and ECN needs TSO.
pub(super) fn offloads(acked: Features, uso: bool) -> c_uint {
    if !acked.contains(Features::NET_GUEST_CSUM) {
        return 0;
    }
    let table = [
        (Features::NET_GUEST_TSO4, libc::TUN_F_TSO4),
        (Features::NET_GUEST_TSO6, libc::TUN_F_TSO6),
        (Features::NET_GUEST_UFO, libc::TUN_F_UFO),
    ];
    let mut set = libc::TUN_F_CSUM;
    set |= table.iter().filter(|(bit, _)| acked.contains(*bit)).fold(0, |all, (_, flag)| all | flag);
    if set & (libc::TUN_F_TSO4 | libc::TUN_F_TSO6) != 0 && acked.contains(Features::NET_GUEST_ECN) {
        set |= libc::TUN_F_TSO_ECN;
    }
    if uso && acked.contains(Features::NET_GUEST_USO4.union(Features::NET_GUEST_USO6)) {
        set |= USO;
    }
    set
}

/// Attaches a queue to its interface, or detaches it.
pub(super) fn set_queue(file: &impl AsFd, attach: bool) -> io::Result<()> {
    let mut request = link::request("");
    let flag = if attach { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flag as libc::c_short;
    // SAFETY: TUNSETQUEUE reads an ifreq.
    check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::TUNSETQUEUE, &raw mut request) })
}

/// Makes the interface outlive its descriptors.
pub(super) fn set_persist(file: &impl AsFd) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_ulong) })
}

/// Lets a user open the interface, besides root.
pub(super) fn set_owner(file: &impl AsFd, owner: u32) -> io::Result<()> {
    // SAFETY: TUNSETOWNER takes its argument by value.
    check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::TUNSETOWNER, libc::c_ulong::from(owner)) })
}

/// Returns the name of the interface that an open queue belongs to.
pub(in crate::port) fn name(file: &impl AsRawFd) -> io::Result<String> {
    Ok(flags_and_name(file.as_raw_fd())?.1)
}

fn flags_and_name(fd: c_int) -> io::Result<(c_int, String)> {
    let mut request = link::request("");
    // SAFETY: TUNGETIFF writes an ifreq.
    check(unsafe { libc::ioctl(fd, libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF fills the flags, and any bits are valid.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags } as u16);
    let name: Vec<u8> =
        request.ifr_name.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    Ok((flags, String::from_utf8_lossy(&name).into_owned()))
}

/// Checks that `fds` are queues of one TAP interface that carry frame headers, and returns its name.
pub(super) fn check_fds(fds: &[OwnedFd]) -> Result<String, TapError> {
    let mut first = None;
    for fd in fds {
        let number = fd.as_raw_fd();
        let (flags, name) = flags_and_name(number).map_err(|source| TapError::FdNotTap(number, source))?;
        let mut needed = vec![
            (libc::IFF_TAP, "IFF_TAP"),
            (libc::IFF_NO_PI, "IFF_NO_PI"),
            (libc::IFF_VNET_HDR, "IFF_VNET_HDR"),
        ];
        if fds.len() > 1 {
            needed.push((libc::IFF_MULTI_QUEUE, "IFF_MULTI_QUEUE"));
        }
        if let Some((_, flag)) = needed.iter().find(|(bit, _)| flags & bit == 0) {
            return Err(TapError::FdFlag(number, name, flag));
        }
        let expected = first.get_or_insert_with(|| name.clone());
        if *expected != name {
            return Err(TapError::FdName(number, name, expected.clone()));
        }
    }
    Ok(first.unwrap_or_default())
}
