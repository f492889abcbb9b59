//! Messages of neighbour discovery (RFC 4861).

use std::net::Ipv6Addr;

use crate::reason::Reason;
use crate::wire::Copied;
use crate::wire::ethernet::Mac;
use crate::wire::icmp::Kind;
use crate::wire::packet::Packet;

/// Hop limit of messages that no router has forwarded.
const UNFORWARDED: u8 = 255;
const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const NONCE: u8 = 14;
/// Length of a MAC address option in units of 8 bytes.
const MAC_UNITS: u8 = 1;
/// Length of a nonce: six bytes, as in Enhanced DAD (RFC 7527, 4.1). A longer one would be room for a
/// message.
const NONCE_UNITS: u8 = 1;

/// A message of neighbour discovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The target of solicitations and advertisements of neighbours; unspecified for others.
    pub target: Ipv6Addr,
    /// The MAC address in its options, if there is one. All options have the same.
    pub mac: Option<Mac>,
    /// Whether it has options other than MAC addresses and nonces.
    pub others: bool,
}

impl Neighbour {
    /// Reads the message of this kind that `packet` carries.
    ///
    /// # Errors
    ///
    /// Fails if a router may have forwarded it, if it is a fragment (RFC 6980) or malformed, or names two
    /// MAC addresses, of which hosts could choose either.
    pub fn new(frame: Copied<'_>, packet: &Packet, kind: Kind) -> Result<Neighbour, Reason> {
        if packet.hop_limit != UNFORWARDED || packet.fragment.is_some() {
            return Err(Reason::Neighbour);
        }
        Neighbour::read(frame, packet.transport, packet.end, kind)
    }

    fn read(frame: Copied<'_>, at: usize, end: usize, kind: Kind) -> Result<Neighbour, Reason> {
        let (target_at, mut at) = match kind {
            Kind::NeighbourSolicitation | Kind::NeighbourAdvertisement => (Some(at + 8), at + 24),
            Kind::RouterAdvertisement => (None, at + 16),
            _ => (None, at + 8),
        };
        let within = frame.until(end);
        let malformed = |_| Reason::Neighbour;
        let target = match target_at {
            Some(at) => Ipv6Addr::from(*within.array::<16>(at).map_err(malformed)?),
            None => Ipv6Addr::UNSPECIFIED,
        };
        let mut message = Neighbour { target, mac: None, others: false };
        while at < end {
            let [kind, units] = *within.array(at).map_err(malformed)?;
            let next = at + 8 * usize::from(units);
            within.range(at, next).map_err(malformed)?;
            match kind {
                _ if units == 0 => return Err(Reason::Neighbour),
                SOURCE_MAC | TARGET_MAC if units == MAC_UNITS => {
                    let mac = *within.array(at + 2).map_err(malformed)?;
                    if message.mac.replace(mac).is_some_and(|other| other != mac) {
                        return Err(Reason::Neighbour);
                    }
                }
                NONCE if units == NONCE_UNITS => {}
                _ => message.others = true,
            }
            at = next;
        }
        Ok(message)
    }
}

/// Returns the address at which `address` is solicited (RFC 4291, 2.7.1).
pub fn solicited(address: Ipv6Addr) -> Ipv6Addr {
    const PREFIX: u128 = 0xff02_0000_0000_0000_0000_0001_ff00_0000;
    Ipv6Addr::from_bits(PREFIX | address.to_bits() & 0xff_ffff)
}

/// Returns the MAC address of a multicast group (RFC 2464, 7).
pub fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// Returns the link-local address that hosts derive from their MAC address (RFC 4291, appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_addresses_are_those_of_the_rfcs() {
        let address: Ipv6Addr = "4037::1:800:200e:8c6c".parse().unwrap();
        assert_eq!(solicited(address), "ff02::1:ff0e:8c6c".parse::<Ipv6Addr>().unwrap());
        assert_eq!(group_mac(solicited(address)), [0x33, 0x33, 0xff, 0x0e, 0x8c, 0x6c]);
        let own: Ipv6Addr = "fe80::5054:ff:fe12:3456".parse().unwrap();
        assert_eq!(link_local([0x52, 0x54, 0, 0x12, 0x34, 0x56]), own);
    }

    /// A solicitation for fe80::1 with these options.
    fn read(options: &[u8], kind: Kind) -> Result<Neighbour, Reason> {
        let mut bytes = vec![135, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0x80];
        bytes.extend([0; 13]);
        bytes.push(1);
        bytes.extend(options);
        Neighbour::read(Copied::whole(&bytes), 0, bytes.len(), kind)
    }

    #[test]
    fn options_are_read_to_the_last() {
        let solicitation = Kind::NeighbourSolicitation;
        let none = read(&[], solicitation).unwrap();
        assert_eq!((none.target, none.mac), ("fe80::1".parse().unwrap(), None));
        let mac = [1, 1, 2, 0, 0, 0, 0, 1];
        assert_eq!(read(&mac, solicitation).unwrap().mac, Some([2, 0, 0, 0, 0, 1]));
        let nonce = [14, 1, 9, 9, 9, 9, 9, 9];
        let both = read(&[nonce, mac].concat(), solicitation).unwrap();
        assert_eq!((both.mac, both.others), (Some([2, 0, 0, 0, 0, 1]), false));
        assert!(read(&[5, 1, 0, 0, 0, 0, 5, 220], solicitation).unwrap().others);
        let other = [2, 1, 2, 0, 0, 0, 0, 2];
        for wrong in [&[mac, other].concat()[..], &[1, 0, 0, 0, 0, 0, 0, 0], &[1, 2, 0, 0, 0, 0, 0, 0], &[1]]
        {
            assert_eq!(read(wrong, solicitation), Err(Reason::Neighbour), "{wrong:?}");
        }
    }
}
