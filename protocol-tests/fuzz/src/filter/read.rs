//! A plain reader of frames for the model, from the RFCs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use volt_filter::reason::Reason;

pub(super) type Mac = [u8; 6];
type Read<T> = Result<T, Reason>;

/// A frame behind its virtio-net header: its first bytes, and its length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) len: usize,
}

impl<'a> Bytes<'a> {
    /// Returns `count` bytes at `at`, which must lie before `end`.
    pub(super) fn get(&self, at: usize, count: usize, end: usize) -> Read<&'a [u8]> {
        if at + count > end.min(self.len) {
            return Err(Reason::Malformed);
        }
        self.bytes.get(at..at + count).ok_or(Reason::BeyondCopy)
    }

    fn number(&self, at: usize, end: usize) -> Read<u16> {
        Ok(u16::from_be_bytes(self.get(at, 2, end)?.try_into().expect("two")))
    }

    fn long(&self, at: usize, end: usize) -> Read<u32> {
        Ok(u32::from_be_bytes(self.get(at, 4, end)?.try_into().expect("four")))
    }

    pub(super) fn mac(&self, at: usize) -> Read<Mac> {
        Ok(self.get(at, 6, self.len)?.try_into().expect("six"))
    }

    pub(super) fn v4(&self, at: usize) -> Read<Ipv4Addr> {
        Ok(self.long(at, self.len)?.into())
    }

    pub(super) fn v6(&self, at: usize, end: usize) -> Read<Ipv6Addr> {
        let octets: [u8; 16] = self.get(at, 16, end)?.try_into().expect("sixteen");
        Ok(octets.into())
    }
}

/// An IP packet.
#[derive(Clone, Debug)]
pub(super) struct Ip {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) hop_limit: u8,
    /// Where its load begins, and where it ends.
    pub(super) at: usize,
    pub(super) end: usize,
    /// The offset of a fragment.
    pub(super) fragment: Option<usize>,
    pub(super) options: bool,
    pub(super) rerouted: bool,
}

/// A TCP segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) flags: u8,
    pub(super) sequence: u32,
    pub(super) acknowledged: u32,
    pub(super) window: u32,
    pub(super) scale: Option<u8>,
    pub(super) header: usize,
    pub(super) data: u32,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    Tcp((u16, u16), Segment),
    Udp((u16, u16)),
    /// Type, and identifier of an echo.
    Icmp(u8, u16),
    Other,
    /// A fragment behind the first.
    Later,
}

/// Reads an IP packet at `at`. One that an ICMP error quotes may be cut.
pub(super) fn ip(frame: &Bytes<'_>, at: usize, v6: bool, quoted: bool) -> Read<Ip> {
    let all = frame.len;
    if v6 { ipv6(frame, at, quoted) } else { ipv4(frame, at, quoted, all) }
}

fn ipv4(frame: &Bytes<'_>, at: usize, quoted: bool, all: usize) -> Read<Ip> {
    let header = frame.get(at, 20, all)?;
    let (version, len) = (header[0] >> 4, usize::from(header[0] & 15) * 4);
    let total = usize::from(frame.number(at + 2, all)?);
    if version != 4 || len < 20 || total < len || (at + total > all && !quoted) {
        return Err(Reason::Malformed);
    }
    let place = frame.number(at + 6, all)?;
    let mut rerouted = false;
    let options = frame.get(at + 20, len - 20, all)?;
    let mut n = 0;
    while n < options.len() && options[n] != 0 && !rerouted {
        match options[n] {
            1 => n += 1,
            131 | 137 => rerouted = true,
            _ => match options.get(n + 1) {
                Some(size) if *size >= 2 && n + usize::from(*size) <= options.len() => {
                    n += usize::from(*size);
                }
                _ => return Err(Reason::Malformed),
            },
        }
    }
    Ok(Ip {
        source: frame.v4(at + 12)?.into(),
        destination: frame.v4(at + 16)?.into(),
        protocol: header[9],
        hop_limit: header[8],
        at: at + len,
        end: at + total,
        // All but the bit Don't Fragment and the reserved one.
        fragment: (place & 0x3fff != 0).then_some(usize::from(place & 0x1fff) * 8),
        options: len > 20,
        rerouted,
    })
}

fn ipv6(frame: &Bytes<'_>, at: usize, quoted: bool) -> Read<Ip> {
    let header = frame.get(at, 40, frame.len)?;
    let end = at + 40 + usize::from(frame.number(at + 4, frame.len)?);
    if header[0] >> 4 != 6 || (end > frame.len && !quoted) {
        return Err(Reason::Malformed);
    }
    let (mut next, hop_limit) = (header[6], header[7]);
    let (source, destination) = (frame.v6(at + 8, frame.len)?, frame.v6(at + 24, frame.len)?);
    let (mut at, mut options, mut rerouted, mut fragment) = (at + 40, false, false, None);
    let mut count = 0;
    while [0, 43, 44, 60].contains(&next) {
        count += 1;
        // Each kind once and destination options twice, hop-by-hop options first (RFC 8200, 4.1).
        if count > 5 || (next == 0 && count > 1) {
            return Err(Reason::ExtensionHeader);
        }
        let here = next;
        if here == 44 {
            let header = frame.get(at, 8, end)?;
            if fragment.is_some() {
                return Err(Reason::ExtensionHeader);
            }
            let offset = frame.number(at + 2, end)? & 0xfff8;
            (next, at, fragment) = (header[0], at + 8, Some(usize::from(offset)));
            if offset > 0 {
                break;
            }
        } else {
            let header = frame.get(at, 4, end)?;
            rerouted |= here == 43 && header[3] > 0;
            (next, at, options) = (header[0], at + 8 + 8 * usize::from(header[1]), true);
        }
    }
    if at > end {
        return Err(Reason::Malformed);
    }
    let (source, destination) = (source.into(), destination.into());
    Ok(Ip { source, destination, protocol: next, hop_limit, at, end, fragment, options, rerouted })
}

