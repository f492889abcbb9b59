use super::read as read_packet;
use super::*;
use crate::header;
use crate::testing::{GATEWAY, GUEST, icmp, ip as address, packet, tcp, udp, with};
use crate::wire::packet::Fragment;
use crate::wire::transport::Transport;

const V4: (&str, &str) = ("192.0.2.10", "198.51.100.7");
const V6: (&str, &str) = ("2001:db8::10", "2001:db8:5::7");

fn read(frame: &[u8]) -> Result<(Packet, Transport), Reason> {
    let copied = Copied::whole(&frame[header::LEN..]);
    let ether_type = ethernet::Ethernet::new(copied)?.ether_type();
    let packet = read_packet(copied, ether_type)?;
    Ok((packet, Transport::new(copied, &packet)?))
}

fn sent(ends: (&str, &str), protocol: u8, payload: &[u8]) -> Vec<u8> {
    packet((GATEWAY, GUEST), ends, protocol, payload)
}

#[test]
fn packets_of_both_families_are_read() {
    for (ends, transport) in [(V4, 34), (V6, 54)] {
        let (packet, carried) = read(&sent(ends, 17, &udp((5, 53), b"abc"))).unwrap();
        assert_eq!((packet.source(), packet.destination()), (address(ends.0), address(ends.1)));
        assert_eq!((packet.transport, packet.end, packet.payload()), (transport, transport + 11, 11));
        assert_eq!(carried.ports(), Some((5, 53)));
        let (packet, carried) = read(&sent(ends, 6, &tcp((5, 443), 2, (1, 0), 9))).unwrap();
        assert!(!packet.options && packet.fragment.is_none() && !packet.rerouted);
        let Transport::Tcp(segment) = carried else { panic!("{carried:?}") };
        assert_eq!((segment.data, segment.header, segment.end()), (9, 20, 11));
        let kind = if ends == V4 { (1, 8) } else { (58, 128) };
        let (_, carried) = read(&sent(ends, kind.0, &icmp(kind.1, 77, b""))).unwrap();
        assert!(matches!(carried, Transport::Icmp(icmp) if icmp.identifier == 77), "{carried:?}");
        assert_eq!(read(&sent(ends, 132, &[0; 12])).unwrap().1, Transport::Other);
    }
}

/// A length that a header claims is never beyond the frame, and never less than the header.
#[test]
fn lengths_are_checked() {
    let v4 = sent(V4, 17, &udp((5, 53), b"abc"));
    let v6 = sent(V6, 17, &udp((5, 53), b"abc"));
    for (frame, at, bytes) in [
        (&v4, 14, &[0x44][..]),
        (&v4, 14, &[0x65]),
        (&v4, 16, &[0, 19]),
        (&v4, 16, &[0, 32]),
        (&v4, 38, &[0, 7]),
        (&v4, 38, &[0, 12]),
        (&v6, 14, &[0x45]),
        (&v6, 18, &[0, 12]),
        (&v6, 58, &[0, 12]),
    ] {
        assert_eq!(read(&with(frame.clone(), at, bytes)).unwrap_err(), Reason::Malformed, "{at} {bytes:?}");
    }
    for frame in [v4, v6, sent(V4, 6, &tcp((1, 2), 2, (0, 0), 0)), sent(V6, 6, &tcp((1, 2), 2, (0, 0), 0))] {
        for len in header::LEN..frame.len() {
            assert_eq!(read(&frame[..len]).unwrap_err(), Reason::Malformed, "{len}");
            let cut = Copied { bytes: &frame[header::LEN..len], len: frame.len() - header::LEN };
            let packet = ethernet::Ethernet::new(cut).and_then(|link| read_packet(cut, link.ether_type()));
            let all = packet.and_then(|packet| Transport::new(cut, &packet));
            assert!(all.is_ok() || all == Err(Reason::BeyondCopy), "{len}: {all:?}");
        }
    }
}

