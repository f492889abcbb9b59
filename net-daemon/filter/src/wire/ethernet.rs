//! Ethernet headers (IEEE 802.3).

use crate::reason::Reason;
use crate::wire::{Copied, be16};

/// Length of the header.
pub const LEN: usize = 14;
/// Length of the shortest frame, without its checksum: shorter ones are padded.
pub const MIN_LEN: usize = 60;
/// The broadcast address.
pub const BROADCAST: Mac = [0xff; 6];

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of RARP.
pub const RARP: u16 = 0x8035;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherTypes of VLAN tags: 802.1Q, 802.1ad, and two from before.
const VLANS: [u16; 4] = [0x8100, 0x88a8, 0x9100, 0x9200];
/// The smallest EtherType. Smaller numbers are lengths.
const SMALLEST: u16 = 0x0600;

/// A MAC address.
pub type Mac = [u8; 6];

/// An Ethernet header.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<'a>(&'a [u8; LEN]);

impl<'a> Ethernet<'a> {
    /// Reads the header at the start of `frame`.
    ///
    /// # Errors
    ///
    /// Fails if the frame is shorter.
    #[inline]
    pub fn new(frame: Copied<'a>) -> Result<Ethernet<'a>, Reason> {
        frame.array(0).map(Ethernet)
    }

    /// Returns the destination.
    #[inline]
    pub fn destination(self) -> Mac {
        let [a, b, c, d, e, f, ..] = *self.0;
        [a, b, c, d, e, f]
    }

    /// Returns the source.
    #[inline]
    pub fn source(self) -> Mac {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = *self.0;
        [a, b, c, d, e, f]
    }

    /// Returns the EtherType.
    #[inline]
    pub fn ether_type(self) -> u16 {
        be16(self.0, 12)
    }
}

/// Returns why frames with this EtherType are not judged further.
#[cold]
pub fn unjudged(ether_type: u16) -> Reason {
    match ether_type {
        0..SMALLEST => Reason::Length8023,
        tag if VLANS.contains(&tag) => Reason::Vlan,
        _ => Reason::EtherType,
    }
}

/// Whether `mac` is a group address: multicast or broadcast.
#[inline]
pub fn is_group(mac: Mac) -> bool {
    mac[0] & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_they_belong() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x86, 0xdd, 99];
        let header = Ethernet::new(Copied::whole(&bytes)).unwrap();
        assert_eq!(header.destination(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(header.source(), [7, 8, 9, 10, 11, 12]);
        assert_eq!(header.ether_type(), IPV6);
        assert!(is_group(header.destination()) && is_group(BROADCAST) && !is_group([2, 0, 0, 0, 0, 1]));
        assert_eq!(Ethernet::new(Copied::whole(&bytes[..13])).unwrap_err(), Reason::Malformed);
        assert_eq!(Ethernet::new(Copied { bytes: &bytes[..13], len: 14 }).unwrap_err(), Reason::BeyondCopy);
    }

    #[test]
    fn other_types_have_their_reasons() {
        for (ether_type, reason) in [
            (0, Reason::Length8023),
            (0x05ff, Reason::Length8023),
            (0x8100, Reason::Vlan),
            (0x88a8, Reason::Vlan),
            (0x88cc, Reason::EtherType),
            (0x0600, Reason::EtherType),
        ] {
            assert_eq!(unjudged(ether_type), reason, "{ether_type:#x}");
        }
    }
}
