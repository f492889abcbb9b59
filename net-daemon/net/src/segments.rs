//! Transmit offloads in software, for wires without a virtio-net header: a driver's frame is completed, or
//! cut into segments, while it is copied to where the wire takes it from.
//!
//! ```text
//! header of the driver     on the wire
//! nothing to do            the frame
//! F_NEEDS_CSUM             the frame with its checksum
//! gso_type TCP or UDP      segments of gso_size bytes of payload, each with headers and checksums
//! ```
//!
//! All decisions depend on private copies of header and protocol headers. The payload is read once. Checksums
//! are those of the copy, so that a guest that changes its memory meanwhile only changes its own payload.

use thiserror::Error;
use volt_virtio::part::{IoPart, copy_out, copy_parts, sum_part, write_parts};

use crate::checksum::{add, checksum, sum};
use crate::lengths::HEADER_LEN;

/// Most segments of a frame: the longest packet in segments of 48 bytes, the shortest that Linux sends.
pub(crate) const MAX_SEGMENTS: usize = 65535 / 48 + 1;
/// Longest headers of a segment, from Ethernet to TCP with its options.
pub(crate) const MAX_HEADERS: usize = 192;

const F_NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: [u16; 2] = [0x8100, 0x88a8];
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Extension headers of IPv6.
const HOP_BY_HOP: u8 = 0;
const DESTINATION: u8 = 60;
/// Offsets of the checksum in a TCP and a UDP header.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;
const FIN_AND_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// Why a frame cannot be completed: its driver's header, or the headers that it is about.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum SegmentError {
    #[error("a checksum outside of the frame")]
    Checksum,
    #[error("a kind of segmentation that was not offered")]
    Kind,
    #[error("headers that do not fit the kind of segmentation")]
    Headers,
    #[error("too many segments")]
    TooMany,
}

/// A frame as its wire takes it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Outgoing {
    /// One frame.
    Whole(Whole),
    /// Several frames: see [`Segments::new`].
    Segmented(Segmentation),
}

/// A frame that leaves as a whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole {
    /// Length in bytes, without the header of virtio.
    pub(crate) len: usize,
    /// From where the checksum counts, and where it belongs.
    checksum: Option<(usize, usize)>,
}

/// The fields of a driver's header about segmentation (virtio 1.2, 5.1.6.2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segmentation {
    kind: u8,
    /// Bytes of payload in a segment.
    size: usize,
    /// Where TCP's or UDP's header begins.
    transport: usize,
    /// Where in it the checksum belongs.
    checksum: usize,
    /// Length of the frame in bytes, without the header of virtio.
    len: usize,
}

