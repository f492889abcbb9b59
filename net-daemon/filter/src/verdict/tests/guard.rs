//! Who the guest says it is.

use super::*;

#[test]
fn the_guard_knows_its_guest() {
    let filter = filter(setup(None));
    for [guest, allowed, ..] in FAMILIES {
        let frame = out((guest, allowed), 17, &udp((5, 53), b"?"));
        assert_eq!(judged(&filter, Way::Out, &frame), Ok(()));
        assert_eq!(judged(&filter, Way::Out, &with(frame.clone(), 6, &OTHER)), Err(Reason::SourceMac));
        assert_eq!(judged(&filter, Way::Out, &with(frame.clone(), 12, &[0x81, 0])), Err(Reason::Vlan));
        let other = out((allowed, guest), 17, &udp((5, 53), b"?"));
        assert_eq!(judged(&filter, Way::Out, &other), Err(Reason::SourceAddress));
        assert_eq!(judged(&filter, Way::In, &with(frame, 0, &OTHER)), Err(Reason::DestinationMac));
    }
    let own = link_local(GUEST).to_string();
    assert_eq!(judged(&filter, Way::Out, &out((&own, "fe80::fe"), 17, &udp((5, 53), b""))), Ok(()));
    let other = out(("fe80::1", "fe80::fe"), 17, &udp((5, 53), b""));
    assert_eq!(judged(&filter, Way::Out, &other), Err(Reason::SourceAddress));
}

#[test]
fn arp_is_for_own_addresses() {
    let filter = filter(setup(None));
    let says = |operation, sender, target| arp((GATEWAY, GUEST), operation, sender, target);
    for (frame, expected) in [
        (says(1, "192.0.2.10", "192.0.2.1"), Ok(())),
        (says(2, "192.0.2.10", "192.0.2.1"), Ok(())),
        (says(1, "0.0.0.0", "192.0.2.10"), Ok(())),
        (says(1, "192.0.2.10", "192.0.2.10"), Ok(())),
        (says(1, "0.0.0.0", "192.0.2.1"), Err(Reason::Arp)),
        (says(2, "192.0.2.1", "192.0.2.10"), Err(Reason::Arp)),
        (says(1, "192.0.2.1", "192.0.2.1"), Err(Reason::Arp)),
        (says(8, "192.0.2.10", "192.0.2.1"), Err(Reason::Arp)),
        (with(says(2, "192.0.2.10", "192.0.2.1"), 22, &OTHER), Err(Reason::Arp)),
    ] {
        assert_eq!(judged(&filter, Way::Out, &frame), expected);
    }
    // Padding says nothing.
    let mut padded = says(2, "192.0.2.10", "192.0.2.1");
    padded.extend([9; 18]);
    let len = padded.len();
    assert_eq!(filter.judge(Way::Out, &mut padded, len, 0), Verdict::Pass);
    assert!(padded[54..].iter().all(|byte| *byte == 0));
    padded.push(0);
    assert_eq!(judged(&filter, Way::Out, &padded), Err(Reason::Arp));
}

#[test]
fn neighbour_discovery_is_for_own_addresses() {
    let filter = filter(setup(None));
    let own = "2001:db8:1::10";
    let all = group_mac("ff02::1".parse().unwrap());
    let says = |target| advertisement((all, GUEST), (own, "ff02::1"), target);
    assert_eq!(judged(&filter, Way::Out, &says(own)), Ok(()));
    assert_eq!(judged(&filter, Way::Out, &says("2001:db8:1::7")), Err(Reason::Neighbour));
    let another = advertisement((all, GUEST), (own, "ff02::1"), own);
    assert_eq!(judged(&filter, Way::Out, &with(another, 14 + 40 + 26, &OTHER)), Err(Reason::Neighbour));
    assert_eq!(judged(&filter, Way::Out, &with(says(own), 21, &[64])), Err(Reason::Neighbour));
    for (message, reason) in
        [(134, Reason::RouterAdvertisement), (137, Reason::Redirect), (130, Reason::Neighbour)]
    {
        let frame = out((own, "ff02::1"), 58, &[message, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(judged(&filter, Way::Out, &frame), Err(reason));
    }
    // Duplicate address detection, for its own address and another's.
    for (target, expected) in [(own, Ok(())), ("2001:db8:1::7", Err(Reason::Neighbour))] {
        let IpAddr::V6(target) = ip(target) else { panic!() };
        let group = solicited(target);
        let message = [&[135, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..]].concat();
        let frame = packet((group_mac(group), GUEST), ("::", &group.to_string()), 58, &message);
        assert_eq!(judged(&filter, Way::Out, &frame), expected);
    }
}

#[test]
fn addresses_are_learnt_first_come_and_eight_of_them() {
    let learn = Learn { dhcp: None, prefixes: vec!["2001:db8:1::/64".parse::<Prefix>().unwrap()] };
    let filter = filter(Setup { learn: Some(learn), ..setup(None) });
    let from = |source: &str| out((source, "2001:db8:5::7"), 17, &udp((5, 53), b""));
    for number in 0x20..0x26 {
        assert_eq!(judged(&filter, Way::Out, &from(&format!("2001:db8:1::{number:x}"))), Ok(()));
    }
    assert_eq!(judged(&filter, Way::Out, &from("2001:db8:1::99")), Err(Reason::AddressesFull));
    assert_eq!(judged(&filter, Way::Out, &from("2001:db8:1::25")), Ok(()));
    assert_eq!(judged(&filter, Way::Out, &from("2001:db8:2::25")), Err(Reason::SourceAddress));
    assert_eq!(filter.addresses(0).len(), 8);
}

/// Addresses of a prefix that the settings do not have any more are not the guest's.
#[test]
fn learnt_addresses_end_with_their_setting() {
    let learn = |prefix: &str| Some(Learn { dhcp: None, prefixes: vec![prefix.parse().unwrap()] });
    let setup = Setup { learn: learn("2001:db8:1::/64"), ..setup(None) };
    let words = Words((0..Filter::words(&setup)).map(|_| AtomicU64::new(0)).collect());
    let memory: Memory = Arc::new(words);
    let speaks = out(("2001:db8:1::20", "2001:db8:5::7"), 17, &udp((5, 53), b""));
    let first = Filter::new(setup.clone(), memory.clone(), [7, 9]).unwrap();
    assert_eq!(judged(&first, Way::Out, &speaks), Ok(()));
    let other = Setup { learn: learn("2001:db8:2::/64"), ..setup };
    let next = Filter::new(other, memory, [7, 9]).unwrap();
    assert_eq!(judged(&next, Way::Out, &speaks), Err(Reason::SourceAddress));
    assert_eq!(next.addresses(0).len(), 2);
}

/// A DHCP message with these fields, and a type.
pub(super) fn dhcp(operation: u8, exchange: u32, assigned: [u8; 4], client: Mac, kind: u8) -> Vec<u8> {
    let mut message = vec![operation, 1, 6, 0];
    message.extend(exchange.to_be_bytes());
    message.extend([0; 8]);
    message.extend(assigned);
    message.extend([0; 8]);
    message.extend(client);
    message.extend([0; 202]);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, kind, 51, 4, 0, 0, 0, 100, 255]);
    message
}

