//! What a frame says in a few words, for lists of refused frames. Best effort: the frame may be malformed.

use std::net::IpAddr;

use crate::Way;
use crate::header;
use crate::wire::Copied;
use crate::wire::arp::Arp;
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::ip;
use crate::wire::transport::Transport;

/// A few words on a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Summary {
    /// Its way.
    pub way: Way,
    /// Destination and source MAC address.
    pub macs: [Mac; 2],
    /// EtherType.
    pub ether_type: u16,
    /// IP addresses of source and destination; of sender and target with ARP.
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// Protocol number of an IP packet.
    pub protocol: Option<u8>,
    /// Ports of source and destination.
    pub ports: Option<(u16, u16)>,
}

impl Summary {
    /// Summarises the first bytes of a frame, which begins with its virtio-net header.
    pub fn of(way: Way, frame: &[u8]) -> Summary {
        let bytes = frame.get(header::LEN..).unwrap_or_default();
        // The frame may be longer.
        let frame = Copied { bytes, len: usize::MAX };
        let mut summary =
            Summary { way, macs: [[0; 6]; 2], ether_type: 0, addresses: None, protocol: None, ports: None };
        let Ok(link) = Ethernet::new(frame) else { return summary };
        summary.macs = [link.destination(), link.source()];
        summary.ether_type = link.ether_type();
        if summary.ether_type == ethernet::ARP
            && let Ok(message) = Arp::new(frame)
        {
            summary.addresses = Some((message.sender().into(), message.target().into()));
        } else if let Ok(packet) = ip::read(frame, summary.ether_type) {
            summary.addresses = Some((packet.source(), packet.destination()));
            summary.protocol = Some(packet.protocol);
            summary.ports = Transport::new(frame, &packet).ok().and_then(|transport| transport.ports());
        }
        summary
    }

    /// Returns the address of the other end.
    pub fn peer(&self) -> Option<IpAddr> {
        self.addresses.map(|(source, destination)| match self.way {
            Way::Out => destination,
            Way::In => source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GATEWAY, GUEST, ip, packet, udp};

    #[test]
    fn frames_are_summarised_as_far_as_they_can_be_read() {
        let frame = packet((GATEWAY, GUEST), ("192.0.2.10", "198.51.100.7"), 17, &udp((5, 53), b""));
        let all = Summary::of(Way::Out, &frame);
        assert_eq!((all.macs, all.ether_type, all.protocol), ([GATEWAY, GUEST], 0x0800, Some(17)));
        assert_eq!((all.ports, all.peer()), (Some((5, 53)), Some(ip("198.51.100.7"))));
        for len in 0..frame.len() {
            let part = Summary::of(Way::In, &frame[..len]);
            assert_eq!(part.ports.is_some(), len >= frame.len(), "{len}");
        }
    }
}
