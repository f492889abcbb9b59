//! IP protocols by name and number.

use std::fmt;
use std::net::IpAddr;

use thiserror::Error;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

/// Names of protocols, for policies and questions.
const NAMES: &[(&str, u8)] = &[
    ("igmp", 2),
    ("ipip", 4),
    ("tcp", TCP),
    ("udp", UDP),
    ("dccp", 33),
    ("sit", 41),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
    ("minimal", 55),
    ("icmpv6", ICMPV6),
    ("ospf", 89),
    ("etherip", 97),
    ("encap", 98),
    ("pim", 103),
    ("ipcomp", 108),
    ("vrrp", 112),
    ("l2tp", 115),
    ("sctp", 132),
    ("udplite", 136),
    ("mpls", 137),
];

/// Protocols that carry packets or frames of other protocols, which no rule would see.
const TUNNELS: &[u8] = &[4, 41, 47, 50, 51, 55, 94, 97, 98, 99, 108, 111, 115, 137, 142, 143, 144, 145];

/// Why a text is not a protocol.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "'{0}' is not a protocol: write tcp, udp, icmp, another name such as gre or sctp, or a number up to 255"
)]
pub struct ProtocolError(pub(super) String);

/// The protocols of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// In an allow rule TCP, UDP and ICMP. In a deny rule all.
    Any,
    /// ICMP for IPv4 addresses, ICMPv6 for IPv6 addresses.
    Icmp,
    /// One protocol.
    Number(u8),
}

impl Protocol {
    /// Reads a name or number.
    pub(crate) fn from_text(text: &str) -> Result<Protocol, ProtocolError> {
        match text {
            "any" => return Ok(Protocol::Any),
            "icmp" => return Ok(Protocol::Icmp),
            _ => {}
        }
        if let Some((_, number)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(Protocol::Number(*number));
        }
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| is_plain);
        number.map(Protocol::Number).ok_or_else(|| ProtocolError(text.to_owned()))
    }

    /// Whether an allow rule for these protocols allows this one with that peer.
    pub(crate) fn allows(self, number: u8, peer: IpAddr) -> bool {
        match self {
            Protocol::Any => matches!(number, TCP | UDP) || number == icmp_of(peer),
            Protocol::Icmp => number == icmp_of(peer),
            Protocol::Number(mine) => number == mine,
        }
    }

    /// Whether a deny rule for these protocols denies this one with that peer.
    pub(crate) fn denies(self, number: u8, peer: IpAddr) -> bool {
        self == Protocol::Any || self.allows(number, peer)
    }

    /// Whether flows of these protocols have ports.
    pub(crate) fn has_ports(self) -> bool {
        matches!(self, Protocol::Number(TCP | UDP))
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Any => f.write_str("any"),
            Protocol::Icmp => f.write_str("icmp"),
            Protocol::Number(number) => match NAMES.iter().find(|(_, other)| other == number) {
                Some((name, _)) => f.write_str(name),
                None => number.fmt(f),
            },
        }
    }
}

/// Returns the number of ICMP in the family of an address.
pub(crate) fn icmp_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { ICMP } else { ICMPV6 }
}

/// Whether packets of this protocol carry others.
pub(crate) fn is_tunnel(number: u8) -> bool {
    TUNNELS.contains(&number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_read_and_written() {
        for (text, again) in [("any", "any"), ("icmp", "icmp"), ("47", "gre"), ("sit", "sit"), ("253", "253")]
        {
            assert_eq!(Protocol::from_text(text).map(|protocol| protocol.to_string()), Ok(again.to_owned()));
        }
        for (name, number) in NAMES {
            assert_eq!(Protocol::from_text(name), Ok(Protocol::Number(*number)));
            assert_eq!(Protocol::from_text(&number.to_string()), Ok(Protocol::Number(*number)));
        }
        for wrong in ["", "256", "+6", "-1", "TCP", "http", "6 "] {
            let error = Protocol::from_text(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("'{wrong}' is not a protocol")), "{error}");
        }
    }

    #[test]
    fn any_is_tcp_udp_and_icmp_in_allow_rules_and_all_in_deny_rules() {
        let (v4, v6) = (IpAddr::from([192, 0, 2, 1]), "2001:db8::1".parse().unwrap());
        for number in 0..=u8::MAX {
            assert_eq!(Protocol::Any.allows(number, v4), [1, 6, 17].contains(&number));
            assert_eq!(Protocol::Any.allows(number, v6), [58, 6, 17].contains(&number));
            assert_eq!(Protocol::Icmp.allows(number, v6), number == 58);
            assert!(Protocol::Any.denies(number, v4));
            assert_eq!(Protocol::Icmp.denies(number, v4), number == 1);
            assert!(
                !(is_tunnel(number)
                    && (Protocol::Any.allows(number, v4) || Protocol::Any.allows(number, v6)))
            );
        }
    }
}
