//! UDP headers (RFC 768).

use crate::reason::Reason;
use crate::wire::{Copied, be16};

/// Length of the header.
pub const LEN: usize = 8;
/// Protocol number.
pub const PROTOCOL: u8 = 17;
/// Offset of the checksum.
pub const CHECKSUM: usize = 6;

/// A UDP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
}

impl Udp {
    /// Reads the header at `at` of a packet that ends at `end`. `is_first`: the first fragment, whose length
    /// is that of the whole datagram.
    ///
    /// # Errors
    ///
    /// Fails if its length is not within the packet.
    #[inline]
    pub(super) fn new(frame: Copied<'_>, at: usize, end: usize, is_first: bool) -> Result<Udp, Reason> {
        let header: &[u8; LEN] = frame.until(end).array(at)?;
        let len = usize::from(be16(header, 4));
        if len < LEN || (!is_first && at + len > end) {
            return Err(Reason::Malformed);
        }
        Ok(Udp { source: be16(header, 0), destination: be16(header, 2) })
    }
}
