//! What holds for each frame that leaves, whatever the model says.

use std::net::{IpAddr, Ipv4Addr};

use super::ends::GUEST;
use super::read::{Bytes, Load, ip, load};
use super::rules::Policy;

/// Checks a frame that a filter let out, header first. `own` are the guest's addresses.
pub(super) fn outgoing(frame: &[u8], policy: Option<&Policy>, own: &[IpAddr]) {
    let bytes = Bytes { bytes: &frame[12..], len: usize::MAX };
    assert_eq!(bytes.mac(6), Ok(GUEST), "another source");
    let kind = u16::from_be_bytes([frame[24], frame[25]]);
    let v6 = match kind {
        0x0800 => false,
        0x86dd => true,
        _ => return assert!([0x0806, 0x8035].contains(&kind), "EtherType {kind:#x}"),
    };
    let packet = ip(&bytes, 14, v6, true).expect("a packet");
    let carried = load(&bytes, &packet).expect("a load");
    check_header(frame, packet.at, &carried);
    let is_discovery = matches!(carried, Load::Icmp(131..=133 | 135 | 136 | 143, _)) && v6;
    let is_dhcp = matches!(carried, Load::Udp((68, 67))) && !v6;
    let source = packet.source;
    let link_local = matches!(source, IpAddr::V6(v6) if v6.is_unicast_link_local() && v6.segments()[7] == 1);
    let asks = source.is_unspecified() && (is_discovery || is_dhcp);
    assert!(own.contains(&source) || link_local || asks, "from {source}");
    let Some(policy) = policy.filter(|policy| !policy.log) else { return };
    if is_discovery {
        let is_listener = matches!(carried, Load::Icmp(131 | 132 | 143, _));
        assert!(is_listener || packet.hop_limit == 255, "forwarded neighbour discovery");
        return;
    }
    let is_error =
        matches!(carried, Load::Icmp(kind, _) if if v6 { kind < 128 } else { ![0, 8].contains(&kind) });
    let to = packet.destination;
    if !is_dhcp {
        // An error is about a packet of any protocol.
        let known = [packet.protocol, 6, 17, 47].map(|protocol| policy.knows(to, protocol));
        assert!(known[0] || is_error && known.contains(&true), "to {to}");
    }
    let is_broadcast = to == IpAddr::V4(Ipv4Addr::BROADCAST);
    assert!(frame[12] & 1 == 0 || is_dhcp && is_broadcast, "to a group of the link");
    assert!(!packet.rerouted, "a source route");
}

/// Checks a virtio-net header against the packet's transport.
fn check_header(frame: &[u8], at: usize, carried: &Load) {
    let field = |at: usize| u16::from_le_bytes([frame[at], frame[at + 1]]);
    assert_eq!((frame[0] & !1, field(10)), (0, 0), "unknown flags");
    let (checksum, own) = match carried {
        Load::Tcp(_, segment) => (16, segment.header),
        Load::Udp(_) => (6, 8),
        _ => return assert_eq!(frame[..12], [0; 12], "offloads of another protocol"),
    };
    let headers = (at + own) as u16;
    match frame[0] {
        0 => assert_eq!((field(6), field(8), frame[1]), (0, 0, 0), "segments without a checksum"),
        _ => assert_eq!((field(2), field(6), field(8)), (headers, at as u16, checksum), "another place"),
    }
    let (is_tcp, is_v6) = (checksum == 16, frame[24] == 0x86);
    let fits = match frame[1] & 0x7f {
        0 => frame[1] == 0,
        1 => is_tcp && !is_v6,
        4 => is_tcp && is_v6,
        3 | 5 => !is_tcp && frame[1] < 0x80,
        _ => false,
    };
    assert!(fits, "segmentation of another protocol");
}