#[test]
fn addresses_are_learnt_from_one_dhcp_server() {
    let learn = Learn { dhcp: Some("192.0.2.1".parse().unwrap()), prefixes: Vec::new() };
    let filter = filter(Setup { learn: Some(learn), addresses: Vec::new(), ..setup(None) });
    let all = [0xff; 6];
    let asks = dhcp(1, 77, [0; 4], GUEST, 3);
    let ask = packet((all, GUEST), ("0.0.0.0", "255.255.255.255"), 17, &udp((68, 67), &asks));
    let answer = |server, exchange, client| {
        let message = dhcp(2, exchange, [192, 0, 2, 50], client, 5);
        packet((GUEST, GATEWAY), (server, "192.0.2.50"), 17, &udp((67, 68), &message))
    };
    let speaks = out(("192.0.2.50", "198.51.100.7"), 17, &udp((5, 53), b""));
    assert_eq!(judged(&filter, Way::In, &answer("192.0.2.1", 77, GUEST)), Err(Reason::Dhcp));
    assert_eq!(judged(&filter, Way::Out, &ask), Ok(()));
    assert_eq!(judged(&filter, Way::In, &answer("192.0.2.2", 77, GUEST)), Err(Reason::Dhcp));
    assert_eq!(judged(&filter, Way::In, &answer("192.0.2.1", 78, GUEST)), Err(Reason::Dhcp));
    assert_eq!(judged(&filter, Way::In, &answer("192.0.2.1", 77, OTHER)), Err(Reason::Dhcp));
    assert_eq!(judged(&filter, Way::Out, &speaks), Err(Reason::SourceAddress));
    assert_eq!(judged(&filter, Way::In, &answer("192.0.2.1", 77, GUEST)), Ok(()));
    assert_eq!(judged(&filter, Way::Out, &speaks), Ok(()));
    // The lease ends, 100 s after the question, whenever the answer was taken.
    let at = |frame: &[u8], way, now| filter.judge(way, &mut frame.to_vec(), frame.len(), now);
    assert_eq!(at(&speaks, Way::Out, 1101), Verdict::Refuse(Reason::SourceAddress));
    assert_eq!(at(&answer("192.0.2.1", 77, GUEST), Way::In, 1050), Verdict::Pass);
    assert_eq!(at(&speaks, Way::Out, 1101), Verdict::Refuse(Reason::SourceAddress));
    // What the guest gives up is not its own any more.
    assert_eq!(judged(&filter, Way::Out, &speaks), Ok(()));
    let release = dhcp(1, 78, [0; 4], GUEST, 7);
    let release = out(("192.0.2.50", "192.0.2.1"), 17, &udp((68, 67), &release));
    assert_eq!(judged(&filter, Way::Out, &release), Ok(()));
    assert_eq!(judged(&filter, Way::Out, &speaks), Err(Reason::SourceAddress));
    // Servers would take it from any port, and choose one of two types.
    let odd = packet((all, GUEST), ("0.0.0.0", "255.255.255.255"), 17, &udp((1000, 67), &asks));
    assert_eq!(judged(&filter, Way::Out, &odd), Err(Reason::Dhcp));
    for option in [&[53u8, 1, 7][..], &[53, 0], &[52, 1, 3]] {
        let two = [&asks[..asks.len() - 1], option, &[255]].concat();
        let two = packet((all, GUEST), ("0.0.0.0", "255.255.255.255"), 17, &udp((68, 67), &two));
        assert_eq!(judged(&filter, Way::Out, &two), Err(Reason::Dhcp));
    }
    for wrong in [
        packet(
            (all, GUEST),
            ("192.0.2.50", "255.255.255.255"),
            17,
            &udp((67, 68), &dhcp(2, 1, [0; 4], OTHER, 5)),
        ),
        packet(
            (all, GUEST),
            ("192.0.2.50", "255.255.255.255"),
            17,
            &udp((68, 67), &dhcp(2, 1, [0; 4], GUEST, 5)),
        ),
    ] {
        assert_eq!(judged(&filter, Way::Out, &wrong), Err(Reason::DhcpServer));
    }
}
