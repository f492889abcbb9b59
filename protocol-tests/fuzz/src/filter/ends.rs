//! Who talks to whom: MAC addresses, the guest's addresses, and those of others.

use std::net::{IpAddr, Ipv6Addr};

use super::read::Mac;

pub(super) const GUEST: Mac = [2, 0, 0, 0, 0, 1];
pub(super) const GATEWAY: Mac = [2, 0, 0, 0, 0, 0xfe];
pub(super) const NEIGHBOUR: Mac = [2, 0, 0, 0, 0, 9];

/// The guest's addresses, given and possible ones, and some of others.
const GUESTS: [[&str; 8]; 2] = [
    [
        "192.0.2.10",
        "192.0.2.10",
        "192.0.2.10",
        "192.0.2.50",
        "0.0.0.0",
        "192.0.2.77",
        "192.0.2.10",
        "10.1.2.3",
    ],
    [
        "2001:db8:1::10",
        "2001:db8:1::10",
        "fe80::ff:fe00:1",
        "2001:db8:1::20",
        "::",
        "2001:db8:1::",
        "2001:db8:1::30",
        "2001:db8:2::5",
    ],
];
/// Peers: allowed, denied, neighbours, a client, the gateway, private and special ones.
const PEERS: [[&str; 16]; 2] = [
    [
        "198.51.100.7",
        "198.51.100.7",
        "198.51.100.66",
        "192.0.2.7",
        "192.0.2.8",
        "203.0.113.9",
        "203.0.113.9",
        "192.0.2.1",
        "10.1.2.3",
        "169.254.169.254",
        "224.0.0.251",
        "255.255.255.255",
        "192.0.2.10",
        "8.8.8.8",
        "127.0.0.1",
        "0.0.0.0",
    ],
    [
        "2001:db8:5::7",
        "2001:db8:5::7",
        "2001:db8:5::66",
        "2001:db8:1::7",
        "2001:db8:1::8",
        "2001:db8:9::9",
        "2001:db8:9::9",
        "fe80::fe",
        "fd00::1",
        "fd00:ec2::254",
        "ff02::1",
        "ff02::2",
        "ff02::16",
        "2001:db8:1::10",
        "::1",
        "::ffff:198.51.100.7",
    ],
];

/// Returns the address at which `address` is solicited.
pub(super) fn solicited(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c].into()
}

/// Returns the MAC address of a multicast group.
pub(super) fn group_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

pub(super) fn guest(v6: bool, choice: u8) -> IpAddr {
    GUESTS[usize::from(v6)][usize::from(choice) % 8].parse().expect("an address")
}

pub(super) fn peer(v6: bool, choice: u8) -> IpAddr {
    PEERS[usize::from(v6)][usize::from(choice) % 16].parse().expect("an address")
}

/// Returns the MAC address by which a good guest reaches `address`.
pub(super) fn mac_of(address: IpAddr) -> Mac {
    match address {
        IpAddr::V4(v4) if v4.is_broadcast() => [0xff; 6],
        IpAddr::V4(v4) if v4.is_multicast() => {
            let [_, b, c, d] = v4.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V6(v6) if v6.is_multicast() => group_mac(v6),
        IpAddr::V4(v4) if v4.octets()[..3] == [192, 0, 2] && v4.octets()[3] != 1 => NEIGHBOUR,
        IpAddr::V6(v6) if v6.segments()[..3] == [0x2001, 0xdb8, 1] => NEIGHBOUR,
        _ => GATEWAY,
    }
}