impl Outgoing {
    /// Reads the header of the frame of `len` bytes in `parts`, which has at least its header.
    ///
    /// # Errors
    ///
    /// See [`SegmentError`].
    #[inline]
    pub(crate) fn new(parts: &[IoPart<'_>], len: usize) -> Result<Outgoing, SegmentError> {
        let mut header = [0; HEADER_LEN];
        copy_out(parts, &mut header);
        let [flags, kind, _, _, s0, s1, t0, t1, c0, c1, ..] = header;
        let len = len - HEADER_LEN;
        if (flags & F_NEEDS_CSUM, kind) == (0, GSO_NONE) {
            return Ok(Outgoing::Whole(Whole { len, checksum: None }));
        }
        let field = |low, high| usize::from(u16::from_le_bytes([low, high]));
        let (size, transport, checksum) = (field(s0, s1), field(t0, t1), field(c0, c1));
        if flags & F_NEEDS_CSUM == 0 || transport + checksum + 2 > len {
            return Err(SegmentError::Checksum);
        }
        if kind == GSO_NONE {
            let checksum = Some((transport, transport + checksum));
            return Ok(Outgoing::Whole(Whole { len, checksum }));
        }
        Ok(Outgoing::Segmented(Segmentation { kind, size, transport, checksum, len }))
    }
}

impl Whole {
    /// Copies the frame in `parts` to `to`, which has as many bytes, and completes it.
    #[inline]
    pub(crate) fn write(self, parts: &[IoPart<'_>], to: IoPart<'_>) {
        copy_parts(parts, HEADER_LEN, to);
        if let Some((start, at)) = self.checksum {
            // The field holds the sum of the pseudo header.
            write_parts(&[to], at, &checksum(sum_part(to, start)));
        }
    }
}

/// A frame in segments.
#[derive(Debug)]
pub(crate) struct Segments {
    headers: [u8; MAX_HEADERS],
    /// Length of the headers.
    headers_len: usize,
    /// Where the IP header begins.
    network: usize,
    transport: usize,
    is_v6: bool,
    is_tcp: bool,
    /// Bytes of payload in a segment.
    size: usize,
    /// Bytes of payload in the frame.
    payload: usize,
}

impl Segments {
    /// Reads the headers of the frame in `parts`.
    ///
    /// # Errors
    ///
    /// See [`SegmentError`].
    pub(crate) fn new(what: Segmentation, parts: &[IoPart<'_>]) -> Result<Segments, SegmentError> {
        let mut both = [0; HEADER_LEN + MAX_HEADERS];
        let copied = copy_out(parts, &mut both) - HEADER_LEN;
        let mut headers = [0; MAX_HEADERS];
        headers.copy_from_slice(&both[HEADER_LEN..]);
        let Segmentation { kind, size, transport, checksum, len } = what;
        let is_tcp = match kind & !GSO_ECN {
            GSO_TCPV4 | GSO_TCPV6 => true,
            GSO_UDP_L4 => false,
            _ => return Err(SegmentError::Kind),
        };
        let known = &headers[..copied.min(len)];
        let (network, is_v6) = network(known, transport, if is_tcp { TCP } else { UDP })?;
        if is_tcp && is_v6 != (kind & !GSO_ECN == GSO_TCPV6) {
            return Err(SegmentError::Headers);
        }
        let (least, at) = if is_tcp { (20, TCP_CHECKSUM) } else { (8, UDP_CHECKSUM) };
        let fixed = known.get(transport..transport + least).ok_or(SegmentError::Headers)?;
        let transport_len = if is_tcp { usize::from(fixed[12] >> 4) * 4 } else { least };
        let headers_len = transport + transport_len;
        if checksum != at || transport_len < least || headers_len > known.len() || size == 0 {
            return Err(SegmentError::Headers);
        }
        let payload = len - headers_len;
        let segments = Segments { headers, headers_len, network, transport, is_v6, is_tcp, size, payload };
        if segments.count() > MAX_SEGMENTS {
            return Err(SegmentError::TooMany);
        }
        Ok(segments)
    }

    /// Returns the number of segments, 1 to [`MAX_SEGMENTS`].
    pub(crate) fn count(&self) -> usize {
        self.payload.div_ceil(self.size).max(1)
    }

    /// Returns the length in bytes of segment number `index`.
    pub(crate) fn len(&self, index: usize) -> usize {
        self.headers_len + self.payload_of(index)
    }

    /// Returns the length in bytes of the longest segment.
    pub(crate) fn longest(&self) -> usize {
        self.len(0)
    }

    fn payload_of(&self, index: usize) -> usize {
        self.size.min(self.payload - index * self.size)
    }

    /// Copies segment number `index` of the frame in `parts` to `to`, which has [`Segments::len`] bytes.
    pub(crate) fn write(&self, index: usize, parts: &[IoPart<'_>], to: IoPart<'_>) {
        let mut headers = self.headers;
        let headers = &mut headers[..self.headers_len];
        let mut payload = 0;
        if let Some(to) = to.skip(self.headers_len) {
            copy_parts(parts, HEADER_LEN + self.headers_len + index * self.size, to);
            payload = sum_part(to, 0);
        }
        self.finish_network(headers, index);
        self.finish_transport(headers, index, payload);
        write_parts(&[to], 0, headers);
    }

    /// Completes the IP header of segment number `index`.
    fn finish_network(&self, headers: &mut [u8], index: usize) {
        let len = self.len(index) - self.network;
        let ip = &mut headers[self.network..self.transport];
        if self.is_v6 {
            put(ip, 4, (len - 40) as u16);
            return;
        }
        put(ip, 2, len as u16);
        let id = get(ip, 4).wrapping_add(index as u16);
        put(ip, 4, id);
        put(ip, 10, 0);
        put(ip, 10, !sum(ip));
    }

    /// Completes the TCP or UDP header of segment number `index`, whose payload has this sum. An odd length
    /// of the headers does not exist, so that the payload begins with a whole word.
    fn finish_transport(&self, headers: &mut [u8], index: usize, payload: u16) {
        let len = self.len(index) - self.transport;
        let (before, transport) = headers.split_at_mut(self.transport);
        let (at, protocol) = if self.is_tcp { (TCP_CHECKSUM, TCP) } else { (UDP_CHECKSUM, UDP) };
        if self.is_tcp {
            let number = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let number = number.wrapping_add((index * self.size) as u32);
            transport[4..8].copy_from_slice(&number.to_be_bytes());
            if index > 0 {
                transport[13] &= !CWR;
            }
            if index + 1 < self.count() {
                transport[13] &= !FIN_AND_PSH;
            }
        } else {
            put(transport, 4, len as u16);
        }
        put(transport, at, 0);
        let addresses = if self.is_v6 { 8..40 } else { 12..20 };
        let addresses = sum(&before[self.network..][addresses]);
        let all = add(&[addresses, u16::from(protocol), len as u16, sum(transport), payload]);
        transport[at..at + 2].copy_from_slice(&checksum(all));
    }
}

/// Returns where the IP header begins, and whether it is one of IPv6. It must end at `transport`.
fn network(headers: &[u8], transport: usize, protocol: u8) -> Result<(usize, bool), SegmentError> {
    let field = |at: usize| headers.get(at..at + 2).map(|bytes| get(bytes, 0));
    let (mut at, mut kind) = (12, field(12));
    for _ in 0..2 {
        if kind.is_some_and(|kind| VLAN.contains(&kind)) {
            at += 4;
            kind = field(at);
        }
    }
    let network = at + 2;
    let ip = headers.get(network..transport).ok_or(SegmentError::Headers)?;
    match (kind, ip.len()) {
        (Some(IPV4), 20..=60)
            if ip[0] >> 4 == 4 && usize::from(ip[0] & 15) * 4 == ip.len() && ip[9] == protocol =>
        {
            Ok((network, false))
        }
        (Some(IPV6), 40..) if ip[0] >> 4 == 6 && leads_to(ip, protocol) => Ok((network, true)),
        _ => Err(SegmentError::Headers),
    }
}

/// Whether the extension headers of an IPv6 packet lead to `protocol` right behind them. They are the same in
/// each segment.
fn leads_to(ip: &[u8], protocol: u8) -> bool {
    let (mut next, mut at) = (ip[6], 40);
    while at < ip.len() {
        let Some([following, len]) = ip.get(at..at + 2) else { return false };
        // A routing header would change the address in the checksum.
        if ![HOP_BY_HOP, DESTINATION].contains(&next) {
            return false;
        }
        (next, at) = (*following, at + 8 * (usize::from(*len) + 1));
    }
    next == protocol && at == ip.len()
}

fn get(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

#[cfg(test)]
mod tests;
