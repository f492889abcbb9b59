//! Messages: header, policy for each request, and the bodies that this back-end reads and writes.
//!
//! The codes are the `vhost` crate's; its bodies are not used, because they are packed structures to be cast
//! from bytes, and here every length comes from a peer that may be hostile.

use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use thiserror::Error;
pub use vhost::vhost_user::message::FrontendReq;

/// Length of a message header: request, flags, size of the body; 32 bits each.
pub const HEADER_LEN: usize = 12;
/// Longest body that is read. The longest that is served, a full memory table, has 264 bytes.
pub const MAX_BODY_LEN: usize = 4096;
/// Most regions in one SET_MEM_TABLE, and so most descriptors with one message.
pub const MAX_TABLE_REGIONS: usize = 8;

const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Bit in the body of SET_VRING_KICK, CALL and ERR: no descriptor comes with it.
const NO_FD: u64 = 1 << 8;

/// Why bytes are no message, or no message that can be served.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    /// Only version 1 exists.
    #[error("header flags {0:#x} are of a protocol version other than 1")]
    Version(u32),
    /// A body beyond all sense.
    #[error("a body of {0} bytes is too long: {MAX_BODY_LEN} are the limit")]
    TooLong(u32),
    /// The body's length does not fit the request.
    #[error("a body of {len} bytes, where {min} to {max} belong")]
    Body {
        /// Bytes that came.
        len: usize,
        /// Least.
        min: usize,
        /// Most.
        max: usize,
    },
    /// The number of descriptors does not fit the request.
    #[error("{got} file descriptors came with it, where {expected} belong")]
    Fds {
        /// Number that came.
        got: usize,
        /// Number for this request and body.
        expected: usize,
    },
    /// More regions than a message holds.
    #[error("{0} memory regions: {MAX_TABLE_REGIONS} are the limit")]
    Regions(u32),
}

/// The first 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Request code.
    pub request: u32,
    flags: u32,
    /// Bytes of the body.
    pub size: u32,
}

