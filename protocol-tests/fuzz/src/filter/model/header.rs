//! The virtio-net header that goes on with a frame (virtio 1.2, 5.1.6).

use volt_filter::reason::Reason;

use super::super::read::{Ip, Load};

/// Header of an IP packet, from the header that came with it.
pub(super) fn of_packet(out: bool, asked: &[u8; 12], ip: &Ip, load: &Load) -> Result<[u8; 12], Reason> {
    check_flags(out, asked[0])?;
    let needs_csum = asked[0] & 1 > 0;
    let (gso, has_ecn) = (asked[1] & 0x7f, asked[1] & 0x80 > 0);
    let field = |at: usize| u16::from_le_bytes([asked[at], asked[at + 1]]);
    // Where the checksum is, and how long the header.
    let transport = match load {
        Load::Tcp(_, segment) => Some((16, segment.header)),
        Load::Udp(_) => Some((6, 8)),
        _ => None,
    };
    let (checksum, own) = match transport {
        Some(transport) if ip.fragment.is_none() => transport,
        _ if needs_csum || asked[1] > 0 => return Err(Reason::Header),
        _ => (0, 0),
    };
    let headers = ip.at + own;
    let mut header = [0; 12];
    header[0] = asked[0];
    let mut set = |at: usize, value: usize| header[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
    if needs_csum {
        if usize::from(field(6)) != ip.at || field(8) != checksum {
            return Err(Reason::Header);
        }
        set(2, headers);
        set(6, ip.at);
        set(8, checksum.into());
    }
    if asked[1] > 0 {
        let is_tcp = matches!(load, Load::Tcp(..));
        let fits = match gso {
            1 => is_tcp && ip.source.is_ipv4(),
            4 => is_tcp && ip.source.is_ipv6(),
            3 | 5 => !is_tcp && !has_ecn,
            _ => false,
        };
        let (size, least) = (usize::from(field(4)), if out { 8 } else { 1 });
        if !fits || size < least || headers - 14 + size > 65_535 || (out && !needs_csum) {
            return Err(Reason::Header);
        }
        set(2, headers);
        set(4, size);
        header[1] = asked[1];
    }
    Ok(header)
}

/// Header of another frame.
pub(super) fn of_others(out: bool, asked: &[u8; 12]) -> Result<[u8; 12], Reason> {
    check_flags(out, asked[0])?;
    if asked[0] & 1 > 0 || asked[1] > 0 {
        return Err(Reason::Header);
    }
    let mut header = [0; 12];
    header[0] = asked[0];
    Ok(header)
}

fn check_flags(out: bool, flags: u8) -> Result<(), Reason> {
    if flags & !(if out { 1 } else { 3 }) == 0 { Ok(()) } else { Err(Reason::Header) }
}
