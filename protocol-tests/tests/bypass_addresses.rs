//! The bypass book, chapters "Addresses" and "Tunnels".

use std::net::IpAddr;

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{
    BOTH, BROADCAST, GATEWAY, GUEST, Hosts, NEIGHBOUR, OPEN, OWN, STRANGER, V4, V6,
};
use protocol_tests::bypass::link::group_mac;
use protocol_tests::bypass::packet::{Mac, Packet};
use protocol_tests::bypass::transport::{self, ACK, ICMP, ICMPV6, TCP, UDP};
use protocol_tests::frame::NetHeader;
use protocol_tests::session::Setup;

/// Rules for everything, which reach no special range.
const EVERYTHING: &str = r#"
refuse = "drop"

[network]
on-link = ["192.0.2.0/24", "2001:db8:1::/64"]
gateways = ["192.0.2.1", "2001:db8:1::1"]

[[allow]]
to = "any"

[[allow]]
from = ["198.51.100.0/24", "2001:db8:5::/48"]
"#;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

/// Destinations that a rule for everything does not reach, by line.
const SPECIAL: &[(&str, &[&str])] = &[
    ("A10", &["0.0.0.0", "0.0.0.1", "0.255.255.255", "::"]),
    ("A11", &["255.255.255.255", "192.0.2.255", "192.0.2.0"]),
    ("A12", &["224.0.0.1", "224.0.0.251", "239.255.255.250", "ff02::1", "ff02::fb", "ff05::2", "ff0e::1"]),
    ("A13", &["127.0.0.1", "127.255.255.254", "::1"]),
    ("A14", &["240.0.0.1", "254.1.2.3", "255.255.255.254", "5f00::1", "100::1", "100:0:0:1::1"]),
    ("A15", &["169.254.1.1", "fe80::1", "fe80::5054:ff:fe00:1", "fec0::1"]),
    (
        "A16",
        &[
            "169.254.169.254",
            "169.254.170.2",
            "169.254.170.23",
            "169.254.0.23",
            "169.254.42.42",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fd20:ce::254",
            "fd00:42::42",
            "fd00:c1::a9fe:a9fe",
            "fe80::a9fe:a9fe",
        ],
    ),
    (
        "A17",
        &[
            "10.0.0.1",
            "10.255.255.255",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "192.168.255.255",
            "100.64.0.1",
            "198.18.0.1",
            "198.19.255.255",
            "192.0.0.8",
            "fc00::1",
            "fd12:3456::1",
            "fdff:ffff::1",
        ],
    ),
    ("A18", &["2002:c633:6407::1", "2002:7f00:1::", "2002:a00:1::1", "192.88.99.1"]),
    ("A19", &["2001::1", "2001:0:c633:6407::1", "2001:2::1", "2001:10::1", "2001:20::1"]),
    ("A20", &["64:ff9b::c633:6407", "64:ff9b::a00:1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"]),
    ("A21", &["::ffff:198.51.100.7", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:10.0.0.1"]),
    ("A22", &["::198.51.100.7", "::127.0.0.1", "::10.0.0.1", "::2"]),
    ("A23", &["192.0.2.99", "192.0.2.20", "192.0.2.254", "2001:db8:1::99", "2001:db8:1::20", "2001:db8:1::"]),
    ("A24", &["192.0.2.1", "2001:db8:1::1"]),
    ("A25", &["192.0.2.10", "2001:db8:1::10"]),
];

/// Returns a packet to `to` of each transport, by the gateway.
fn of_each_kind(hosts: &Hosts, to: IpAddr) -> [Packet; 3] {
    [hosts.udp_to(to, 53), hosts.syn_to(to, 80), hosts.ping_to(to, 1)]
}

/// Returns a packet's frame with a plain header.
fn plain(packet: Packet) -> (NetHeader, Vec<u8>) {
    (NetHeader::default(), packet.frame())
}

#[test]
fn special_destinations() {
    let setup = Setup::default();
    let Some(mut book) = Book::with("special_destinations", Some(EVERYTHING), &[], &setup) else { return };
    for (name, addresses) in SPECIAL {
        for to in addresses.iter().map(|text| address(text)) {
            let hosts = if to.is_ipv6() { V6 } else { V4 };
            let mut macs = vec![GATEWAY, NEIGHBOUR, BROADCAST];
            if to.is_multicast() {
                macs.push(match to {
                    IpAddr::V4(v4) => [1, 0, 0x5e, v4.octets()[1] & 0x7f, v4.octets()[2], v4.octets()[3]],
                    IpAddr::V6(_) => group_mac(to),
                });
            }
            let frames =
                macs.into_iter().flat_map(|mac| of_each_kind(&hosts, to).map(|packet| packet.at(mac)));
            book.refused_all(&format!("{name} {to}"), frames.map(plain));
        }
    }
    for hosts in BOTH {
        book.passes(&format!("A26 {}", hosts.name), &hosts.udp_to(hosts.elsewhere, 53).frame());
    }
    book.done();
}

#[test]
fn special_sources() {
    let setup = Setup::default();
    let Some(mut book) = Book::with("special_sources", Some(EVERYTHING), &[], &setup) else { return };
    let sources = SPECIAL.iter().filter(|(name, _)| *name != "A25").flat_map(|(_, addresses)| *addresses);
    for from in sources.map(|text| address(text)) {
        let hosts = if from.is_ipv6() { V6 } else { V4 };
        let frames = of_each_kind(&hosts, hosts.remote).map(|packet| plain(packet.from(from)));
        book.refused_all(&format!("A30 {from}"), frames);
    }
    book.done();
}

/// The right address at the wrong place, and the other way round.
#[test]
fn addresses_and_places() {
    let Some(mut book) = Book::new("addresses_and_places") else { return };
    for hosts in BOTH {
        let to = |to, mac: Mac| hosts.udp_to(to, OPEN).at(mac).frame();
        let name = hosts.name;
        // Before and after the flow is known.
        for round in ["new", "known"] {
            for mac in [
                NEIGHBOUR,
                STRANGER,
                GUEST,
                BROADCAST,
                [0; 6],
                [0x33, 0x33, 0, 0, 0, 1],
                [1, 0, 0x5e, 0, 0, 1],
            ] {
                book.refused(&format!("A1 {name} {round} {mac:x?}"), &to(hosts.remote, mac));
            }
            for mac in [GATEWAY, STRANGER, GUEST, BROADCAST] {
                book.refused(&format!("A2 {name} {round} {mac:x?}"), &to(hosts.neighbour, mac));
            }
            book.passes(&format!("A3 {name}"), &to(hosts.remote, GATEWAY));
            book.passes(&format!("A3 {name}"), &to(hosts.neighbour, NEIGHBOUR));
        }
        for mac in [STRANGER, GATEWAY, NEIGHBOUR, BROADCAST] {
            book.refused(&format!("A4 {name} {mac:x?}"), &to(hosts.stranger, mac));
            book.refused(&format!("A6 {name} {mac:x?}"), &to(hosts.denied, mac));
            book.refused(&format!("A7 {name} {mac:x?}"), &to(hosts.elsewhere, mac));
        }
        book.refused(&format!("A5 {name}"), &to(hosts.gateway, GATEWAY));
        book.refused(&format!("A5 {name}"), &hosts.ping_to(hosts.gateway, 1).frame());
        book.refused(&format!("A5 {name}"), &hosts.syn_to(hosts.gateway, 22).frame());
        for port in [0, 1, 22, 53, 80, 999, 1001, 65_535] {
            book.refused(&format!("A8 {name} {port}"), &hosts.udp_to(hosts.remote, port).frame());
            book.refused(&format!("A8 {name} {port}"), &hosts.syn_to(hosts.remote, port).frame());
        }
        // From the allowed port instead of to it.
        let back = hosts.out(hosts.remote, UDP, transport::udp(OPEN, OWN, b"x"));
        book.refused(&format!("A9 {name}"), &back.frame());
    }
    book.done();
}

/// Returns what a tunnel carries: a packet that would pass by itself.
fn inner(is_v6: bool) -> Vec<u8> {
    if is_v6 { V6.udp_to(V6.remote, OPEN).bytes() } else { V4.udp_to(V4.remote, OPEN).bytes() }
}

#[test]
fn tunnels() {
    let policy = format!("{EVERYTHING}\n[[allow]]\nto = [\"192.0.2.20\", \"2001:db8:1::20\"]\n");
    let setup = Setup::default();
    let Some(mut book) = Book::with("tunnels", Some(&policy), &[], &setup) else { return };
    let ether = V4.udp_to(V4.stranger, OPEN).frame();
    let gre = |kind: u16, packet: &[u8]| [&[0, 0], &kind.to_be_bytes()[..], packet].concat();
    for hosts in BOTH {
        let name = hosts.name;
        let mut tunnel = |line: &str, protocol: u8, payload: Vec<u8>| {
            for to in [hosts.elsewhere, hosts.remote, hosts.neighbour] {
                let mac = if to == hosts.neighbour { NEIGHBOUR } else { GATEWAY };
                let packet = hosts.out(to, protocol, payload.clone()).at(mac);
                book.refused(&format!("{line} {name} to {to}"), &packet.frame());
            }
        };
        tunnel("T1", 4, inner(false));
        tunnel("T2", 41, inner(true));
        for (kind, packet) in [(0x0800, inner(false)), (0x86dd, inner(true)), (0x6558, ether.clone())] {
            tunnel("T3", 47, gre(kind, &packet));
        }
        tunnel("T4", 97, [&[0x30, 0][..], &ether].concat());
        tunnel("T5", 115, [&[0, 0, 0, 1][..], &ether].concat());
        tunnel("T6 ESP", 50, vec![1; 64]);
        tunnel("T6 AH", 51, [&[17, 4, 0, 0][..], &[1; 20], &transport::udp(OWN, OPEN, b"x")].concat());
        for protocol in [55, 94, 98, 99, 108, 111, 137, 142, 143, 144, 145] {
            tunnel(&format!("T7 {protocol}"), protocol, inner(false));
        }
        for protocol in [2, 33, 46, 89, 103, 112, 132, 136, 254, 255] {
            tunnel(&format!("T8 {protocol}"), protocol, vec![1; 40]);
        }
        let other = if hosts.is_v6() { ICMP } else { ICMPV6 };
        tunnel("T9", other, transport::echo(!hosts.is_v6(), true, 1, b"x"));
        for protocol in [4u8, 41, 47, 50] {
            let back = hosts.inward(hosts.remote, protocol, inner(protocol == 41));
            book.refused_in(&format!("T10 {name} {protocol}"), &back.frame());
        }
    }
    book.done();
}

/// A flow ends at its ends: other packets are no part of it.
#[test]
fn answers_are_no_questions() {
    let Some(mut book) = Book::new("answers_are_no_questions") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        book.passes(&format!("A40 {name}"), &hosts.udp_to(hosts.remote, OPEN).frame());
        let other = hosts.out(hosts.remote, UDP, transport::udp(OWN, OPEN + 1, b"x"));
        book.refused(&format!("A41 {name}"), &other.frame());
        let segment = hosts.out(hosts.remote, TCP, transport::tcp((OWN, OPEN), ACK, (1, 1), b"x"));
        book.refused(&format!("A42 {name}"), &segment.frame());
        let reply = hosts.out(hosts.remote, hosts.icmp(), transport::echo(hosts.is_v6(), false, 5, b"x"));
        book.refused(&format!("A43 {name}"), &reply.frame());
        for kind in if hosts.is_v6() { [127, 139, 160] } else { [13, 15, 17] } {
            let odd = hosts.out(hosts.remote, hosts.icmp(), transport::icmp(kind, 0, &[0; 16]));
            book.refused(&format!("A44 {name} {kind}"), &odd.frame());
        }
        for length in [0, 7, 400, 65_535u16] {
            let mut lies = hosts.udp_to(hosts.remote, OPEN);
            lies.payload[4..6].copy_from_slice(&length.to_be_bytes());
            book.refused(&format!("A45 {name} {length}"), &lies.frame());
        }
        for offset in [0, 1, 4, 6, 15u8] {
            let mut lies = hosts.syn_to(hosts.remote, OPEN);
            lies.payload[12] = offset << 4;
            book.refused(&format!("A46 {name} {offset}"), &lies.frame());
        }
        for protocol in [UDP, TCP, hosts.icmp()] {
            for len in 0..8 {
                let cut = hosts.out(hosts.remote, protocol, vec![0x50; len]);
                book.refused(&format!("A47 {name} {protocol} {len}"), &cut.frame());
            }
        }
    }
    book.done();
}
