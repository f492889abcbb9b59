//! Messages: header, rules for each request, and the bodies that this back-end reads and writes.
//!
//! The request codes are those of the `vhost` crate. Its bodies are not used: they are packed structures for
//! casts from bytes, and here every length comes from a peer that may be hostile.

use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use thiserror::Error;
pub use vhost::vhost_user::message::FrontendReq;

/// Length of a message header: request, flags, size of the body, with 32 bits each.
pub const HEADER_LEN: usize = 12;
/// Maximum length of a body. The longest body of a served request, a full memory table, has 264 bytes.
pub const MAX_BODY_LEN: usize = 4096;
/// Maximum number of regions in one SET_MEM_TABLE, and so of descriptors with one message.
pub const MAX_TABLE_REGIONS: usize = 8;

const VERSION_MASK: u32 = 3;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Bit in the body of SET_VRING_KICK, CALL and ERR: there is no descriptor.
const NO_FD: u64 = 1 << 8;

/// The reason why bytes are not a valid message.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum MessageError {
    /// Only version 1 exists.
    #[error("header flags {0:#x} are of a protocol version other than 1")]
    Version(u32),
    /// A body that no request has.
    #[error("a body of {0} bytes is too long: the limit is {MAX_BODY_LEN}")]
    TooLong(u32),
    /// The body's length does not fit the request.
    #[error("a body of {len} bytes instead of {min} to {max}")]
    Body {
        /// Received length in bytes.
        len: usize,
        /// Minimum.
        min: usize,
        /// Maximum.
        max: usize,
    },
    /// The number of descriptors does not fit the request.
    #[error("{got} file descriptors came with it instead of {expected}")]
    Fds {
        /// Received number.
        got: usize,
        /// Correct number for this request and body.
        expected: usize,
    },
    /// More regions than a message can have.
    #[error("{0} memory regions: the limit is {MAX_TABLE_REGIONS}")]
    Regions(u32),
}

/// A message header, the first 12 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Request code.
    pub request: u32,
    flags: u32,
    /// Length of the body in bytes.
    pub size: u32,
}

impl Header {
    /// Decodes and checks a header. vhost-user uses the byte order of the machine.
    ///
    /// # Errors
    ///
    /// Fails for another version, and for a body that is too long.
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

    /// Encodes a reply to `request` with `body`.
    pub fn reply(request: u32, body: &[u8]) -> Vec<u8> {
        let words = [request, VERSION | REPLY, body.len() as u32];
        words.iter().flat_map(|word| word.to_ne_bytes()).chain(body.iter().copied()).collect()
    }

    /// Encodes a request of the back-end without a body, which needs no reply.
    pub fn request(request: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip([request, VERSION, 0]) {
            *to = word.to_ne_bytes();
        }
        bytes
    }

