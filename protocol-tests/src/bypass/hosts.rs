//! The addresses of the tests, in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::packet::{Mac, Packet};
use super::transport::{self, ICMP, ICMPV6, TCP, UDP};

/// The guest's MAC address.
pub const GUEST: Mac = [0x52, 0x54, 0, 1, 2, 3];
/// The gateway's MAC address.
pub const GATEWAY: Mac = [0x52, 0x54, 0, 0, 0, 1];
/// The MAC address of a host on the link that rules name.
pub const NEIGHBOUR: Mac = [0x52, 0x54, 0, 0, 0, 0x20];
/// The MAC address of a host on the link that no rule names.
pub const STRANGER: Mac = [0x52, 0x54, 0, 0, 0, 0x99];
/// The broadcast address.
pub const BROADCAST: Mac = [0xff; 6];

/// The addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// `IPv4` or `IPv6`, for messages.
    pub name: &'static str,
    /// The guest.
    pub guest: IpAddr,
    /// The gateway.
    pub gateway: IpAddr,
    /// A host on the link that rules name.
    pub neighbour: IpAddr,
    /// A host on the link that no rule names.
    pub stranger: IpAddr,
    /// A host behind the gateway that rules allow.
    pub remote: IpAddr,
    /// A host in the same prefix that a deny rule names.
    pub denied: IpAddr,
    /// A host behind the gateway that no rule names.
    pub elsewhere: IpAddr,
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host))
}

/// Those of IPv4.
pub const V4: Hosts = Hosts {
    name: "IPv4",
    guest: v4(192, 0, 2, 10),
    gateway: v4(192, 0, 2, 1),
    neighbour: v4(192, 0, 2, 20),
    stranger: v4(192, 0, 2, 99),
    remote: v4(198, 51, 100, 7),
    denied: v4(198, 51, 100, 66),
    elsewhere: v4(203, 0, 113, 7),
};
/// Those of IPv6.
pub const V6: Hosts = Hosts {
    name: "IPv6",
    guest: v6(1, 0x10),
    gateway: v6(1, 1),
    neighbour: v6(1, 0x20),
    stranger: v6(1, 0x99),
    remote: v6(5, 7),
    denied: v6(5, 0x66),
    elsewhere: v6(9, 7),
};
/// Both families.
pub const BOTH: [Hosts; 2] = [V4, V6];

/// The port of UDP and TCP that rules allow, at both ends.
pub const OPEN: u16 = 1000;
/// A port that no rule allows.
pub const SHUT: u16 = 1001;
/// A port of the guest.
pub const OWN: u16 = 40_000;

/// The policy of the book. `refuse = "drop"` keeps answers out of the guest's buffers.
pub const POLICY: &str = r#"
refuse = "drop"

[network]
on-link = ["192.0.2.0/24", "2001:db8:1::/64"]
gateways = ["192.0.2.1", "2001:db8:1::1"]

[[allow]]
to = ["198.51.100.0/24", "2001:db8:5::/48", "192.0.2.20", "2001:db8:1::20"]
protocol = "udp"
ports = 1000

[[allow]]
to = ["198.51.100.0/24", "2001:db8:5::/48", "192.0.2.20", "2001:db8:1::20"]
protocol = "tcp"
ports = 1000

[[allow]]
to = ["198.51.100.0/24", "2001:db8:5::/48", "192.0.2.20", "2001:db8:1::20"]
protocol = "icmp"

[[allow]]
from = ["198.51.100.0/24", "2001:db8:5::/48"]
protocol = "udp"
ports = 1000

[[allow]]
from = ["198.51.100.0/24", "2001:db8:5::/48"]
protocol = "tcp"
ports = 1000

[[deny]]
to = ["198.51.100.66", "2001:db8:5::66"]
"#;

impl Hosts {
    /// Whether they are those of IPv6.
    pub fn is_v6(&self) -> bool {
        self.guest.is_ipv6()
    }

    /// Returns the protocol number of ICMP.
    pub fn icmp(&self) -> u8 {
        if self.is_v6() { ICMPV6 } else { ICMP }
    }

    /// Returns a packet from the guest to `to`, by the gateway.
    pub fn out(&self, to: IpAddr, protocol: u8, payload: Vec<u8>) -> Packet {
        Packet::new((GATEWAY, GUEST), (self.guest, to), protocol, payload)
    }

    /// Returns a packet from `from` to the guest, by the gateway.
    pub fn inward(&self, from: IpAddr, protocol: u8, payload: Vec<u8>) -> Packet {
        Packet::new((GUEST, GATEWAY), (from, self.guest), protocol, payload)
    }

    /// Returns a datagram from the guest to this port of `to`, by the gateway.
    pub fn udp_to(&self, to: IpAddr, port: u16) -> Packet {
        self.out(to, UDP, transport::udp(OWN, port, b"bypass"))
    }

    /// Returns a datagram from this port of `from` to this port of the guest, by the gateway.
    pub fn udp_from(&self, from: IpAddr, ports: (u16, u16)) -> Packet {
        self.inward(from, UDP, transport::udp(ports.0, ports.1, b"bypass"))
    }

    /// Returns the segment that opens a connection from the guest to this port of `to`, by the gateway.
    pub fn syn_to(&self, to: IpAddr, port: u16) -> Packet {
        self.out(to, TCP, transport::tcp((OWN, port), transport::SYN, (1000, 0), b""))
    }

    /// Returns an echo request from the guest to `to`, by the gateway.
    pub fn ping_to(&self, to: IpAddr, identifier: u16) -> Packet {
        self.out(to, self.icmp(), transport::echo(self.is_v6(), true, identifier, b"bypass"))
    }
}
