//! ICMP of both families (RFC 792, RFC 4443).

use crate::reason::Reason;
use crate::wire::Copied;

/// Protocol number of ICMP for IPv4.
pub const V4: u8 = 1;
/// Protocol number of ICMPv6.
pub const V6: u8 = 58;
/// Length of the header of echo and error messages.
pub const LEN: usize = 8;

/// An ICMP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Icmp {
    /// What it is for.
    pub kind: Kind,
    /// The type, whose meaning depends on the family.
    pub message: u8,
    /// The identifier of echo messages.
    pub identifier: u16,
}

/// What an ICMP message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request for an echo.
    EchoRequest,
    /// An echo.
    EchoReply,
    /// An error, which quotes the packet that caused it. Includes Packet Too Big.
    Error,
    /// A redirect.
    Redirect,
    /// A router advertisement.
    RouterAdvertisement,
    /// A router solicitation of IPv6.
    RouterSolicitation,
    /// A neighbour solicitation.
    NeighbourSolicitation,
    /// A neighbour advertisement.
    NeighbourAdvertisement,
    /// A query for multicast listeners.
    ListenerQuery,
    /// A report, or farewell, of a multicast listener.
    ListenerReport,
    /// Anything else.
    Other,
}

impl Icmp {
    /// Reads the header at `at` of a packet that ends at `end`.
    ///
    /// # Errors
    ///
    /// Fails if the packet is shorter.
    pub(super) fn new(frame: Copied<'_>, at: usize, end: usize, is_ipv4: bool) -> Result<Icmp, Reason> {
        let [message, _code, _, _, id_high, id_low, ..]: [u8; LEN] = *frame.until(end).array(at)?;
        let kind = if is_ipv4 { v4(message) } else { v6(message) };
        Ok(Icmp { kind, message, identifier: u16::from_be_bytes([id_high, id_low]) })
    }
}

fn v4(message: u8) -> Kind {
    match message {
        0 => Kind::EchoReply,
        3 | 11 | 12 => Kind::Error,
        5 => Kind::Redirect,
        8 => Kind::EchoRequest,
        9 => Kind::RouterAdvertisement,
        _ => Kind::Other,
    }
}

fn v6(message: u8) -> Kind {
    match message {
        1..=4 => Kind::Error,
        128 => Kind::EchoRequest,
        129 => Kind::EchoReply,
        130 => Kind::ListenerQuery,
        131 | 132 | 143 => Kind::ListenerReport,
        133 => Kind::RouterSolicitation,
        134 => Kind::RouterAdvertisement,
        135 => Kind::NeighbourSolicitation,
        136 => Kind::NeighbourAdvertisement,
        137 => Kind::Redirect,
        _ => Kind::Other,
    }
}
