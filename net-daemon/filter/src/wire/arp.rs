//! ARP for IPv4 over Ethernet (RFC 826), and the RARP frame that announces a guest that has arrived.

use std::net::Ipv4Addr;

use crate::reason::Reason;
use crate::wire::ethernet::{self, BROADCAST, Mac};
use crate::wire::{Copied, be16, be32};

/// Length of the message.
pub const LEN: usize = 28;
/// Operation: who has?
pub const REQUEST: u16 = 1;
/// Operation: is at.
pub const REPLY: u16 = 2;
/// Operation of RARP: which address have I?
const REVERSE_REQUEST: u16 = 3;

/// An ARP message.
#[derive(Clone, Copy, Debug)]
pub struct Arp<'a>(&'a [u8; LEN]);

impl<'a> Arp<'a> {
    /// Reads the message behind the Ethernet header of `frame`.
    ///
    /// # Errors
    ///
    /// Fails if the frame is too short, or the message is not for IPv4 over Ethernet.
    pub fn new(frame: Copied<'a>) -> Result<Arp<'a>, Reason> {
        let arp = Arp(frame.array(ethernet::LEN).map_err(|_| Reason::Arp)?);
        // Ethernet, IPv4, 6 and 4 bytes.
        match arp.0[..6] == [0, 1, 8, 0, 6, 4] {
            true => Ok(arp),
            false => Err(Reason::Arp),
        }
    }

    /// Returns the operation.
    pub fn operation(self) -> u16 {
        be16(self.0, 6)
    }

    /// Returns the sender's MAC address.
    pub fn sender_mac(self) -> Mac {
        std::array::from_fn(|at| self.0[8 + at])
    }

    /// Returns the sender's IP address.
    pub fn sender(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.0, 14))
    }

    /// Returns the target's MAC address.
    pub fn target_mac(self) -> Mac {
        std::array::from_fn(|at| self.0[18 + at])
    }

    /// Returns the target's IP address.
    pub fn target(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(be32(self.0, 24))
    }
}

/// Whether `frame` announces that the guest with address `mac` is here, and nothing else: the RARP request
/// about itself, by which switches learn its new place after a live migration.
pub fn announces(frame: Copied<'_>, mac: Mac) -> bool {
    let Ok(arp) = Arp::new(frame) else { return false };
    let Ok(header) = ethernet::Ethernet::new(frame) else { return false };
    // A longer frame could say anything behind the bytes that are judged.
    frame.len <= ethernet::MIN_LEN
        && header.ether_type() == ethernet::RARP
        && header.destination() == BROADCAST
        && arp.operation() == REVERSE_REQUEST
        && arp.sender_mac() == mac
        && arp.target_mac() == mac
        && arp.sender().is_unspecified()
        && arp.target().is_unspecified()
        && frame.bytes[ethernet::LEN + LEN..].iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message as smoltcp writes it.
    #[test]
    fn what_another_implementation_writes_is_read() {
        use smoltcp::wire::{ArpOperation, ArpPacket, ArpRepr, EthernetAddress};
        let (sender, target) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr: EthernetAddress([2, 0, 0, 0, 0, 1]),
            source_protocol_addr: sender,
            target_hardware_addr: EthernetAddress([2, 0, 0, 0, 0, 2]),
            target_protocol_addr: target,
        };
        let mut frame = vec![0; ethernet::LEN + LEN];
        repr.emit(&mut ArpPacket::new_unchecked(&mut frame[ethernet::LEN..]));
        let arp = Arp::new(Copied::whole(&frame)).unwrap();
        assert_eq!((arp.operation(), arp.sender(), arp.target()), (REPLY, sender, target));
        assert_eq!((arp.sender_mac(), arp.target_mac()), ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]));
        for at in 0..6 {
            let mut other = frame.clone();
            other[ethernet::LEN + at] ^= 1;
            assert_eq!(Arp::new(Copied::whole(&other)).unwrap_err(), Reason::Arp);
        }
        assert_eq!(Arp::new(Copied::whole(&frame[..41])).unwrap_err(), Reason::Arp);
    }
}
