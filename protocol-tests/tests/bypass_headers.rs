//! The bypass book, chapter "Options and extension headers".

use std::net::IpAddr;

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{BOTH, GATEWAY, GUEST, OPEN, OWN, POLICY, V4, V6};
use protocol_tests::bypass::packet::{IPV6, Packet, ether, extension, octets};
use protocol_tests::bypass::transport::{self, ACK, SYN, TCP};
use protocol_tests::session::Setup;

const NOTHING: [u8; 7] = [0, 1, 4, 0, 0, 0, 0];

/// Returns IPv4 options by name.
fn options() -> Vec<(&'static str, Vec<u8>)> {
    let [a, b, c, d] = octets(V4.elsewhere)[..] else { unreachable!("four bytes") };
    vec![
        ("X1 record route", vec![7, 7, 4, 0, 0, 0, 0, 0]),
        ("X1 time stamp", vec![68, 8, 5, 0, 0, 0, 0, 0]),
        ("X1 router alert", vec![148, 4, 0, 0]),
        ("X1 security", vec![130, 4, 0, 0]),
        ("X1 stream", vec![136, 4, 0, 1]),
        ("X1 padding", vec![1, 1, 1, 0]),
        ("X1 an unknown one", vec![0xde, 4, 0, 0]),
        ("X2 loose source route", vec![131, 7, 4, a, b, c, d, 0]),
        ("X2 strict source route", vec![137, 7, 4, a, b, c, d, 0]),
        ("X2 padding before a source route", vec![1, 131, 7, 4, a, b, c, d]),
        ("X2 a source route behind another option", vec![148, 4, 0, 0, 131, 7, 4, a, b, c, d, 0]),
    ]
}

#[test]
fn ipv4_options() {
    let Some(mut book) = Book::new("ipv4_options") else { return };
    let plain = V4.udp_to(V4.remote, OPEN);
    // With the flow open as well.
    for open in [false, true] {
        if open {
            book.passes("X3", &plain.frame());
        }
        for (line, options) in options() {
            book.refused(line, &plain.clone().options(&options).frame());
        }
        for malformed in [&[7, 0, 0, 0][..], &[7, 1, 0, 0], &[7, 5, 4, 0], &[1, 1, 1, 7], &[7, 255, 4, 0]] {
            book.refused(&format!("X4 {malformed:?}"), &plain.clone().options(malformed).frame());
        }
    }
    for (line, options) in options() {
        let back = V4.udp_from(V4.remote, (OPEN, OWN)).options(&options);
        book.refused_in(&line.replace("X1", "X5").replace("X2", "X5"), &back.frame());
    }
    for version in [0x35, 0x40, 0x44, 0x4f, 0x55, 0x65] {
        let mut frame = plain.frame();
        frame[14] = version;
        book.refused(&format!("X6 {version:x}"), &frame);
    }
    for error in [-20i32, -8, 1, 30_000] {
        let mut packet = plain.clone();
        packet.length_error = error;
        book.refused(&format!("X7 {error}"), &packet.frame());
    }
    let mut none = plain.frame();
    none[16..18].fill(0);
    book.refused("X7 none", &none);
    book.done();
}

#[test]
fn ipv6_extension_headers() {
    let Some(mut book) = Book::new("ipv6_extension_headers") else { return };
    let plain = V6.udp_to(V6.remote, OPEN);
    let through = octets(V6.elsewhere);
    for open in [false, true] {
        if open {
            book.passes("X10", &plain.frame());
        }
        for kind in [extension::HOP_BY_HOP, extension::DESTINATION] {
            let packet = plain.clone().extension(kind, &NOTHING);
            book.refused(&format!("X11 {kind}"), &packet.frame());
            let jumbo = plain.clone().extension(kind, &[0, 0xc2, 4, 0, 1, 0, 0]);
            book.refused(&format!("X12 {kind}"), &jumbo.frame());
            let tunnel_limit = plain.clone().extension(kind, &[0, 4, 1, 0, 1, 0, 0]);
            book.refused(&format!("X11 {kind}"), &tunnel_limit.frame());
            // The option Home Address, whose receiver takes it for the source.
            let home = [&[2, 1, 2, 0, 0, 201, 16], &octets(V6.stranger)[..]].concat();
            book.refused(&format!("X13 {kind}"), &plain.clone().extension(kind, &home).frame());
        }
        for kind in [0, 2, 3, 4, 253] {
            for left in [0, 1, 2, 255] {
                let route = [&[2, kind, left, 0, 0, 0, 0], &through[..]].concat();
                let packet = plain.clone().extension(extension::ROUTING, &route);
                book.refused(&format!("X14 type {kind}, {left} left"), &packet.frame());
                let hidden = plain.clone().extension(extension::DESTINATION, &NOTHING);
                let hidden = hidden.extension(extension::ROUTING, &route);
                book.refused(&format!("X14 type {kind}, {left} left, second"), &hidden.frame());
            }
        }
    }
    chains_of_headers(&mut book, &plain);
    book.done();
}