/// Reads what a packet carries. A fragment must show its ports or type, or be behind the first.
pub(super) fn load(frame: &Bytes<'_>, ip: &Ip) -> Read<Load> {
    let most = if ip.source.is_ipv4() { 65_515 } else { 65_535 };
    match ip.fragment {
        // It ends beyond every packet.
        Some(offset) if offset + (ip.end - ip.at) > most => return Err(Reason::Fragment),
        // It could replace part of the first fragment's header.
        Some(offset) if ip.protocol == 6 && offset > 0 && offset < 20 => return Err(Reason::Fragment),
        Some(offset) if offset > 0 => return Ok(Load::Later),
        _ => {}
    }
    let read = match (ip.protocol, ip.source.is_ipv4()) {
        (6, _) => segment(frame, ip),
        (17, _) => datagram(frame, ip),
        (1, true) | (58, false) => frame
            .get(ip.at, 8, ip.end)
            .map(|header| Load::Icmp(header[0], u16::from_be_bytes([header[4], header[5]]))),
        _ => Ok(Load::Other),
    };
    read.map_err(|reason| if ip.fragment.is_some() { Reason::Fragment } else { reason })
}

fn datagram(frame: &Bytes<'_>, ip: &Ip) -> Read<Load> {
    frame.get(ip.at, 8, ip.end)?;
    let len = usize::from(frame.number(ip.at + 4, ip.end)?);
    if len < 8 || (ip.fragment.is_none() && ip.at + len > ip.end) {
        return Err(Reason::Malformed);
    }
    Ok(Load::Udp((frame.number(ip.at, ip.end)?, frame.number(ip.at + 2, ip.end)?)))
}

fn segment(frame: &Bytes<'_>, ip: &Ip) -> Read<Load> {
    let (at, end) = (ip.at, ip.end);
    let fixed = frame.get(at, 20, end)?;
    let header = usize::from(fixed[12] >> 4) * 4;
    if header < 20 {
        return Err(Reason::Malformed);
    }
    let options = frame.get(at + 20, header - 20, end)?;
    let (mut n, mut scale) = (0, None);
    while n < options.len() && options[n] != 0 && fixed[13] & 2 != 0 {
        let len = usize::from(*options.get(n + 1).unwrap_or(&0));
        match options[n] {
            1 => n += 1,
            3 if len == 3 && n + 3 <= options.len() => {
                scale = Some(options[n + 2].min(14));
                break;
            }
            _ if len >= 2 => n += len,
            _ => break,
        }
    }
    let ports = (frame.number(at, end)?, frame.number(at + 2, end)?);
    Ok(Load::Tcp(
        ports,
        Segment {
            flags: fixed[13] & 0x3f,
            sequence: frame.long(at + 4, end)?,
            acknowledged: frame.long(at + 8, end)?,
            window: frame.number(at + 14, end)?.into(),
            scale,
            header,
            data: (end - at - header) as u32,
        },
    ))
}

/// A message of neighbour discovery: its target, the MAC address in its options, and whether it has others.
#[derive(Debug)]
pub(super) struct Discovery {
    pub(super) target: Ipv6Addr,
    pub(super) mac: Option<Mac>,
    pub(super) others: bool,
}

/// Reads a message of neighbour discovery (RFC 4861, 4).
pub(super) fn discovery(frame: &Bytes<'_>, ip: &Ip, kind: u8) -> Read<Discovery> {
    let wrong = |_| Reason::Neighbour;
    let fixed = match kind {
        135 | 136 => 24,
        134 => 16,
        _ => 8,
    };
    let target = match kind {
        135 | 136 => frame.v6(ip.at + 8, ip.end).map_err(wrong)?,
        _ => Ipv6Addr::UNSPECIFIED,
    };
    let (mut mac, mut others) = (None, false);
    let mut at = ip.at + fixed;
    while at < ip.end {
        let head = frame.get(at, 2, ip.end).map_err(wrong)?;
        let len = usize::from(head[1]) * 8;
        let option = frame.get(at, len, ip.end).map_err(wrong)?;
        match (head[0], len) {
            (_, 0) => return Err(Reason::Neighbour),
            (1 | 2, 8) => {
                let this: Mac = option[2..].try_into().expect("six");
                if mac.is_some_and(|other| other != this) {
                    return Err(Reason::Neighbour);
                }
                mac = Some(this);
            }
            (14, 8) => {}
            _ => others = true,
        }
        at += len;
    }
    Ok(Discovery { target, mac, others })
}
