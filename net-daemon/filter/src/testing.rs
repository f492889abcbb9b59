//! Frames for tests, header first.

use std::net::IpAddr;

use crate::header;
use crate::wire::ethernet::Mac;

/// The guest's addresses in tests.
pub(crate) const GUEST: Mac = [2, 0, 0, 0, 0, 1];
/// The gateway's.
pub(crate) const GATEWAY: Mac = [2, 0, 0, 0, 0, 0xfe];

/// Parses an address.
pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// An Ethernet frame behind an empty virtio-net header.
pub(crate) fn ethernet(destination: Mac, source: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; header::LEN];
    frame.extend(destination);
    frame.extend(source);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IP packet of the addresses' family in a frame between two hosts.
pub(crate) fn packet(macs: (Mac, Mac), ends: (&str, &str), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (bytes, ether_type) = match (ip(ends.0), ip(ends.1)) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = (20 + payload.len() as u16).to_be_bytes();
            let mut bytes = vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            (bytes, 0x0800)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = (payload.len() as u16).to_be_bytes();
            let mut bytes = vec![0x60, 0, 0, 0, high, low, protocol, 255];
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            (bytes, 0x86dd)
        }
        _ => panic!("addresses of two families"),
    };
    ethernet(macs.0, macs.1, ether_type, &[&bytes[..], payload].concat())
}

/// A TCP segment with a window of 1000.
pub(crate) fn tcp(ports: (u16, u16), flags: u8, numbers: (u32, u32), data: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend(numbers.0.to_be_bytes());
    bytes.extend(numbers.1.to_be_bytes());
    bytes.extend([0x50, flags, 0x03, 0xe8, 0, 0, 0, 0]);
    bytes.extend(vec![7; data]);
    bytes
}

/// A UDP datagram.
pub(crate) fn udp(ports: (u16, u16), data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend((8 + data.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(data);
    bytes
}

/// An ICMP message of this type.
pub(crate) fn icmp(message: u8, identifier: u16, data: &[u8]) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    [&[message, 0, 0, 0, high, low, 0, 1], data].concat()
}

/// Changes bytes of a frame, from `at` behind the virtio-net header on.
pub(crate) fn with(mut frame: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    frame[header::LEN + at..][..bytes.len()].copy_from_slice(bytes);
    frame
}