    /// Whether the front-end asks for an acknowledgement.
    pub fn needs_reply(self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// A complete message.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its body.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// The rules for a request: its form, and whether its answer is a payload.
#[derive(Debug)]
pub struct Policy {
    /// Length of the body in bytes.
    pub body: RangeInclusive<usize>,
    /// Maximum number of descriptors. The exact number can depend on the body.
    pub fds: usize,
    /// Whether the front-end always waits for a reply.
    pub replies: bool,
}

/// Returns the rules for `request`. `None`: this back-end does not serve it, because it does not offer the
/// feature of the request.
pub fn policy(request: FrontendReq) -> Option<Policy> {
    use FrontendReq as R;
    let policy = |body, fds, replies| Some(Policy { body, fds, replies });
    match request {
        // Some front-ends send a u64 with requests that have no body. It is ignored.
        R::GET_FEATURES | R::GET_PROTOCOL_FEATURES | R::GET_QUEUE_NUM | R::GET_MAX_MEM_SLOTS => {
            policy(0..=8, 0, true)
        }
        R::SET_OWNER | R::RESET_OWNER | R::RESET_DEVICE => policy(0..=8, 0, false),
        R::SET_BACKEND_REQ_FD => policy(0..=8, 1, false),
        R::SET_FEATURES | R::SET_PROTOCOL_FEATURES => policy(8..=8, 0, false),
        // Old UML sends room for two regions that contains one.
        R::SET_MEM_TABLE => policy(8..=8 + MAX_TABLE_REGIONS * 32, MAX_TABLE_REGIONS, false),
        R::ADD_MEM_REG | R::REM_MEM_REG => policy(40..=40, 1, false),
        R::SET_VRING_NUM | R::SET_VRING_BASE | R::SET_VRING_ENABLE => policy(8..=8, 0, false),
        R::GET_VRING_BASE => policy(8..=8, 0, true),
        R::SET_VRING_ADDR => policy(40..=40, 0, false),
        R::SET_VRING_KICK | R::SET_VRING_CALL | R::SET_VRING_ERR => policy(8..=8, 1, false),
        // The front-end waits for a reply even without REPLY_ACK.
        R::SET_LOG_BASE => policy(16..=16, 1, true),
        R::SET_LOG_FD => policy(0..=8, 1, false),
        R::SEND_RARP => policy(8..=8, 0, false),
        R::GET_CONFIG => policy(12..=MAX_BODY_LEN, 0, true),
        R::SET_CONFIG => policy(12..=MAX_BODY_LEN, 0, false),
        _ => None,
    }
}

/// Whether a front-end waits for a payload after `request`, which is not served.
pub fn unserved_waits(request: FrontendReq) -> bool {
    use FrontendReq as R;
    matches!(
        request,
        R::IOTLB_MSG
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

/// Reads words from the start of a body. The rules allow some longer bodies on purpose.
fn words<const N: usize>(body: &[u8]) -> Result<[u64; N], MessageError> {
    let short = MessageError::Body { len: body.len(), min: N * 8, max: N * 8 };
    let words = body.as_chunks().0.get(..N).ok_or(short)?;
    let mut values = [0; N];
    for (value, word) in values.iter_mut().zip(words) {
        *value = u64::from_ne_bytes(*word);
    }
    Ok(values)
}

/// Decodes a body that is one number.
///
/// # Errors
///
/// Fails if the body is too short.
pub fn decode_u64(body: &[u8]) -> Result<u64, MessageError> {
    words(body).map(|[value]| value)
}

fn two_u32(word: u64) -> (u32, u32) {
    let bytes = word.to_ne_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// A vring number, with a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// The vring number.
    pub index: u32,
    /// Size, base, or whether it is enabled.
    pub num: u32,
}

impl VringState {
    /// Decodes the body of SET_VRING_NUM and similar requests.
    ///
    /// # Errors
    ///
    /// Fails if the body is too short.
    pub fn decode(body: &[u8]) -> Result<VringState, MessageError> {
        let [word] = words(body)?;
        let (index, num) = two_u32(word);
        Ok(VringState { index, num })
    }

    /// Encodes the body of the reply to GET_VRING_BASE.
    pub fn encode(self) -> Vec<u8> {
        [self.index, self.num].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// The log of written pages in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBase {
    /// Length in bytes.
    pub size: u64,
    /// First byte in the file.
    pub offset: u64,
}

impl LogBase {
    /// Decodes the body of SET_LOG_BASE.
    ///
    /// # Errors
    ///
    /// Fails if the body is too short.
    pub fn decode(body: &[u8]) -> Result<LogBase, MessageError> {
        words(body).map(|[size, offset]| LogBase { size, offset })
    }

    /// Encodes the body of the reply, which repeats the request's. QEMU accepts any body, and the `vhost`
    /// crate waits for one of this length.
    pub fn encode(self) -> Vec<u8> {
        [self.size, self.offset].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }
}

/// Bit 0 of the flags of SET_VRING_ADDR: writes to the used ring are logged (`VHOST_VRING_F_LOG`).
const VRING_F_LOG: u32 = 1;

/// The addresses of a vring: in the front-end's address space, or guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VringAddr {
    /// The vring number.
    pub index: u32,
    /// Bit 0: log writes to the used ring.
    flags: u32,
    /// Descriptor table.
    pub desc: u64,
    /// Used ring.
    pub used: u64,
    /// Available ring.
    pub avail: u64,
    /// Guest address at which writes to the used ring are logged.
    #[serde(default)]
    log: u64,
    /// Whether the addresses of the three areas are guest addresses (GPA_ADDRESSES).
    #[serde(default)]
    pub guest: bool,
}

impl VringAddr {
    /// Decodes the body of SET_VRING_ADDR, with guest addresses if `guest` is set.
    ///
    /// # Errors
    ///
    /// Fails if the body is too short.
    pub fn decode(body: &[u8], guest: bool) -> Result<VringAddr, MessageError> {
        let [head, desc, used, avail, log] = words(body)?;
        let (index, flags) = two_u32(head);
        Ok(VringAddr { index, flags, desc, used, avail, log, guest })
    }

    /// Returns the guest address at which writes to the used ring are logged, if they are. It need not be in
    /// guest memory.
    pub fn used_log(&self) -> Option<u64> {
        (self.flags & VRING_F_LOG != 0).then_some(self.log)
    }
}

/// A vring number, with an optional descriptor for notifications.
#[derive(Debug)]
pub struct VringFd {
    /// The vring number.
    pub index: u32,
    /// The descriptor.
    pub fd: Option<OwnedFd>,
}

impl VringFd {
    /// Decodes the body and the descriptor of SET_VRING_KICK and similar requests.
    ///
    /// # Errors
    ///
    /// Fails if the body and the message disagree on whether there is a descriptor.
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
    /// Length in bytes.
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

    /// Whether two messages denote the same region. The offset is not compared, because some front-ends omit
    /// it.
    pub fn is_same(&self, other: &MemoryRegion) -> bool {
        MemoryRegion { offset: 0, ..*self } == MemoryRegion { offset: 0, ..*other }
    }

    /// Decodes the body of ADD_MEM_REG and REM_MEM_REG: 8 bytes of padding and a region.
    ///
    /// # Errors
    ///
    /// Fails if the body is too short.
    pub fn decode_single(body: &[u8]) -> Result<MemoryRegion, MessageError> {
        MemoryRegion::decode(body.get(8..).unwrap_or_default())
    }

    /// Decodes the body of SET_MEM_TABLE.
    ///
    /// # Errors
    ///
    /// Fails if the body is too short for the number of its regions, or if there are too many.
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
    /// Length in bytes.
    pub size: u32,
    flags: u32,
}

impl ConfigRange {
    /// Decodes the head of GET_CONFIG's body. The space for the bytes may follow or not.
    ///
    /// # Errors
    ///
    /// Fails if the body is too short.
    pub fn decode(body: &[u8]) -> Result<ConfigRange, MessageError> {
        let head: &[u8; 12] =
            body.first_chunk().ok_or(MessageError::Body { len: body.len(), min: 12, max: MAX_BODY_LEN })?;
        let mut words = head.as_chunks().0.iter().copied().map(u32::from_ne_bytes);
        let mut word = || words.next().unwrap_or_default();
        Ok(ConfigRange { offset: word(), size: word(), flags: word() })
    }

    /// Encodes the body of the reply: this head, followed by `bytes`.
    pub fn encode(self, bytes: &[u8]) -> Vec<u8> {
        let head = [self.offset, self.size, self.flags];
        head.iter().flat_map(|word| word.to_ne_bytes()).chain(bytes.iter().copied()).collect()
    }
}

#[cfg(test)]
mod tests;