#[test]
fn fragments_are_known() {
    let datagram = sent(V4, 17, &udp((5, 53), &[0; 40]));
    let (packet, carried) = read(&with(datagram.clone(), 20, &[0x20, 0])).unwrap();
    assert_eq!((packet.fragment, carried.ports()), (Some(Fragment { offset: 0 }), Some((5, 53))));
    let (packet, carried) = read(&with(datagram, 20, &[0, 3])).unwrap();
    assert_eq!((packet.fragment, carried), (Some(Fragment { offset: 24 }), Transport::Continuation));
    let segment = sent(V4, 6, &tcp((1, 2), 2, (0, 0), 0));
    // Of the first, only 8 bytes; of the second, those that would replace the flags.
    let cut = with(with(segment.clone(), 16, &[0, 28]), 20, &[0x20, 0]);
    assert_eq!(read(&cut).unwrap_err(), Reason::Fragment);
    assert_eq!(read(&with(segment, 20, &[0, 1])).unwrap_err(), Reason::Fragment);
    let v6 = |place: u16| {
        let [high, low] = place.to_be_bytes();
        sent(V6, 44, &[&[17, 0, high, low, 0, 0, 0, 1], &udp((5, 53), b"abc")[..]].concat())
    };
    assert_eq!(read(&v6(1)).unwrap().1.ports(), Some((5, 53)));
    let (packet, carried) = read(&v6(16 | 1)).unwrap();
    assert_eq!((packet.protocol, packet.fragment), (17, Some(Fragment { offset: 16 })));
    assert_eq!(carried, Transport::Continuation);
}

#[test]
fn options_and_extension_headers_do_not_hide() {
    let options = |options: &[u8]| {
        let frame = sent(V4, 17, &[options, &udp((5, 53), b"")].concat());
        with(frame, 14, &[0x45 + options.len() as u8 / 4])
    };
    let (packet, carried) = read(&options(&[1, 1, 1, 0])).unwrap();
    assert!(packet.options && !packet.rerouted && carried.ports() == Some((5, 53)));
    for route in [[131, 4, 4, 0], [137, 4, 4, 0], [1, 131, 3, 4]] {
        assert!(read(&options(&route)).unwrap().0.rerouted, "{route:?}");
    }
    for wrong in [[7, 1, 0, 0], [7, 5, 0, 0], [1, 1, 1, 7]] {
        assert_eq!(read(&options(&wrong)).unwrap_err(), Reason::Malformed, "{wrong:?}");
    }
    let datagram = udp((5, 53), b"");
    let v6 = |first: u8, headers: &[[u8; 8]]| {
        read(&sent(V6, first, &[headers.as_flattened(), &datagram].concat()))
    };
    let (packet, carried) =
        v6(0, &[[60, 0, 0, 0, 0, 0, 0, 0], [43, 0, 0, 0, 0, 0, 0, 0], [17, 0, 0, 0, 0, 0, 0, 0]]).unwrap();
    assert!(packet.options && !packet.rerouted && carried.ports() == Some((5, 53)));
    assert!(v6(43, &[[17, 0, 0, 1, 0, 0, 0, 0]]).unwrap().0.rerouted);
    assert_eq!(
        v6(60, &[[0, 0, 0, 0, 0, 0, 0, 0], [17, 0, 0, 0, 0, 0, 0, 0]]).unwrap_err(),
        Reason::ExtensionHeader
    );
    assert_eq!(
        v6(44, &[[44, 0, 0, 1, 0, 0, 0, 0], [17, 0, 0, 1, 0, 0, 0, 0]]).unwrap_err(),
        Reason::ExtensionHeader
    );
    assert_eq!(v6(60, &[[60, 0, 0, 0, 0, 0, 0, 0]; 7]).unwrap_err(), Reason::ExtensionHeader);
    // Longer than the packet.
    assert_eq!(v6(60, &[[17, 9, 0, 0, 0, 0, 0, 0]]).unwrap_err(), Reason::Malformed);
}
