//! The vhost-user wire: messages as bytes, and a socket that can also send invalid ones.
//!
//! Written from the vhost-user specification only, so that a mistake in the program under test does not
//! repeat here. [`crate::frontend`] and [`crate::backend`] use it. A test that wants raw bytes calls
//! [`encode`] and [`Channel::send_bytes`] directly.
//!
//! A [`Channel`] lives as long as its connection. Every wait has a limit: a hanging peer is
//! [`WireError::Timeout`], a disconnected one [`WireError::Closed`].

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

/// Bytes of a header: request, flags, size of the body.
pub const HEADER_LEN: usize = 12;
/// Longest accepted body; every body of the specification is far shorter.
const MAX_BODY: u32 = 64 * 1024;
/// Most file descriptors accepted with one message (the specification's eight, and room to see a surplus).
const MAX_FDS: usize = 32;
/// Default time limit of a message.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Flags of the header ("Header", vhost-user specification).
pub mod flags {
    /// Version 1, in the low two bits of every message.
    pub const VERSION: u32 = 1;
    /// The message is a reply.
    pub const REPLY: u32 = 1 << 2;
    /// The sender wants a `u64` status; valid once `REPLY_ACK` was negotiated.
    pub const NEED_REPLY: u32 = 1 << 3;
}

/// Declares the request numbers and their names from one list.
macro_rules! requests {
    ($($name:ident = $number:literal;)*) => {
        /// Request numbers of the front-end ("Front-end message types").
        #[expect(missing_docs, reason = "the names are the specification's own")]
        pub mod request { $(pub const $name: u32 = $number;)* }
        /// Returns the specification's name of a request, `?` for a number without one.
        pub fn request_name(request: u32) -> &'static str {
            match request { $($number => stringify!($name),)* _ => "?" }
        }
    };
}

requests! {
    GET_FEATURES = 1; SET_FEATURES = 2; SET_OWNER = 3; RESET_OWNER = 4; SET_MEM_TABLE = 5;
    SET_LOG_BASE = 6; SET_LOG_FD = 7; SET_VRING_NUM = 8; SET_VRING_ADDR = 9; SET_VRING_BASE = 10;
    GET_VRING_BASE = 11; SET_VRING_KICK = 12; SET_VRING_CALL = 13; SET_VRING_ERR = 14;
    GET_PROTOCOL_FEATURES = 15; SET_PROTOCOL_FEATURES = 16; GET_QUEUE_NUM = 17; SET_VRING_ENABLE = 18;
    SEND_RARP = 19; NET_SET_MTU = 20; SET_BACKEND_REQ_FD = 21; IOTLB_MSG = 22; SET_VRING_ENDIAN = 23;
    GET_CONFIG = 24; SET_CONFIG = 25; CREATE_CRYPTO_SESSION = 26; CLOSE_CRYPTO_SESSION = 27;
    POSTCOPY_ADVISE = 28; POSTCOPY_LISTEN = 29; POSTCOPY_END = 30; GET_INFLIGHT_FD = 31;
    SET_INFLIGHT_FD = 32; GPU_SET_SOCKET = 33; RESET_DEVICE = 34; VRING_KICK = 35;
    GET_MAX_MEM_SLOTS = 36; ADD_MEM_REG = 37; REM_MEM_REG = 38; SET_STATUS = 39; GET_STATUS = 40;
    GET_SHARED_OBJECT = 41; SET_DEVICE_STATE_FD = 42; CHECK_DEVICE_STATE = 43;
}

/// Protocol feature bits ("Protocol features").
#[expect(missing_docs, reason = "the names are the specification's own")]
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const LOG_SHMFD: u64 = 1 << 1;
    pub const RARP: u64 = 1 << 2;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const NET_MTU: u64 = 1 << 4;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const INFLIGHT_SHMFD: u64 = 1 << 12;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const GPA_ADDRESSES: u64 = 1 << 21;
}

/// Device feature bits of virtio and virtio-net that the scripts use (virtio 1.2, 5.1.3 and 6).
#[expect(missing_docs, reason = "the names are the specification's own")]
pub mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const GUEST_ANNOUNCE: u64 = 1 << 21;
    pub const MQ: u64 = 1 << 22;
    pub const LOG_ALL: u64 = 1 << 26;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const RING_PACKED: u64 = 1 << 34;
    pub const IN_ORDER: u64 = 1 << 35;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
}

/// An error between two peers; each is a finding about the other side, not about this library.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// No (further) bytes arrived, or could be sent, in time.
    #[error("peer silent for {0:?} {1}")]
    Timeout(Duration, &'static str),
    /// The peer closed the connection.
    #[error("peer closed the connection {0}")]
    Closed(&'static str),
    /// A message that the specification does not allow at this point.
    #[error("unexpected message: {0}")]
    Unexpected(String),
    /// The peer answered a request with a status other than 0.
    #[error("{request} was refused with status {status:#x}")]
    Refused {
        /// The request's name.
        request: &'static str,
        /// The `u64` of the answer.
        status: u64,
    },
    /// The operating system refused.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for WireError {
    fn from(errno: Errno) -> Self {
        WireError::Io(errno.into())
    }
}

/// A received message.
#[derive(Debug)]
pub struct Message {
    /// Request number, see [`request`].
    pub request: u32,
    /// Header flags, see [`flags`].
    pub flags: u32,
    /// The body's bytes.
    pub body: Vec<u8>,
    /// File descriptors received with it.
    pub fds: Vec<OwnedFd>,
}

impl Message {
    /// Returns the body as one `u64`.
    pub fn u64(&self) -> Result<u64, WireError> {
        let bytes: [u8; 8] = self.body.as_slice().try_into().map_err(|_| self.unexpected("a u64"))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Returns the body as `N` words of 32 bits.
    pub fn words<const N: usize>(&self) -> Result<[u32; N], WireError> {
        if self.body.len() != 4 * N {
            return Err(self.unexpected("another length"));
        }
        Ok(std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|b| self.body[4 * i + b]))))
    }

    /// Returns an error that shows this message and the expected one.
    pub fn unexpected(&self, wanted: &str) -> WireError {
        WireError::Unexpected(format!(
            "{} ({}) flags {:#x}, body {:02x?}, {} descriptors; expected {wanted}",
            request_name(self.request),
            self.request,
            self.flags,
            self.body,
            self.fds.len()
        ))
    }
}

