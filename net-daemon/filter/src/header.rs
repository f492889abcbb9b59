//! The virtio-net header (virtio 1.2, 5.1.6), judged and rebuilt.
//!
//! The kernel writes the checksum wherever the header says, after everything else was checked. With a place
//! of the guest's choosing, it would write 16 bits over an address or a port. So the header that goes on is
//! made from the headers of the frame, and only its wishes come from the guest.

use crate::Way;
use crate::reason::Reason;
use crate::wire::Copied;
use crate::wire::packet::Packet;
use crate::wire::transport::Transport;
use crate::wire::{ethernet, tcp, udp};

/// Length of the header.
pub const LEN: usize = 12;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const NONE: u8 = 0;
const TCPV4: u8 = 1;
const UDP: u8 = 3;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;
/// The smallest segment: that of TCP's smallest maximum segment size in Linux (48) full of options (40).
const SMALLEST: usize = 8;
/// The largest IP packet.
const LARGEST: usize = 65_535;

/// Rebuilds `header` for an IP packet. The frame begins behind it.
///
/// # Errors
///
/// [`Reason::Header`] if the header asks for something that the packet does not need.
#[inline]
pub fn rebuild(
    way: Way,
    header: &mut [u8; LEN],
    packet: &Packet,
    transport: &Transport,
) -> Result<(), Reason> {
    let [flags, gso_type, _, _, size_low, size_high, start_low, start_high, offset_low, offset_high, ..] =
        *header;
    check_flags(way, flags)?;
    let mut rebuilt = [0; LEN];
    rebuilt[0] = flags;
    if flags & NEEDS_CSUM != 0 {
        let checksum = match transport {
            Transport::Tcp(_) => tcp::CHECKSUM,
            Transport::Udp(_) => udp::CHECKSUM,
            _ => return Err(Reason::Header),
        };
        // A checksum of a fragment would be one of a part.
        let asked =
            (u16::from_le_bytes([start_low, start_high]), u16::from_le_bytes([offset_low, offset_high]));
        let place = (packet.transport as u16, checksum as u16);
        if asked != place || packet.fragment.is_some() {
            return Err(Reason::Header);
        }
        rebuilt[6..8].copy_from_slice(&place.0.to_le_bytes());
        rebuilt[8..10].copy_from_slice(&place.1.to_le_bytes());
    }
    if gso_type != NONE {
        let size = u16::from_le_bytes([size_low, size_high]);
        let headers = segmented(way, flags, gso_type, size, packet, transport)?;
        rebuilt[1] = gso_type;
        rebuilt[2..4].copy_from_slice(&headers.to_le_bytes());
        rebuilt[4..6].copy_from_slice(&size.to_le_bytes());
    } else if flags & NEEDS_CSUM != 0 {
        rebuilt[2..4].copy_from_slice(&headers(packet, transport).to_le_bytes());
    }
    *header = rebuilt;
    Ok(())
}

/// Rebuilds `header` for a frame that is no IP packet, and has no use for offloads.
///
/// # Errors
///
/// [`Reason::Header`] if the header asks for any.
pub fn rebuild_plain(way: Way, header: &mut [u8; LEN]) -> Result<(), Reason> {
    let [flags, gso_type, ..] = *header;
    check_flags(way, flags)?;
    if flags & NEEDS_CSUM != 0 || gso_type != NONE {
        return Err(Reason::Header);
    }
    *header = [0; LEN];
    header[0] = flags;
    Ok(())
}

/// A guest may ask for a checksum. The kernel may also say that it has checked one.
#[inline]
fn check_flags(way: Way, flags: u8) -> Result<(), Reason> {
    let known = if way == Way::In { NEEDS_CSUM | DATA_VALID } else { NEEDS_CSUM };
    if flags & !known == 0 { Ok(()) } else { Err(Reason::Header) }
}

/// Returns the length of all headers.
fn headers(packet: &Packet, transport: &Transport) -> u16 {
    let own = match transport {
        Transport::Tcp(tcp) => tcp.header,
        Transport::Udp(_) => udp::LEN,
        _ => 0,
    };
    // Within the judged bytes.
    (packet.transport + own) as u16
}

/// Checks a frame that is to be segmented. Returns the length of its headers.
fn segmented(
    way: Way,
    flags: u8,
    gso_type: u8,
    size: u16,
    packet: &Packet,
    transport: &Transport,
) -> Result<u16, Reason> {
    let is_ipv4 = packet.is_ipv4;
    let fits = match (gso_type & !ECN, transport) {
        (TCPV4, Transport::Tcp(_)) => is_ipv4,
        (TCPV6, Transport::Tcp(_)) => !is_ipv4,
        (UDP | UDP_L4, Transport::Udp(_)) => gso_type & ECN == 0,
        _ => false,
    };
    let headers = headers(packet, transport);
    let segment = usize::from(headers) - ethernet::LEN + usize::from(size);
    // The kernel may have put together whatever it has received.
    let smallest = if way == Way::In { 1 } else { SMALLEST };
    let sane = usize::from(size) >= smallest && segment <= LARGEST && packet.fragment.is_none();
    match fits && sane && (way == Way::In || flags & NEEDS_CSUM != 0) {
        true => Ok(headers),
        false => Err(Reason::Header),
    }
}

/// Splits a frame into its virtio-net header and what follows. `len` is the length of all of it.
#[inline]
pub fn split(frame: &mut [u8], len: usize) -> Option<(&mut [u8; LEN], Copied<'_>)> {
    let (header, bytes) = frame.split_first_chunk_mut::<LEN>()?;
    let len = len.checked_sub(LEN).filter(|len| *len >= bytes.len())?;
    Some((header, Copied { bytes, len }))
}

#[cfg(test)]
mod tests;
