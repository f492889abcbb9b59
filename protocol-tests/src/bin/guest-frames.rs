//! Sends raw frames from inside a guest: `guest-frames INTERFACE FILE ROUNDS`.
//!
//! The file has each frame behind its length, two bytes, most significant first. A round sends all of them.
//! `protocol_tests::bypass::forged` writes the file, and `lab::archive` puts this program into the guest.
#![expect(unsafe_code, reason = "a packet socket's address has no safe wrapper")]

use std::error::Error;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SendFlags, SocketType, netdevice};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [interface, file, rounds] = arguments.as_slice() else {
        return Err("usage: guest-frames INTERFACE FILE ROUNDS".into());
    };
    let (bytes, rounds) = (std::fs::read(file)?, rounds.parse::<u64>()?);
    let frames = split(&bytes).ok_or("the file is cut")?;
    let socket = open(interface)?;
    for _ in 0..rounds {
        for frame in &frames {
            rustix::net::send(&socket, frame, SendFlags::empty())?;
        }
    }
    Ok(())
}

/// Returns the frames of a file, or `None` if the last one is cut.
fn split(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (frame, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        frames.push(frame);
        bytes = rest;
    }
    bytes.is_empty().then_some(frames)
}

/// Opens a packet socket that sends on this interface, and receives nothing.
fn open(interface: &str) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::PACKET, SocketType::RAW, None)?;
    // SAFETY: all bytes zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = netdevice::name_to_index(&socket, interface)? as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is a whole `sockaddr_ll` of the length given.
    match unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } {
        0 => Ok(socket),
        _ => Err(io::Error::last_os_error()),
    }
}