/// Returns the bytes of a header.
pub fn header(request: u32, flags: u32, size: u32) -> [u8; HEADER_LEN] {
    let mut bytes = [0; HEADER_LEN];
    bytes[..4].copy_from_slice(&request.to_le_bytes());
    bytes[4..8].copy_from_slice(&flags.to_le_bytes());
    bytes[8..].copy_from_slice(&size.to_le_bytes());
    bytes
}

/// Returns the bytes of a whole message; the version is added to `flags`.
pub fn encode(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let mut bytes = header(request, flags | flags::VERSION, size).to_vec();
    bytes.extend_from_slice(body);
    bytes
}

/// Returns the little-endian bytes of 32-bit words, for bodies.
pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Returns the little-endian bytes of 64-bit words, for bodies.
pub fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Waits until `fd` can be read (or its peer has gone). Returns false if `limit` passed first.
pub fn readable(fd: impl AsFd, limit: Duration) -> io::Result<bool> {
    wait(fd, PollFlags::IN, limit)
}

fn wait(fd: impl AsFd, events: PollFlags, limit: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(&fd, events)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// One end of a vhost-user connection.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    patience: Duration,
}

impl Drop for Channel {
    /// Ends the connection at once: a process that another thread is starting may hold a copy of the
    /// descriptor for a moment.
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl Channel {
    /// Takes a connected socket.
    pub fn new(socket: UnixStream) -> Channel {
        Channel { socket, patience: PATIENCE }
    }

    /// Sets the time limit of each later send and receive.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Returns the socket, for a poll by the caller.
    pub fn socket(&self) -> &UnixStream {
        &self.socket
    }

    /// Sends one whole message.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        self.send_bytes(&encode(request, flags, body), fds)
    }

    /// Sends raw bytes, with the descriptors on the first of them.
    pub fn send_bytes(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        let mut sent = 0;
        while sent < bytes.len() {
            if !wait(&self.socket, PollFlags::OUT, self.patience)? {
                return Err(WireError::Timeout(self.patience, "while receiving a message"));
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if sent == 0 && !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(WireError::Io(io::Error::other("too many descriptors to send")));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes[sent..])], &mut control, flags) {
                Ok(count) => sent += count,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => {
                    return Err(WireError::Closed("while receiving a message"));
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Sends a message in pieces of the given lengths (the rest last). A pause after each makes the peer read
    /// every piece separately.
    pub fn send_split(
        &self,
        bytes: &[u8],
        pieces: &[usize],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let mut rest = bytes;
        let mut with = fds;
        for &len in pieces {
            let (piece, later) = rest.split_at(len.min(rest.len()));
            self.send_bytes(piece, with)?;
            (rest, with) = (later, &[]);
            std::thread::sleep(Duration::from_millis(3));
        }
        self.send_bytes(rest, with)
    }

    /// Receives one whole message.
    pub fn recv(&self) -> Result<Message, WireError> {
        let mut head = [0; HEADER_LEN];
        let mut fds = Vec::new();
        self.fill(&mut head, &mut fds, "before a header")?;
        let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (request, flags, size) = (word(0), word(4), word(8));
        if size > MAX_BODY || flags & 3 != flags::VERSION {
            return Err(WireError::Unexpected(format!("header {head:02x?}")));
        }
        let mut body = vec![0; size as usize];
        self.fill(&mut body, &mut fds, "inside a message")?;
        Ok(Message { request, flags, body, fds })
    }

    /// Receives the reply to `request`.
    pub fn recv_reply(&self, request: u32) -> Result<Message, WireError> {
        let message = self.recv()?;
        if message.request != request || message.flags & flags::REPLY == 0 {
            return Err(message.unexpected(&format!("the reply to {}", request_name(request))));
        }
        Ok(message)
    }

    /// Waits until the peer closes. An unread message, or a time-out, is an error.
    pub fn expect_closed(&self) -> Result<(), WireError> {
        match self.recv() {
            Err(WireError::Closed(_)) => Ok(()),
            Err(other) => Err(other),
            Ok(message) => Err(message.unexpected("the connection to be closed")),
        }
    }

    fn fill(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>, place: &'static str) -> Result<(), WireError> {
        let deadline = Instant::now() + self.patience;
        let mut filled = 0;
        while filled < bytes.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if !wait(&self.socket, PollFlags::IN, left)? {
                return Err(WireError::Timeout(self.patience, place));
            }
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let mut into = [IoSliceMut::new(&mut bytes[filled..])];
            let count = match rustix::net::recvmsg(&self.socket, &mut into, &mut control, flags) {
                Ok(got) => got.bytes,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(Errno::CONNRESET) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            if count == 0 {
                return Err(WireError::Closed(place));
            }
            filled += count;
        }
        Ok(())
    }
}
