use super::*;
use crate::testing::{GATEWAY, GUEST, packet, tcp, udp};
use crate::wire::ip;

const V4: (&str, &str) = ("192.0.2.10", "198.51.100.7");
const V6: (&str, &str) = ("2001:db8::10", "2001:db8:5::7");

fn judged(way: Way, frame: &[u8], header: [u8; LEN]) -> Result<[u8; LEN], Reason> {
    let mut header = header;
    let bytes = Copied::whole(&frame[LEN..]);
    let ether_type = ethernet::Ethernet::new(bytes)?.ether_type();
    let packet = ip::read(bytes, ether_type)?;
    let transport = Transport::new(bytes, &packet)?;
    rebuild(way, &mut header, &packet, &transport).map(|()| header)
}

fn header(flags: u8, gso: u8, size: u16, start: u16, offset: u16) -> [u8; LEN] {
    let mut header = [0xaa; LEN];
    (header[0], header[1]) = (flags, gso);
    header[4..6].copy_from_slice(&size.to_le_bytes());
    header[6..8].copy_from_slice(&start.to_le_bytes());
    header[8..10].copy_from_slice(&offset.to_le_bytes());
    header
}

/// Of all places for a checksum, one passes, in each family and protocol.
#[test]
fn a_checksum_has_one_place() {
    for (ends, transport) in [(V4, 34), (V6, 54)] {
        for (protocol, payload, offset) in
            [(6, tcp((1, 2), 16, (0, 0), 60), 16), (17, udp((1, 2), &[0; 60]), 6)]
        {
            let frame = packet((GATEWAY, GUEST), ends, protocol, &payload);
            for start in (0..120).chain([u16::MAX]) {
                for at in (0..80).chain([u16::MAX]) {
                    let passes = judged(Way::Out, &frame, header(1, 0, 9, start, at));
                    assert_eq!(passes.is_ok(), (start, at) == (transport, offset), "{start} {at}");
                }
            }
            let rebuilt = judged(Way::Out, &frame, header(1, 0, 9, transport, offset)).unwrap();
            let headers = transport as u8 + if protocol == 6 { 20 } else { 8 };
            assert_eq!(rebuilt, [1, 0, headers, 0, 0, 0, transport as u8, 0, offset as u8, 0, 0, 0]);
        }
        let echo = packet((GATEWAY, GUEST), ends, if ends == V4 { 1 } else { 58 }, &[8, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(judged(Way::Out, &echo, header(1, 0, 0, transport, 2)), Err(Reason::Header));
        assert_eq!(judged(Way::Out, &echo, header(0, 0, 0, 0, 0)).unwrap(), [0; LEN]);
    }
}

#[test]
fn only_known_flags_pass() {
    let frame = packet((GATEWAY, GUEST), V4, 6, &tcp((1, 2), 16, (0, 0), 60));
    for flags in 0..=255 {
        let asked = header(flags, 0, 0, 34, 16);
        assert_eq!(judged(Way::Out, &frame, asked).is_ok(), flags <= 1, "{flags}");
        assert_eq!(judged(Way::In, &frame, asked).is_ok(), flags <= 3, "{flags}");
    }
}

/// Of all types of segmentation, those of the packet's protocol pass.
#[test]
fn segments_are_those_of_the_protocol() {
    for (ends, transport) in [(V4, 34), (V6, 54)] {
        for (protocol, payload, offset) in
            [(6, tcp((1, 2), 16, (0, 0), 60), 16), (17, udp((1, 2), &[0; 60]), 6)]
        {
            let frame = packet((GATEWAY, GUEST), ends, protocol, &payload);
            for gso in 1..=255 {
                let passes = judged(Way::Out, &frame, header(1, gso, 1000, transport, offset));
                let known: &[u8] = match (protocol, transport) {
                    (6, 34) => &[1, 0x81],
                    (6, _) => &[4, 0x84],
                    _ => &[3, 5],
                };
                assert_eq!(passes.is_ok(), known.contains(&gso), "{gso}");
                if let Ok(rebuilt) = passes {
                    assert_eq!(rebuilt[1], gso);
                    assert_eq!(rebuilt[4..6], 1000u16.to_le_bytes());
                }
                assert!(judged(Way::Out, &frame, header(0, gso, 1000, transport, offset)).is_err(), "{gso}");
            }
        }
    }
    let frame = packet((GATEWAY, GUEST), V4, 6, &tcp((1, 2), 16, (0, 0), 60));
    for (size, passes) in
        [(0, false), (7, false), (8, true), (65_495, true), (65_496, false), (65_535, false)]
    {
        assert_eq!(judged(Way::Out, &frame, header(1, 1, size, 34, 16)).is_ok(), passes, "{size}");
    }
    assert!(judged(Way::In, &frame, header(1, 1, 1, 34, 16)).is_ok());
}

#[test]
fn other_frames_have_no_offloads() {
    assert_eq!(rebuild_plain(Way::Out, &mut header(1, 0, 0, 0, 0)), Err(Reason::Header));
    assert_eq!(rebuild_plain(Way::Out, &mut header(0, 1, 0, 0, 0)), Err(Reason::Header));
    assert_eq!(rebuild_plain(Way::Out, &mut header(2, 0, 0, 0, 0)), Err(Reason::Header));
    let mut plain = header(0, 0, 9, 9, 9);
    rebuild_plain(Way::Out, &mut plain).unwrap();
    assert_eq!(plain, [0; LEN]);
}
