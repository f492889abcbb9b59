//! Friendly refusals: what a router that filters would answer, so that the guest's programs fail at once
//! instead of waiting.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4DstUnreachable, Icmpv4Packet,
    Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, IpRepr, Ipv4Repr,
    Ipv6Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};

use crate::header;
use crate::reason::Reason;
use crate::wire::Copied;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::icmp::Kind;
use crate::wire::ip;
use crate::wire::packet::Packet;
use crate::wire::tcp::{ACK, RST, Tcp};
use crate::wire::transport::Transport;

/// Bytes behind the IP header that an ICMP error quotes.
const QUOTED: usize = 64;
const HOP_LIMIT: u8 = 64;

/// Whether a frame that is refused for this reason is answered. A guest that lies about itself is not.
pub fn is_due(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::Fragment
            | Reason::IpOptions
            | Reason::ExtensionHeader
            | Reason::Tunnel
            | Reason::NotNamed
            | Reason::Denied
            | Reason::NotAllowed
            | Reason::NoFlow
            | Reason::TableFull
    )
}

/// Returns the answer to a guest's frame, both with their virtio-net headers: a reset to TCP, otherwise an
/// ICMP error. `None` for frames that are not answered: resets, ICMP except echo requests, later fragments,
/// and frames to groups.
pub fn to(frame: &[u8]) -> Option<Vec<u8>> {
    let bytes = frame.get(header::LEN..)?;
    let copied = Copied { bytes, len: usize::MAX };
    let link = Ethernet::new(copied).ok()?;
    let packet = ip::read(copied, link.ether_type()).ok()?;
    let transport = Transport::new(copied, &packet).ok()?;
    if ethernet::is_group(link.destination()) || packet.destination().is_multicast() {
        return None;
    }
    match transport {
        Transport::Tcp(tcp) if packet.fragment.is_none() => reset(&link, &packet, &tcp),
        Transport::Continuation => None,
        Transport::Icmp(icmp) if icmp.kind != Kind::EchoRequest => None,
        _ => prohibited(&link, &packet, bytes),
    }
}

/// The reset that a closed port would send.
fn reset(link: &Ethernet<'_>, packet: &Packet, tcp: &Tcp) -> Option<Vec<u8>> {
    if tcp.has(RST) {
        return None;
    }
    let (sequence, acknowledgement) = match tcp.has(ACK) {
        true => (tcp.acknowledgement, None),
        false => (0, Some(TcpSeqNumber(tcp.end() as i32))),
    };
    let repr = TcpRepr {
        src_port: tcp.destination,
        dst_port: tcp.source,
        control: TcpControl::Rst,
        seq_number: TcpSeqNumber(sequence as i32),
        ack_number: acknowledgement,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (source, destination) = ends(packet);
    let capabilities = ChecksumCapabilities::default();
    Some(emit(link, packet, IpProtocol::Tcp, repr.buffer_len(), |buffer| {
        repr.emit(&mut TcpPacket::new_unchecked(buffer), &source, &destination, &capabilities);
    }))
}

/// "Communication administratively prohibited".
fn prohibited(link: &Ethernet<'_>, packet: &Packet, bytes: &[u8]) -> Option<Vec<u8>> {
    let quoted = bytes.get(packet.transport..)?;
    let quoted = &quoted[..quoted.len().min(QUOTED).min(packet.payload())];
    let capabilities = ChecksumCapabilities::default();
    match ends(packet) {
        (IpAddress::Ipv4(source), IpAddress::Ipv4(destination)) => {
            let header = Ipv4Repr {
                src_addr: destination,
                dst_addr: source,
                next_header: packet.protocol.into(),
                payload_len: packet.payload(),
                hop_limit: packet.hop_limit,
            };
            let repr = Icmpv4Repr::DstUnreachable {
                reason: Icmpv4DstUnreachable::CommProhibited,
                header,
                data: quoted,
            };
            Some(emit(link, packet, IpProtocol::Icmp, repr.buffer_len(), |buffer| {
                repr.emit(&mut Icmpv4Packet::new_unchecked(buffer), &capabilities);
            }))
        }
        (IpAddress::Ipv6(source), IpAddress::Ipv6(destination)) => {
            let header = Ipv6Repr {
                src_addr: destination,
                dst_addr: source,
                next_header: packet.protocol.into(),
                payload_len: packet.payload(),
                hop_limit: packet.hop_limit,
            };
            let repr = Icmpv6Repr::DstUnreachable {
                reason: Icmpv6DstUnreachable::AdminProhibit,
                header,
                data: quoted,
            };
            Some(emit(link, packet, IpProtocol::Icmpv6, repr.buffer_len(), |buffer| {
                let mut icmp = Icmpv6Packet::new_unchecked(buffer);
                repr.emit(&source, &destination, &mut icmp, &capabilities);
            }))
        }
        _ => None,
    }
}

/// Returns source and destination of an answer.
fn ends(packet: &Packet) -> (IpAddress, IpAddress) {
    (packet.destination().into(), packet.source().into())
}

/// Writes a frame that answers `packet`, with a plain virtio-net header.
fn emit(
    link: &Ethernet<'_>,
    packet: &Packet,
    protocol: IpProtocol,
    len: usize,
    payload: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let (source, destination) = ends(packet);
    let ip = IpRepr::new(source, destination, protocol, len, HOP_LIMIT);
    let ip_at = header::LEN + ethernet::LEN;
    let mut frame = vec![0; (ip_at + ip.buffer_len()).max(header::LEN + ethernet::MIN_LEN)];
    let link = EthernetRepr {
        src_addr: EthernetAddress(link.destination()),
        dst_addr: EthernetAddress(link.source()),
        ethertype: if packet.is_ipv4 { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 },
    };
    link.emit(&mut EthernetFrame::new_unchecked(&mut frame[header::LEN..]));
    ip.emit(&mut frame[ip_at..], &ChecksumCapabilities::default());
    let end = ip_at + ip.buffer_len();
    payload(&mut frame[ip_at + ip.header_len()..end]);
    frame
}