/// Headers in odd places, and more of them than a packet has.
fn chains_of_headers(book: &mut Book, plain: &Packet) {
    let mut late = plain.clone().extension(extension::DESTINATION, &NOTHING);
    late = late.extension(extension::HOP_BY_HOP, &NOTHING);
    book.refused("X15", &late.frame());
    for count in [2, 5, 6, 7, 100] {
        let mut long = plain.clone();
        (0..count).for_each(|_| long.extensions.push((extension::DESTINATION, NOTHING.to_vec())));
        book.refused(&format!("X16 {count}"), &long.frame());
    }
    for kind in [extension::HOP_BY_HOP, extension::DESTINATION, extension::ROUTING] {
        let mut hidden = plain.clone();
        // Its transport begins 2056 bytes behind the fixed header.
        let filler = [&[255, 0, 0, 0, 0, 0, 0], &[0; 2040][..]].concat();
        hidden.extensions = vec![(kind, filler.clone())];
        book.refused(&format!("X17 {kind}"), &hidden.frame());
        hidden.extensions.push((extension::DESTINATION, filler));
        book.refused(&format!("X17 {kind} twice"), &hidden.frame());
        let mut beyond = plain.clone().extension(kind, &[200, 0, 0, 0, 0, 0, 0]);
        book.refused(&format!("X18 {kind}"), &beyond.frame());
        beyond.payload.clear();
        beyond.extensions[0].1 = vec![0];
        book.refused(&format!("X18 {kind}, cut"), &beyond.frame());
    }
    for (name, protocol) in [("none", extension::NO_NEXT), ("mobility", 135), ("HIP", 139), ("shim6", 140)] {
        let mut packet = plain.clone();
        packet.protocol = protocol;
        book.refused(&format!("X19 {name}"), &packet.frame());
    }
    for error in [-8i32, 1, 30_000] {
        let mut packet = plain.clone();
        packet.length_error = error;
        book.refused(&format!("X20 {error}"), &packet.frame());
    }
    let mut none = plain.frame();
    none[18..20].fill(0);
    book.refused("X20 none", &none);
    let back = V6.udp_from(V6.remote, (OPEN, OWN));
    for kind in [extension::HOP_BY_HOP, extension::DESTINATION] {
        book.refused_in("X21", &back.clone().extension(kind, &NOTHING).frame());
    }
    let route = [&[2, 0, 1, 0, 0, 0, 0], &octets(V6.guest)[..]].concat();
    book.refused_in("X21 routing", &back.extension(extension::ROUTING, &route).frame());
}

/// Rules with `options = true` allow options, but no detours.
#[test]
fn options_by_a_rule() {
    let policy = POLICY.replace("ports = 1000", "ports = 1000\noptions = true");
    let setup = Setup::default();
    let Some(mut book) = Book::with("options_by_a_rule", Some(&policy), &[], &setup) else { return };
    for (line, options) in options() {
        let frame = V4.udp_to(V4.remote, OPEN).options(&options).frame();
        match line.starts_with("X1 ") {
            true => drop(book.passes(&line.replace("X1", "X30"), &frame)),
            false => book.refused(&line.replace("X2", "X31"), &frame),
        }
    }
    let plain = V6.udp_to(V6.remote, OPEN);
    for kind in [extension::HOP_BY_HOP, extension::DESTINATION] {
        book.passes("X30", &plain.clone().extension(kind, &NOTHING).frame());
    }
    for kind in [0, 2, 3, 4] {
        let route = [&[2, kind, 1, 0, 0, 0, 0], &octets(V6.elsewhere)[..]].concat();
        book.refused("X31", &plain.clone().extension(extension::ROUTING, &route).frame());
    }
    let denied = V6.udp_to(V6.denied, OPEN).extension(extension::DESTINATION, &NOTHING);
    book.refused("X32", &denied.frame());
    book.refused("X32", &V4.udp_to(V4.denied, OPEN).options(&[148, 4, 0, 0]).frame());
    for hosts in BOTH {
        // Options do not move the ports.
        let shut = match hosts.is_v6() {
            true => hosts.udp_to(hosts.remote, 53).extension(extension::DESTINATION, &NOTHING),
            false => hosts.udp_to(hosts.remote, 53).options(&[148, 4, 0, 0]),
        };
        book.refused(&format!("X33 {}", hosts.name), &shut.frame());
    }
    book.done();
}

/// Options of ICMP errors and of segments.
#[test]
fn options_of_other_packets() {
    let Some(mut book) = Book::new("options_of_other_packets") else { return };
    for hosts in BOTH {
        let with = |packet: Packet| match hosts.is_v6() {
            true => packet.extension(extension::DESTINATION, &NOTHING),
            false => packet.options(&[148, 4, 0, 0]),
        };
        let asks = hosts.udp_to(hosts.remote, OPEN);
        book.passes(&format!("X40 {}", hosts.name), &asks.frame());
        let answer = hosts.udp_from(hosts.remote, (OPEN, OWN));
        book.passes_in(&format!("X40 {}", hosts.name), &answer.frame());
        let error = transport::unreachable(hosts.is_v6(), &answer.bytes());
        let complains = hosts.out(hosts.remote, hosts.icmp(), error);
        book.passes(&format!("X40 {} error", hosts.name), &complains.frame());
        book.refused(&format!("X41 {}", hosts.name), &with(complains).frame());
        let error = transport::unreachable(hosts.is_v6(), &asks.bytes());
        let told = hosts.inward(hosts.remote, hosts.icmp(), error);
        book.passes_in(&format!("X40 {} error", hosts.name), &told.frame());
        book.refused_in(&format!("X42 {}", hosts.name), &with(told).frame());
        for (flags, data) in [(SYN, &b""[..]), (ACK, b"data")] {
            let segment = hosts.out(hosts.remote, TCP, transport::tcp((OWN, OPEN), flags, (1, 1), data));
            book.refused(&format!("X43 {}", hosts.name), &with(segment).frame());
        }
        book.refused(&format!("X44 {}", hosts.name), &with(hosts.ping_to(hosts.remote, 9)).frame());
    }
    let address: IpAddr = "::1".parse().expect("an address");
    let headers = [&[0x60, 0, 0, 0, 0, 0, 59, 64][..], &octets(V6.guest), &octets(address)].concat();
    book.refused("X45 headers alone", &ether((GATEWAY, GUEST), IPV6, &headers));
    book.done();
}
