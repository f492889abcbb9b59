//! IP packets with any headers, in Ethernet frames.

use std::net::IpAddr;

use super::transport::{ICMP, ICMPV6, TCP, UDP};
use crate::frame::checksum;

/// A MAC address.
pub type Mac = [u8; 6];

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Length of an Ethernet header.
pub const ETHER_LEN: usize = 14;

/// Extension headers of IPv6.
#[expect(missing_docs, reason = "the names are those of RFC 8200")]
pub mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const NO_NEXT: u8 = 59;
    pub const DESTINATION: u8 = 60;
}

/// Returns an Ethernet frame, without padding.
pub fn ether((to, from): (Mac, Mac), kind: u16, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.to_be_bytes(), payload].concat()
}

/// Where a fragment belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its offset in bytes, a multiple of 8.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
}

/// An IP packet in its frame. Lengths and checksums follow from the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Destination and source MAC address.
    pub macs: (Mac, Mac),
    /// Source address.
    pub from: IpAddr,
    /// Destination address.
    pub to: IpAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Time to live, or hop limit.
    pub hops: u8,
    /// Options of IPv4, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// Extension headers of IPv6: kind, and all bytes after the next header's kind.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// Place of a fragment. With IPv6, a fragment header follows the other extension headers.
    pub place: Option<Place>,
    /// What it carries.
    pub payload: Vec<u8>,
    /// Bytes that its length adds or lacks.
    pub length_error: i32,
    /// Bytes behind the packet.
    pub trailer: Vec<u8>,
}

impl Packet {
    /// Returns a plain packet.
    pub fn new(macs: (Mac, Mac), ends: (IpAddr, IpAddr), protocol: u8, payload: Vec<u8>) -> Packet {
        let (from, to) = ends;
        Packet {
            macs,
            from,
            to,
            protocol,
            hops: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            place: None,
            payload,
            length_error: 0,
            trailer: Vec::new(),
        }
    }

    /// Sets the destination MAC address.
    #[must_use]
    pub fn at(mut self, to: Mac) -> Packet {
        self.macs.0 = to;
        self
    }

    /// Sets the source MAC address.
    #[must_use]
    pub fn by(mut self, from: Mac) -> Packet {
        self.macs.1 = from;
        self
    }

    /// Sets the source address.
    #[must_use]
    pub fn from(mut self, from: IpAddr) -> Packet {
        self.from = from;
        self
    }

    /// Sets the destination address.
    #[must_use]
    pub fn to(mut self, to: IpAddr) -> Packet {
        self.to = to;
        self
    }

    /// Sets the hop limit.
    #[must_use]
    pub fn hops(mut self, hops: u8) -> Packet {
        self.hops = hops;
        self
    }

    /// Adds IPv4 options.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Packet {
        self.options.extend(options);
        self
    }

    /// Adds an extension header of IPv6, by its bytes after the kind of the next one.
    #[must_use]
    pub fn extension(mut self, kind: u8, rest: &[u8]) -> Packet {
        self.extensions.push((kind, rest.to_vec()));
        self
    }

    /// Makes it a fragment.
    #[must_use]
    pub fn fragment(mut self, offset: u16, more: bool) -> Packet {
        self.place = Some(Place { offset, more });
        self
    }

    /// Returns the offset of what it carries, in the frame.
    pub fn transport(&self) -> usize {
        let extensions: usize = self.extensions.iter().map(|(_, rest)| 1 + rest.len()).sum();
        ETHER_LEN
            + match self.from {
                IpAddr::V4(_) => 20 + self.options.len(),
                IpAddr::V6(_) => 40 + extensions + if self.place.is_some() { 8 } else { 0 },
            }
    }

    /// Returns the packet alone.
    pub fn bytes(&self) -> Vec<u8> {
        let mut payload = self.payload.clone();
        if self.place.is_none() {
            self.fill_checksum(&mut payload);
        }
        let header = if self.from.is_ipv4() { self.v4(payload.len()) } else { self.v6(payload.len()) };
        [header, payload].concat()
    }

    /// Returns the frame.
    pub fn frame(&self) -> Vec<u8> {
        let kind = if self.from.is_ipv4() { IPV4 } else { IPV6 };
        ether(self.macs, kind, &[self.bytes(), self.trailer.clone()].concat())
    }

    fn v4(&self, payload: usize) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = ((header + payload) as i32 + self.length_error) as u16;
        let place = self.place.map_or(0x4000, |place| (place.offset / 8) | (u16::from(place.more) << 13));
        let mut bytes = vec![0x40 | (header / 4) as u8, 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend([0x12, 0x34]);
        bytes.extend(place.to_be_bytes());
        bytes.extend([self.hops, self.protocol, 0, 0]);
        bytes.extend(octets(self.from));
        bytes.extend(octets(self.to));
        bytes.extend(&self.options);
        let sum = checksum(&bytes, 0);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn v6(&self, payload: usize) -> Vec<u8> {
        let mut headers = self.extensions.clone();
        if let Some(place) = self.place {
            let [high, low] = ((place.offset & !7) | u16::from(place.more)).to_be_bytes();
            headers.push((extension::FRAGMENT, vec![0, high, low, 0x12, 0x34, 0x56, 0x78]));
        }
        let kinds = headers.iter().map(|(kind, _)| *kind).chain([self.protocol]);
        let length: usize = headers.iter().map(|(_, rest)| 1 + rest.len()).sum();
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((((length + payload) as i32 + self.length_error) as u16).to_be_bytes());
        bytes.extend([kinds.clone().next().unwrap_or_default(), self.hops]);
        bytes.extend(octets(self.from));
        bytes.extend(octets(self.to));
        for ((_, rest), next) in headers.iter().zip(kinds.skip(1)) {
            bytes.push(next);
            bytes.extend(rest);
        }
        bytes
    }

    /// Fills in the checksum of a transport that has one.
    fn fill_checksum(&self, payload: &mut [u8]) {
        let (at, pseudo) = match self.protocol {
            TCP => (16, true),
            UDP => (6, true),
            ICMP => (2, false),
            ICMPV6 => (2, true),
            _ => return,
        };
        if payload.len() < at + 2 {
            return;
        }
        payload[at..at + 2].fill(0);
        let start = if pseudo {
            let ends = [octets(self.from), octets(self.to)].concat();
            u32::from(!checksum(&ends, u32::from(self.protocol) + payload.len() as u32))
        } else {
            0
        };
        let sum = checksum(payload, start);
        payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Returns the bytes of an address.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
