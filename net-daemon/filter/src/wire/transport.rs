//! What an IP packet carries.

use crate::reason::Reason;
use crate::wire::Copied;
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4;
use crate::wire::packet::Packet;
use crate::wire::tcp::{self, Tcp};
use crate::wire::udp::{self, Udp};

/// The largest packet of IPv4, and the largest payload of IPv6.
const LARGEST: usize = 65_535;

/// The header of the transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp(Tcp),
    /// UDP.
    Udp(Udp),
    /// ICMP of the packet's family.
    Icmp(Icmp),
    /// Another protocol.
    Other,
    /// The packet is a fragment other than the first: there is no header.
    Continuation,
}

impl Transport {
    /// Reads the header behind those of `packet`.
    ///
    /// # Errors
    ///
    /// Fails if it is malformed, or not whole. A first fragment must contain it.
    #[inline]
    pub fn new(frame: Copied<'_>, packet: &Packet) -> Result<Transport, Reason> {
        let (at, end) = (packet.transport, packet.end);
        if let Some(fragment) = packet.fragment {
            let largest = if packet.is_ipv4 { LARGEST - ipv4::LEN } else { LARGEST };
            match fragment.offset {
                // It would end beyond every packet.
                offset if offset + packet.payload() > largest => return Err(Reason::Fragment),
                0 => {}
                // It would replace part of the header in the first fragment (RFC 3128).
                offset if packet.protocol == tcp::PROTOCOL && offset < tcp::LEN => {
                    return Err(Reason::Fragment);
                }
                _ => return Ok(Transport::Continuation),
            }
        }
        let hidden = |reason| if packet.fragment.is_some() { Reason::Fragment } else { reason };
        Ok(match (packet.protocol, packet.is_ipv4) {
            (tcp::PROTOCOL, _) => Transport::Tcp(Tcp::new(frame, at, end).map_err(hidden)?),
            (udp::PROTOCOL, _) => {
                let first = packet.fragment.is_some();
                Transport::Udp(Udp::new(frame, at, end, first).map_err(hidden)?)
            }
            (icmp::V4, true) | (icmp::V6, false) => {
                let is_ipv4 = packet.is_ipv4;
                Transport::Icmp(Icmp::new(frame, at, end, is_ipv4).map_err(hidden)?)
            }
            _ => Transport::Other,
        })
    }

    /// Returns the ports of source and destination.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self {
            Transport::Tcp(tcp) => Some((tcp.source, tcp.destination)),
            Transport::Udp(udp) => Some((udp.source, udp.destination)),
            _ => None,
        }
    }
}
