//! IPv4 headers (RFC 791).

use crate::reason::Reason;
use crate::wire::packet::{Fragment, Packet};
use crate::wire::{Copied, be16, be32};

/// Length of a header without options.
pub const LEN: usize = 20;

const MORE_FRAGMENTS: u16 = 0x2000;
/// Units of 8 bytes.
const OFFSET: u16 = 0x1fff;
/// Options by which a packet passes other hosts than its destination.
const SOURCE_ROUTES: [u8; 2] = [131, 137];
const END: u8 = 0;
const NOP: u8 = 1;

/// Reads the header at offset `at` of `frame`.
///
/// # Errors
///
/// Fails for a malformed header. Also for one that is longer than the packet, and for a packet that is longer
/// than the frame, unless it is `quoted` by an ICMP message, which may cut it.
#[inline]
pub(super) fn parse(frame: Copied<'_>, at: usize, quoted: bool) -> Result<Packet, Reason> {
    let header: &[u8; LEN] = frame.array(at)?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let total = usize::from(be16(header, 2));
    if header[0] >> 4 != 4 || header_len < LEN || total < header_len || (!quoted && at + total > frame.len) {
        return Err(Reason::Malformed);
    }
    let place = be16(header, 6);
    let mut packet = Packet {
        is_ipv4: true,
        source_words: [0, be32(header, 12).into()],
        destination_words: [0, be32(header, 16).into()],
        protocol: header[9],
        hop_limit: header[8],
        transport: at + header_len,
        end: at + total,
        fragment: None,
        options: header_len > LEN,
        rerouted: false,
    };
    if place & (MORE_FRAGMENTS | OFFSET) != 0 {
        packet.fragment = Some(Fragment { offset: usize::from(place & OFFSET) * 8 });
    }
    if packet.options {
        packet.rerouted = source_route(frame.range(at + LEN, at + header_len)?)?;
    }
    Ok(packet)
}

/// Whether the options contain a source route.
#[cold]
fn source_route(mut options: &[u8]) -> Result<bool, Reason> {
    while let Some((kind, rest)) = options.split_first() {
        match *kind {
            END => break,
            NOP => options = rest,
            kind if SOURCE_ROUTES.contains(&kind) => return Ok(true),
            _ => {
                let len = rest.first().map(|len| usize::from(*len)).filter(|len| *len >= 2);
                options = len.and_then(|len| options.get(len..)).ok_or(Reason::Malformed)?;
            }
        }
    }
    Ok(false)
}