impl Header {
    /// Decodes and checks a header. (vhost-user is in the byte order of the machine.)
    ///
    /// # Errors
    ///
    /// For another version and for a body that is too long.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Header, MessageError> {
        let mut words = bytes.as_chunks().0.iter().copied().map(u32::from_ne_bytes);
        let mut word = || words.next().unwrap_or_default();
        let header = Header { request: word(), flags: word(), size: word() };
        match header {
            Header { flags, .. } if flags & VERSION_MASK != VERSION => Err(MessageError::Version(flags)),
            Header { size, .. } if size as usize > MAX_BODY_LEN => Err(MessageError::TooLong(size)),
            header => Ok(header),
        }
    }

    /// The bytes of a reply to `request` with `body`.
    pub fn reply(request: u32, body: &[u8]) -> Vec<u8> {
        let words = [request, VERSION | REPLY, body.len() as u32];
        words.iter().flat_map(|word| word.to_ne_bytes()).chain(body.iter().copied()).collect()
    }

    /// The bytes of a back-end's own request without a body, which wants no reply.
    pub fn request(request: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip([request, VERSION, 0]) {
            *to = word.to_ne_bytes();
        }
        bytes
    }

    /// Whether the front-end wants to know how the request went.
    pub fn needs_reply(self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its body.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// What a request must look like, and whether it is answered by a payload of its own.
#[derive(Debug)]
pub struct Policy {
    /// Bytes of the body.
    pub body: RangeInclusive<usize>,
    /// Most descriptors; how many exactly can depend on the body.
    pub fds: usize,
    /// The front-end always waits for a reply.
    pub replies: bool,
}

/// The policy for `request`. `None` for requests that this back-end does not serve, as it does not offer what
/// they belong to.
pub fn policy(request: FrontendReq) -> Option<Policy> {
    use FrontendReq as R;
    let policy = |body, fds, replies| Some(Policy { body, fds, replies });
    match request {
        // Some front-ends send a u64 with requests that have no body; nobody reads it.
        R::GET_FEATURES | R::GET_PROTOCOL_FEATURES | R::GET_QUEUE_NUM | R::GET_MAX_MEM_SLOTS => {
            policy(0..=8, 0, true)
        }
        R::SET_OWNER | R::RESET_OWNER | R::RESET_DEVICE => policy(0..=8, 0, false),
        R::SET_BACKEND_REQ_FD => policy(0..=8, 1, false),
        R::SET_FEATURES | R::SET_PROTOCOL_FEATURES => policy(8..=8, 0, false),
        // Old UML sends room for two regions with one in it.
        R::SET_MEM_TABLE => policy(8..=8 + MAX_TABLE_REGIONS * 32, MAX_TABLE_REGIONS, false),
        R::ADD_MEM_REG | R::REM_MEM_REG => policy(40..=40, 1, false),
        R::SET_VRING_NUM | R::SET_VRING_BASE | R::SET_VRING_ENABLE => policy(8..=8, 0, false),
        R::GET_VRING_BASE => policy(8..=8, 0, true),
        R::SET_VRING_ADDR => policy(40..=40, 0, false),
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => policy(8..=8, 1, false),
        R::GET_CONFIG => policy(12..=MAX_BODY_LEN, 0, true),
        R::SET_CONFIG => policy(12..=MAX_BODY_LEN, 0, false),
        _ => None,
    }
}

/// Whether `request`, which is not served, would be answered by a payload if it were: then its front-end
/// waits.
pub fn unserved_waits(request: FrontendReq) -> bool {
    use FrontendReq as R;
    matches!(
        request,
        R::SET_LOG_BASE
            | R::IOTLB_MSG
            | R::POSTCOPY_ADVISE
            | R::POSTCOPY_END
            | R::CREATE_CRYPTO_SESSION
            | R::GET_INFLIGHT_FD
            | R::GET_STATUS
            | R::GET_SHARED_OBJECT
            | R::SET_DEVICE_STATE_FD
            | R::CHECK_DEVICE_STATE
            | R::GET_SHMEM_CONFIG
    )
}

/// Bodies are read from their start; what is longer has been let through by the policy on purpose.
fn words<const N: usize>(body: &[u8]) -> Result<[u64; N], MessageError> {
    let short = MessageError::Body { len: body.len(), min: N * 8, max: N * 8 };
    let words = body.as_chunks().0.get(..N).ok_or(short)?;
    let mut values = [0; N];
    for (value, word) in values.iter_mut().zip(words) {
        *value = u64::from_ne_bytes(*word);
    }
    Ok(values)
}

/// A body that is one number.
///
/// # Errors
///
/// When it is too short, as all functions here.
pub fn decode_u64(body: &[u8]) -> Result<u64, MessageError> {
    words(body).map(|[value]| value)
}

fn two_u32(word: u64) -> (u32, u32) {
    let bytes = word.to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// Number of a vring, and a value for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// Which vring.
    pub index: u32,
    /// Size, base, or whether it is enabled.
    pub num: u32,
}

impl VringState {
    /// Decodes the body of SET_VRING_NUM and its like.
    ///
    /// # Errors
    ///
    /// When it is too short.
    pub fn decode(body: &[u8]) -> Result<VringState, MessageError> {
        let [word] = words(body)?;
        let (index, num) = two_u32(word);
        Ok(VringState { index, num })
    }

    /// The body of the reply to GET_VRING_BASE.
    pub fn encode(self) -> Vec<u8> {
        [self.index, self.num].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// Where a vring is, in the front-end's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VringAddr {
    /// Which vring.
    pub index: u32,
    /// Bit 0: writes to the used ring are to be logged.
    pub flags: u32,
    /// Descriptor table.
    pub desc: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub avail: u64,
}

impl VringAddr {
    /// Decodes the body of SET_VRING_ADDR.
    ///
    /// # Errors
    ///
    /// When it is too short.
    pub fn decode(body: &[u8]) -> Result<VringAddr, MessageError> {
        let [head, desc, used, avail, _log] = words(body)?;
        let (index, flags) = two_u32(head);
        Ok(VringAddr { index, flags, desc, used, avail })
    }
}

/// A vring's number with the descriptor to notify by, or with none.
#[derive(Debug)]
pub struct VringFd {
    /// Which vring.
    pub index: u32,
    /// The descriptor.
    pub fd: Option<OwnedFd>,
}

impl VringFd {
    /// Takes the body and the descriptor of SET_VRING_KICK and its like.
    ///
    /// # Errors
    ///
    /// When the body says that there is a descriptor and none came, or the reverse.
    pub fn decode(message: Message) -> Result<VringFd, MessageError> {
        let value = decode_u64(&message.body)?;
        let expected = usize::from(value & NO_FD == 0);
        match message.fds.len() {
            got if got != expected => Err(MessageError::Fds { got, expected }),
            _ => Ok(VringFd { index: (value & 0xff) as u32, fd: message.fds.into_iter().next() }),
        }
    }
}

/// One region of guest memory as the front-end describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRegion {
    /// First guest address.
    pub guest: u64,
    /// Bytes.
    pub size: u64,
    /// First address in the front-end's address space.
    pub user: u64,
    /// Offset in the file.
    pub offset: u64,
}

impl MemoryRegion {
    fn decode(bytes: &[u8]) -> Result<MemoryRegion, MessageError> {
        let [guest, size, user, offset] = words(bytes)?;
        Ok(MemoryRegion { guest, size, user, offset })
    }

    /// Whether two messages mean the same region; the offset is not compared, as some front-ends leave it
    /// out.
    pub fn is_same(&self, other: &MemoryRegion) -> bool {
        MemoryRegion { offset: 0, ..*self } == MemoryRegion { offset: 0, ..*other }
    }

    /// Decodes the body of ADD_MEM_REG and REM_MEM_REG: 8 bytes of padding and a region.
    ///
    /// # Errors
    ///
    /// When it is too short.
    pub fn decode_single(body: &[u8]) -> Result<MemoryRegion, MessageError> {
        MemoryRegion::decode(body.get(8..).unwrap_or_default())
    }

    /// Decodes the body of SET_MEM_TABLE.
    ///
    /// # Errors
    ///
    /// When it is too short for the regions that it names, or names too many.
    pub fn decode_table(body: &[u8]) -> Result<Vec<MemoryRegion>, MessageError> {
        let (count, _) = two_u32(decode_u64(body)?);
        if count as usize > MAX_TABLE_REGIONS {
            return Err(MessageError::Regions(count));
        }
        let len = 8 + count as usize * 32;
        let regions = body.get(8..len).ok_or(MessageError::Body { len: body.len(), min: len, max: len })?;
        regions.chunks_exact(32).map(MemoryRegion::decode).collect()
    }
}

/// A range of the configuration space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigRange {
    /// First byte.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    flags: u32,
}

impl ConfigRange {
    /// Decodes the head of GET_CONFIG's body; the room for the bytes behind it may be there or not.
    ///
    /// # Errors
    ///
    /// When it is too short.
    pub fn decode(body: &[u8]) -> Result<ConfigRange, MessageError> {
        let head: &[u8; 12] =
            body.first_chunk().ok_or(MessageError::Body { len: body.len(), min: 12, max: MAX_BODY_LEN })?;
        let mut words = head.as_chunks().0.iter().copied().map(u32::from_ne_bytes);
        let mut word = || words.next().unwrap_or_default();
        Ok(ConfigRange { offset: word(), size: word(), flags: word() })
    }

    /// The body of the reply: this head, then `bytes`.
    pub fn encode(self, bytes: &[u8]) -> Vec<u8> {
        let head = [self.offset, self.size, self.flags];
        head.iter().flat_map(|word| word.to_ne_bytes()).chain(bytes.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests;
