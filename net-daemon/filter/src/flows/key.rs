//! What tells flows apart.

use std::hash::Hasher;
use std::net::IpAddr;

use crate::Way;
use crate::wire::packet::{Packet, Words, address, words};
use crate::wire::tcp;
use crate::wire::transport::Transport;
use crate::wire::udp;

/// Words of a key.
pub const WORDS: usize = 5;

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    V4 = 0,
    V6 = 1,
    /// Fragments between two addresses, of a protocol: they have no ports.
    FragmentV4 = 2,
    FragmentV6 = 3,
    /// The MAC address of a host on the link.
    NeighbourV4 = 4,
    NeighbourV6 = 5,
}

/// The key of an entry: `[peer, guest, protocol and ports]`. It is the same for both ways of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key(pub(super) [u64; WORDS]);

impl Key {
    /// Returns the key of the flow that `packet` belongs to. Echo messages have their identifier as the port
    /// of the guest, and the way of the request as that of the peer.
    #[inline]
    pub fn of(way: Way, packet: &Packet, transport: &Transport) -> Key {
        let (guest, peer) = match way {
            Way::Out => (packet.source_words, packet.destination_words),
            Way::In => (packet.destination_words, packet.source_words),
        };
        let fragment = packet.fragment.is_some();
        let (guest_port, peer_port) = match transport {
            _ if fragment => (0, 0),
            Transport::Icmp(icmp) => {
                let is_request = icmp.kind == crate::wire::icmp::Kind::EchoRequest;
                (icmp.identifier, u16::from(is_request == (way == Way::In)))
            }
            _ => match (transport.ports(), way) {
                (Some((source, destination)), Way::Out) => (source, destination),
                (Some((source, destination)), Way::In) => (destination, source),
                (None, _) => (0, 0),
            },
        };
        let kind = match (fragment, packet.is_ipv4) {
            (false, true) => Kind::V4,
            (false, false) => Kind::V6,
            (true, true) => Kind::FragmentV4,
            (true, false) => Kind::FragmentV6,
        };
        Key::new(kind, peer, guest, packet.protocol, guest_port, peer_port)
    }

    /// Returns the key of the flow whose packet an ICMP error quotes. The error goes this `way`, so the
    /// packet went the other.
    pub fn quoted(way: Way, packet: &Packet, ports: Option<(u16, u16)>) -> Key {
        let (guest, peer, ports) = match (way, ports) {
            (Way::In, ports) => (packet.source_words, packet.destination_words, ports.unwrap_or_default()),
            (Way::Out, ports) => {
                let (source, destination) = ports.unwrap_or_default();
                (packet.destination_words, packet.source_words, (destination, source))
            }
        };
        let kind = if packet.is_ipv4 { Kind::V4 } else { Kind::V6 };
        Key::new(kind, peer, guest, packet.protocol, ports.0, ports.1)
    }

    /// Returns the key of a host on the link.
    pub fn neighbour(host: IpAddr) -> Key {
        let kind = if host.is_ipv4() { Kind::NeighbourV4 } else { Kind::NeighbourV6 };
        Key::new(kind, words(host), [0, 0], 0, 0, 0)
    }

    fn new(kind: Kind, peer: Words, guest: Words, protocol: u8, guest_port: u16, peer_port: u16) -> Key {
        let rest = (kind as u64) << 40
            | u64::from(protocol) << 32
            | u64::from(guest_port) << 16
            | u64::from(peer_port);
        Key([peer[0], peer[1], guest[0], guest[1], rest])
    }

    /// Feeds the key to `hasher`. IPv4 addresses take one word together, which halves the work.
    #[inline]
    pub(super) fn hash_into(&self, hasher: &mut impl Hasher) {
        let [_, peer, _, guest, rest] = self.0;
        let kind = rest >> 40;
        if kind == Kind::V4 as u64 || kind == Kind::FragmentV4 as u64 {
            hasher.write_u64(peer << 32 | guest);
            hasher.write_u64(rest);
        } else {
            self.0.iter().for_each(|word| hasher.write_u64(*word));
        }
    }

    /// Returns the peer.
    pub fn peer(self) -> IpAddr {
        let kind = self.0[4] >> 40;
        let is_ipv4 = [Kind::V4, Kind::FragmentV4, Kind::NeighbourV4].iter().any(|v4| *v4 as u64 == kind);
        address([self.0[0], self.0[1]], is_ipv4)
    }

    /// Returns the protocol number.
    pub fn protocol(self) -> u8 {
        (self.0[4] >> 32) as u8
    }

    /// Whether its packets are fragments.
    pub fn is_fragment(self) -> bool {
        matches!(self.0[4] >> 40, kind if kind == Kind::FragmentV4 as u64 || kind == Kind::FragmentV6 as u64)
    }

    /// Returns the port that a flow opens: that of the end that did not open it. `None` without ports.
    pub fn port(self, opened: Way) -> Option<u16> {
        let has_ports = matches!(self.protocol(), tcp::PROTOCOL | udp::PROTOCOL) && !self.is_fragment();
        let port = match opened {
            Way::Out => self.0[4] as u16,
            Way::In => (self.0[4] >> 16) as u16,
        };
        has_ports.then_some(port)
    }
}
