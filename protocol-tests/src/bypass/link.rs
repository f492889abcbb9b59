//! ARP, neighbour discovery and DHCP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::hosts::{BROADCAST, GUEST};
use super::packet::{Mac, Packet, ether, octets};
use super::transport::{self, ICMPV6, UDP};

/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of RARP.
pub const RARP: u16 = 0x8035;
/// Shortest frame without its checksum.
pub const SHORTEST: usize = 60;

/// An ARP message in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// Destination and source MAC address of the frame.
    pub macs: (Mac, Mac),
    /// EtherType.
    pub kind: u16,
    /// 1: request, 2: reply.
    pub operation: u16,
    /// MAC and IP address of the sender.
    pub sender: (Mac, IpAddr),
    /// MAC and IP address of the target.
    pub target: (Mac, IpAddr),
}

impl Arp {
    /// Returns a request of the guest's MAC address from `sender` for `target`.
    pub fn request(sender: IpAddr, target: IpAddr) -> Arp {
        let macs = (BROADCAST, GUEST);
        Arp { macs, kind: ARP, operation: 1, sender: (GUEST, sender), target: ([0; 6], target) }
    }

    /// Returns a reply of `mac`, which says that it has `sender`, to the MAC address `to`, which has
    /// `target`.
    pub fn reply((mac, sender): (Mac, IpAddr), (to, target): (Mac, IpAddr)) -> Arp {
        Arp { macs: (to, mac), kind: ARP, operation: 2, sender: (mac, sender), target: (to, target) }
    }

    /// Returns the frame, padded to the shortest one with zeros.
    pub fn frame(&self) -> Vec<u8> {
        let mut message = vec![0, 1, 8, 0, 6, 4];
        message.extend(self.operation.to_be_bytes());
        for (mac, address) in [self.sender, self.target] {
            message.extend(mac);
            message.extend(octets(address));
        }
        let mut frame = ether(self.macs, self.kind, &message);
        frame.resize(SHORTEST, 0);
        frame
    }
}

/// Option of neighbour discovery: MAC address of the sender.
pub const SOURCE: u8 = 1;
/// Option of neighbour discovery: MAC address of the target.
pub const TARGET: u8 = 2;

/// Returns an option with a MAC address.
pub fn mac_option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1], &mac[..]].concat()
}

/// Returns the address of the nodes that listen for `address`.
pub fn solicited(address: IpAddr) -> IpAddr {
    let bytes = octets(address);
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&bytes[bytes.len() - 3..]);
    IpAddr::V6(Ipv6Addr::from(group))
}

/// Returns the MAC address of a multicast group of IPv6.
pub fn group_mac(group: IpAddr) -> Mac {
    let bytes = octets(group);
    [0x33, 0x33, bytes[12], bytes[13], bytes[14], bytes[15]]
}

/// Returns a packet of neighbour discovery to `ends.1`, by the guest; to a group by the group's MAC address.
pub fn discovery(ends: (IpAddr, IpAddr), to: Mac, message: Vec<u8>) -> Packet {
    let to = if ends.1.is_multicast() { group_mac(ends.1) } else { to };
    Packet::new((to, GUEST), ends, ICMPV6, message).hops(255)
}

/// Returns a solicitation for `target`.
pub fn solicitation(target: IpAddr, options: &[u8]) -> Vec<u8> {
    transport::icmp(135, 0, &[&[0; 4], &octets(target)[..], options].concat())
}

/// Returns an advertisement of `target` that overrides others.
pub fn advertisement(target: IpAddr, options: &[u8]) -> Vec<u8> {
    transport::icmp(136, 0, &[&[0x20, 0, 0, 0], &octets(target)[..], options].concat())
}

/// Returns a router advertisement with a lifetime of 1800 seconds.
pub fn router_advertisement(options: &[u8]) -> Vec<u8> {
    transport::icmp(134, 0, &[&[64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0], options].concat())
}

/// Returns a DHCP message: request or reply, for the client with this MAC address. A reply acknowledges
/// `assigned`.
pub fn dhcp(is_request: bool, client: Mac, assigned: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![if is_request { 1 } else { 2 }, 1, 6, 0, 0x12, 0x34, 0x56, 0x78];
    bytes.extend([0; 8]);
    bytes.extend(assigned.octets());
    bytes.extend([0; 8]);
    bytes.extend(client);
    bytes.resize(236, 0);
    bytes.extend([99, 130, 83, 99, 53, 1, if is_request { 1 } else { 5 }]);
    if !is_request {
        bytes.extend([51, 4, 0, 0, 14, 16]);
    }
    bytes.push(255);
    bytes
}

/// Returns a broadcast of a DHCP client with the guest's frame addresses, for the client `client`.
pub fn dhcp_request(client: Mac) -> Packet {
    let ends = (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into());
    let message = dhcp(true, client, Ipv4Addr::UNSPECIFIED);
    Packet::new((BROADCAST, GUEST), ends, UDP, transport::udp(68, 67, &message))
}
