//! The host's side: a namespace with the TAP behind the back-end, and its far end, which sends bursts.
#![expect(unsafe_code, reason = "sendmmsg, socket options and TAP ioctls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags};

use crate::bench::BenchError;
use crate::bench::case::{Case, FLOWS};
use crate::frame::NET_HEADER_LEN;
use crate::netns::{MULTI_QUEUE, Netns, TAP_FLAGS, TapWire};

/// Frames that the interface queues while nobody reads.
pub const QUEUE_LEN: usize = 10_000;
/// Bytes of the header that packet sockets use.
pub const WIRE_HEADER: usize = 10;
/// Frames passed to the kernel in one call.
const MESSAGES: usize = 64;

/// Makes a TAP with a long queue, for a back-end or a floor loop.
pub fn add_tap(netns: &Netns, name: &str, multi_queue: bool) -> Result<(), BenchError> {
    netns.add_tap(name, multi_queue)?;
    Ok(netns.ip(&format!("link set dev {name} txqueuelen {QUEUE_LEN}"))?)
}

/// Opens a TAP queue like volt-netd: 12 bytes of little-endian header, segments if `tso`.
pub fn open_tap(netns: &Netns, name: &str, multi_queue: bool, tso: bool) -> Result<OwnedFd, BenchError> {
    let fd = netns.open_tap(name, if multi_queue { TAP_FLAGS | MULTI_QUEUE } else { TAP_FLAGS })?;
    let (header, little) = (NET_HEADER_LEN as libc::c_int, 1 as libc::c_int);
    let offloads = if tso { libc::TUN_F_CSUM | libc::TUN_F_TSO4 } else { libc::TUN_F_CSUM };
    // SAFETY: the first two read an int that outlives the call, the third takes its argument by value.
    let results = unsafe {
        [
            libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header),
            libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETLE, &raw const little),
            libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)),
        ]
    };
    if results != [0; 3] {
        return Err(io::Error::last_os_error().into());
    }
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

/// Returns the number of frames that the interface has taken from its user.
pub fn frames_taken(netns: &Netns, name: &str) -> Result<u64, BenchError> {
    let mut cat = netns.command("cat");
    let output = cat.arg("/proc/net/dev").stdout(Stdio::piped()).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    let fields: Vec<u64> = line.into_iter().flat_map(str::split_whitespace).flat_map(str::parse).collect();
    // Received bytes, packets, ...: the interface receives what its user writes.
    fields.get(1).copied().ok_or_else(|| BenchError::Wrong(format!("no counters of {name} in /proc/net/dev")))
}

/// The far end of a TAP.
#[derive(Debug)]
pub struct FarEnd {
    wire: TapWire,
    room: usize,
}

impl FarEnd {
    /// Opens a packet socket on interface `name` that receives only Ethertype `ethertype`, or nothing for 0.
    pub fn open(netns: &Netns, name: &str, ethertype: u16) -> Result<FarEnd, BenchError> {
        let wire = netns.wire(name)?;
        let socket = wire.as_fd().as_raw_fd();
        // SAFETY: all bytes zero is a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = ethertype.to_be();
        address.sll_ifindex = rustix::net::netdevice::name_to_index(&wire, name)? as i32;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is a whole `sockaddr_ll` of the length given.
        if unsafe { libc::bind(socket, (&raw const address).cast(), len) } != 0 {
            return Err(io::Error::last_os_error().into());
        }
        let on: libc::c_int = 1;
        // SAFETY: the option is one `int`, which outlives the call.
        let set = unsafe {
            let (option, len) = (libc::PACKET_QDISC_BYPASS, size_of::<libc::c_int>() as libc::socklen_t);
            libc::setsockopt(socket, libc::SOL_PACKET, option, (&raw const on).cast(), len)
        };
        if set != 0 {
            return Err(io::Error::last_os_error().into());
        }
        let far = FarEnd { wire, room: QUEUE_LEN / 2 };
        // Discards frames that arrived before the socket was bound to its Ethertype.
        while far.take(&mut [0; 64])?.is_some() {}
        Ok(far)
    }

    /// Sets the number of frames that may wait in the interface.
    #[must_use]
    pub fn with_room(self, room: usize) -> FarEnd {
        FarEnd { room, ..self }
    }

    /// Returns the number of frames that may wait in the interface while nobody reads.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Sends `count` frames of `case`, flow after flow, as fast as the kernel accepts them.
    pub fn burst(&self, case: &Case, count: usize) -> Result<(), BenchError> {
        let mut bytes: Vec<Vec<u8>> = (0..FLOWS)
            .map(|flow| [&case.header().encode()[..WIRE_HEADER], &case.frame(flow)].concat())
            .collect();
        let mut parts: Vec<libc::iovec> = bytes
            .iter_mut()
            .map(|bytes| libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = Vec::with_capacity(MESSAGES);
        for part in parts.iter_mut().take(MESSAGES) {
            // SAFETY: all bytes zero is a valid `mmsghdr`.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            (message.msg_hdr.msg_iov, message.msg_hdr.msg_iovlen) = (part, 1);
            messages.push(message);
        }
        let mut sent = 0;
        while sent < count {
            let now = (count - sent).min(MESSAGES);
            // SAFETY: `now` messages, each of one buffer; `bytes` and `parts` outlive the call.
            let done = unsafe {
                libc::sendmmsg(self.wire.as_fd().as_raw_fd(), messages.as_mut_ptr(), now as u32, 0)
            };
            if done <= 0 {
                let error = io::Error::last_os_error();
                return Err(BenchError::Wrong(format!("frame {sent} of {count} to the interface: {error}")));
            }
            sent += done as usize;
        }
        Ok(())
    }

    /// Sends one frame, with a header without offloads.
    pub fn send(&self, frame: &[u8]) -> Result<(), BenchError> {
        let mut bytes = [0; 256];
        let len = WIRE_HEADER + frame.len();
        bytes[WIRE_HEADER..len].copy_from_slice(frame);
        rustix::net::send(&self.wire, &bytes[..len], SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Takes a waiting frame, if any. Its bytes follow a header of [`WIRE_HEADER`] bytes.
    #[inline]
    pub fn take(&self, into: &mut [u8]) -> Result<Option<usize>, BenchError> {
        use rustix::io::Errno;
        match rustix::net::recv(&self.wire, into, RecvFlags::DONTWAIT) {
            Ok((_, len)) => Ok(Some(len)),
            Err(Errno::AGAIN | Errno::INTR | Errno::NETDOWN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Polls for a frame until `limit` has passed; returns its time of arrival.
    pub fn poll(&self, into: &mut [u8], limit: Duration) -> Result<Option<Instant>, BenchError> {
        let deadline = Instant::now() + limit;
        loop {
            if self.take(into)?.is_some() {
                return Ok(Some(Instant::now()));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
        }
    }
}
