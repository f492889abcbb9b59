//! TCP headers (RFC 9293).

use crate::reason::Reason;
use crate::wire::{Copied, be16, be32};

/// Length of a header without options.
pub const LEN: usize = 20;
/// Protocol number.
pub const PROTOCOL: u8 = 6;
/// Offset of the checksum.
pub const CHECKSUM: usize = 16;

/// Flag: no more data.
pub const FIN: u8 = 0x01;
/// Flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Flag: reset.
pub const RST: u8 = 0x04;
/// Flag: push.
pub const PSH: u8 = 0x08;
/// Flag: the acknowledgement number counts.
pub const ACK: u8 = 0x10;
/// Flag: urgent data.
pub const URG: u8 = 0x20;

const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_WINDOW_SCALE: u8 = 3;
/// Larger shifts count as this one (RFC 7323, 2.3).
const MAX_SCALE: u8 = 14;

/// A TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// Sequence number of the first byte.
    pub sequence: u32,
    /// Next sequence number that the sender expects.
    pub acknowledgement: u32,
    /// The lower eight flags. Those of ECN do not matter here.
    pub flags: u8,
    /// The window as in the header, not scaled.
    pub window: u16,
    /// Length of the header.
    pub header: usize,
    /// Length of the data.
    pub data: u32,
    /// Shift of the option Window Scale, if there is one.
    pub scale: Option<u8>,
}

impl Tcp {
    /// Reads the header at `at` of a packet that ends at `end`.
    ///
    /// # Errors
    ///
    /// Fails if the header does not fit into the packet, or is malformed.
    #[inline]
    pub(super) fn new(frame: Copied<'_>, at: usize, end: usize) -> Result<Tcp, Reason> {
        let within = frame.until(end);
        let fixed: &[u8; LEN] = within.array(at)?;
        let header = usize::from(fixed[12] >> 4) * 4;
        if header < LEN || at + header > end {
            return Err(Reason::Malformed);
        }
        let options = within.range(at + LEN, at + header)?;
        let flags = fixed[13];
        Ok(Tcp {
            source: be16(fixed, 0),
            destination: be16(fixed, 2),
            sequence: be32(fixed, 4),
            acknowledgement: be32(fixed, 8),
            flags,
            window: be16(fixed, 14),
            header,
            data: (end - at - header) as u32,
            // Only the segments of a handshake have it.
            scale: if flags & SYN != 0 { scale(options) } else { None },
        })
    }

    /// Returns the sequence number behind this segment.
    #[inline]
    pub fn end(&self) -> u32 {
        let marks = u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0);
        self.sequence.wrapping_add(self.data).wrapping_add(marks)
    }

    /// Whether all `flags` are set.
    #[inline]
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }
}

/// Returns the shift of the option Window Scale. Malformed options end the search, as in hosts.
fn scale(mut options: &[u8]) -> Option<u8> {
    loop {
        match options {
            [OPTION_NOP, rest @ ..] => options = rest,
            [] | [OPTION_END, ..] => return None,
            [OPTION_WINDOW_SCALE, 3, shift, ..] => return Some((*shift).min(MAX_SCALE)),
            [_, len, ..] if *len >= 2 => options = options.get(usize::from(*len)..)?,
            _ => return None,
        }
    }
}
