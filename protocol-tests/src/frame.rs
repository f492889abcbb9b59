//! Frames with a number and a check of their own, and the virtio-net header before them.
//!
//! Tests send [`numbered`] frames and read the number of arriving ones by [`number_of`]: a cut, mixed or
//! repeated frame is noticed.

/// Bytes of the header with `num_buffers` (virtio 1.2, 5.1.6).
pub const NET_HEADER_LEN: usize = 12;
/// Local experimental Ethertype: nothing in the kernel answers it.
pub const ETHERTYPE: u16 = 0x88b5;

/// GSO types and flags of the header.
#[expect(missing_docs, reason = "the names are the specification's own")]
pub mod gso {
    pub const NONE: u8 = 0;
    pub const TCPV4: u8 = 1;
    pub const UDP: u8 = 3;
    pub const TCPV6: u8 = 4;
    pub const UDP_L4: u8 = 5;
    pub const ECN: u8 = 0x80;
    pub const NEEDS_CSUM: u8 = 1;
    pub const DATA_VALID: u8 = 2;
}

/// `struct virtio_net_hdr` of virtio 1.0 and later, always with `num_buffers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the specification's own (5.1.6)")]
pub struct NetHeader {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
    pub num_buffers: u16,
}

impl NetHeader {
    /// Returns the header's bytes, little-endian.
    pub fn encode(&self) -> [u8; NET_HEADER_LEN] {
        let mut bytes = [0; NET_HEADER_LEN];
        (bytes[0], bytes[1]) = (self.flags, self.gso_type);
        let fields = [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers];
        for (at, field) in fields.into_iter().enumerate() {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// Returns a header from its bytes.
    pub fn decode(bytes: &[u8; NET_HEADER_LEN]) -> NetHeader {
        let field = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        NetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
            num_buffers: field(10),
        }
    }
}

/// Returns a frame of `len` bytes (22 or more) with number `number`: addresses, [`ETHERTYPE`], the number,
/// and bytes that depend on the number and their position.
pub fn numbered(number: u32, len: usize) -> Vec<u8> {
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    frame.extend_from_slice(&ETHERTYPE.to_be_bytes());
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend_from_slice(&(len as u32).to_be_bytes());
    frame.extend((frame.len()..len).map(|at| pattern(number, at)));
    frame
}

fn pattern(number: u32, at: usize) -> u8 {
    let mixed =
        (number.wrapping_mul(2_654_435_761) ^ (at as u32).wrapping_mul(40_503)).wrapping_mul(2_246_822_519);
    (mixed >> 24) as u8
}

/// Returns the number of a frame made by [`numbered`]; `None` if a byte of it has changed.
pub fn number_of(frame: &[u8]) -> Option<u32> {
    let number = u32::from_be_bytes(frame.get(14..18)?.try_into().ok()?);
    (frame == numbered(number, frame.len())).then_some(number)
}

/// Returns the Internet checksum (RFC 1071) of bytes, starting with `sum`.
pub fn checksum(bytes: &[u8], mut sum: u32) -> u16 {
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Returns an IPv4 UDP datagram in a frame, `10.0.0.<from>` to `10.0.0.<to>`. Its UDP checksum is left to an
/// offload: only the pseudo-header's sum is filled in, as NEEDS_CSUM requires.
pub fn udp(from: (u8, u16), to: (u8, u16), payload: &[u8]) -> Vec<u8> {
    let udp_len = 8 + payload.len() as u16;
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&(20 + udp_len).to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, from.0, 10, 0, 0, to.0]);
    let sum = checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let pseudo = !checksum(&ip[12..20], 17 + u32::from(udp_len));
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend_from_slice(&ip);
    for field in [from.1, to.1, udp_len, pseudo] {
        frame.extend_from_slice(&field.to_be_bytes());
    }
    frame.extend_from_slice(payload);
    frame
}

/// Returns a TCP segment in a frame, over IPv4 or IPv6, with or without the flag CWR, and the offset of its
/// TCP header. Its TCP checksum is left to an offload.
pub fn tcp(v6: bool, cwr: bool, payload: &[u8]) -> (Vec<u8>, u16) {
    let len = 20 + payload.len() as u16;
    let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
    let (mut ip, addresses) = if v6 {
        frame.extend_from_slice(&[0x86, 0xdd]);
        (vec![0x60, 0, 0, 0, (len >> 8) as u8, len as u8, 6, 64], 8)
    } else {
        frame.extend_from_slice(&[0x08, 0x00]);
        let total = (20 + len).to_be_bytes();
        (vec![0x45, 0, total[0], total[1], 0, 0, 0x40, 0, 64, 6, 0, 0], 12)
    };
    for last in [1, 2] {
        let address = if v6 {
            vec![0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
        } else {
            vec![10, 0, 0, last]
        };
        ip.extend_from_slice(&address);
    }
    if !v6 {
        let sum = checksum(&ip, 0);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let pseudo = !checksum(&ip[addresses..], 6 + u32::from(len));
    frame.extend_from_slice(&ip);
    let start = frame.len() as u16;
    let flags = 0x10 | if cwr { 0x80 } else { 0 };
    frame.extend_from_slice(&[0x04, 0x57, 0x08, 0xae, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff]);
    frame.extend_from_slice(&pseudo.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(payload);
    (frame, start)
}

/// Returns the header of a [`udp`] frame whose payload is to be sent in segments of `size` bytes.
pub fn uso_header(size: u16) -> NetHeader {
    NetHeader {
        flags: gso::NEEDS_CSUM,
        gso_type: gso::UDP_L4,
        hdr_len: 42,
        gso_size: size,
        csum_start: 34,
        csum_offset: 6,
        num_buffers: 0,
    }
}
