//! Answers to refused frames, and random frames.

use super::guard::dhcp;
use super::*;

#[test]
fn refusals_are_answered() {
    use smoltcp::wire::{EthernetFrame, Icmpv4Packet, Icmpv6Packet, Ipv4Packet, Ipv6Packet, TcpPacket};
    let filter = with_policy();
    let answer = |frame: &[u8]| filter.reply(frame, Reason::NotAllowed, 5);
    for [guest, _, _, _, client, _] in FAMILIES {
        let v6 = guest.contains(':');
        for (flags, numbers) in [(SYN, (9, 0)), (ACK | PSH, (9, 70))] {
            let reply = answer(&out((guest, client), 6, &tcp((1000, 443), flags, numbers, 0))).unwrap();
            let frame = EthernetFrame::new_checked(&reply[12..]).unwrap();
            assert_eq!((frame.dst_addr().0, frame.src_addr().0), (GUEST, GATEWAY));
            let (source, destination, payload) = match v6 {
                true => {
                    let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
                    (packet.src_addr().into(), packet.dst_addr().into(), packet.payload())
                }
                false => {
                    let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
                    assert!(packet.verify_checksum());
                    (packet.src_addr().into(), packet.dst_addr().into(), packet.payload())
                }
            };
            let segment = TcpPacket::new_checked(payload).unwrap();
            assert!(segment.verify_checksum(&source, &destination));
            assert_eq!((segment.src_port(), segment.dst_port(), segment.rst()), (443, 1000, true));
            let expected = if flags == SYN { (0, 10, true) } else { (70, 0, false) };
            let said = (segment.seq_number().0, segment.ack_number().0, segment.ack());
            assert_eq!((said.0, said.2), (expected.0, expected.2));
            assert!(!said.2 || said.1 == expected.1);
        }
        let question = out((guest, client), 17, &udp((5, 53), &[1; 200]));
        let reply = answer(&question).unwrap();
        let frame = EthernetFrame::new_checked(&reply[12..]).unwrap();
        if v6 {
            let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
            let error = Icmpv6Packet::new_checked(packet.payload()).unwrap();
            assert!(error.verify_checksum(&packet.src_addr(), &packet.dst_addr()));
            assert_eq!((u8::from(error.msg_type()), error.msg_code()), (1, 1));
        } else {
            let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
            let error = Icmpv4Packet::new_checked(packet.payload()).unwrap();
            assert!(error.verify_checksum());
            assert_eq!((u8::from(error.msg_type()), error.msg_code()), (3, 13));
        }
        for quiet in [
            out((guest, client), 6, &tcp((1000, 443), RST, (9, 0), 0)),
            out((guest, client), if v6 { 58 } else { 1 }, &icmp(if v6 { 129 } else { 0 }, 0, b"")),
            with(question, 0, &[0xff; 6]),
        ] {
            assert_eq!(answer(&quiet), None);
        }
    }
    assert_eq!(
        filter.reply(&out(("192.0.2.10", "203.0.113.9"), 17, &udp((5, 53), b"")), Reason::SourceMac, 5),
        None
    );
    let question = out(("192.0.2.10", "203.0.113.9"), 17, &udp((5, 53), b""));
    let answers = (0..200).filter(|_| answer(&question).is_some()).count();
    assert!((90..=100).contains(&answers), "{answers}");
}

/// Bytes at random, and sensible frames with bytes changed at random: nothing panics, and nothing with
/// another source MAC address passes.
#[test]
fn hostile_bytes_are_survived() {
    let filter = with_policy();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let seeds = [
        out(("192.0.2.10", "198.51.100.7"), 6, &tcp((1000, 443), SYN, (1, 0), 0)),
        out(("2001:db8:1::10", "2001:db8:5::7"), 17, &udp((5, 53), b"?")),
        arp((GATEWAY, GUEST), 1, "192.0.2.10", "192.0.2.1"),
        advertisement((GUEST, GATEWAY), ("fe80::fe", "2001:db8:1::10"), "fe80::fe"),
        packet(
            ([0xff; 6], GUEST),
            ("0.0.0.0", "255.255.255.255"),
            17,
            &udp((68, 67), &dhcp(1, 7, [0; 4], GUEST, 1)),
        ),
        into(("203.0.113.200", "192.0.2.10"), 1, &icmp(3, 0, &[0x45; 60])),
        out(
            ("2001:db8:1::10", "2001:db8:5::7"),
            0,
            &[[60, 0, 1, 4, 0, 0, 0, 0], [44, 0, 1, 4, 0, 0, 0, 0], [6, 0, 0, 1, 0, 0, 0, 0]].concat(),
        ),
    ];
    for round in 0..200_000 {
        let mut frame = seeds[round % seeds.len()].clone();
        for _ in 0..random() % 4 {
            let at = random() as usize % frame.len();
            frame[at] = random() as u8;
        }
        if random() % 4 == 0 {
            frame.truncate(random() as usize % (frame.len() + 1));
        }
        let len = frame.len() + [0, 0, 5, 70_000][random() as usize % 4];
        let way = Way::BOTH[random() as usize % 2];
        let _ = Summary::of(way, &frame);
        let source = frame.get(18..24).map(<[u8]>::to_vec);
        if filter.judge(way, &mut frame, len, 1000) == Verdict::Pass && way == Way::Out {
            assert_eq!(source.as_deref(), Some(&GUEST[..]));
        }
        let _ = filter.reply(&frame, Reason::NotAllowed, round as u32);
    }
}
