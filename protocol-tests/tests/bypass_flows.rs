//! The bypass book, chapter "Answers and errors": UDP, echo, and ICMP errors from both sides.

use std::net::IpAddr;

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{
    BOTH, BROADCAST, GATEWAY, GUEST, Hosts, NEIGHBOUR, OPEN, OWN, POLICY, SHUT, STRANGER,
};
use protocol_tests::bypass::packet::Packet;
use protocol_tests::bypass::transport::{self, ACK, SYN, TCP, UDP};
use protocol_tests::session::Setup;

/// Returns "port unreachable" to the guest, from `from`, about `quoted`.
fn told(hosts: &Hosts, from: IpAddr, quoted: &Packet) -> Packet {
    hosts.inward(from, hosts.icmp(), transport::unreachable(hosts.is_v6(), &quoted.bytes()))
}

/// Returns "port unreachable" of the guest, to `to`, about `quoted`.
fn complains(hosts: &Hosts, to: IpAddr, quoted: &Packet) -> Packet {
    hosts.out(to, hosts.icmp(), transport::unreachable(hosts.is_v6(), &quoted.bytes()))
}

fn other_address(hosts: &Hosts) -> IpAddr {
    (if hosts.is_v6() { "2001:db8:5::8" } else { "198.51.100.8" }).parse().expect("an address")
}

#[test]
fn answers_without_a_question() {
    let Some(mut book) = Book::new("answers_without_a_question") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let back = |from, ports| hosts.udp_from(from, ports);
        for ports in [(OPEN, OWN), (53, OWN), (53, 53), (OPEN, SHUT)] {
            book.refused_in(&format!("E1 {name} {ports:?}"), &back(hosts.remote, ports).frame());
        }
        let echoed = transport::echo(hosts.is_v6(), false, 7, b"x");
        book.refused_in(&format!("E2 {name}"), &hosts.inward(hosts.remote, hosts.icmp(), echoed).frame());
        book.passes(&format!("E3 {name}"), &hosts.udp_to(hosts.remote, OPEN).frame());
        for ports in [(OPEN, OWN + 1), (SHUT, OWN), (53, OWN), (OWN, OPEN + 1)] {
            book.refused_in(&format!("E4 {name} {ports:?}"), &back(hosts.remote, ports).frame());
        }
        for from in [other_address(&hosts), hosts.denied, hosts.elsewhere, hosts.neighbour, hosts.gateway] {
            book.refused_in(&format!("E5 {name} {from}"), &back(from, (OPEN, OWN)).frame());
        }
        let answer = back(hosts.remote, (OPEN, OWN));
        for mac in [NEIGHBOUR, STRANGER, BROADCAST] {
            book.refused_in(&format!("E6 {name} {mac:x?}"), &answer.clone().by(mac).frame());
        }
        book.refused_in(&format!("E7 {name}"), &answer.clone().to(hosts.stranger).frame());
        book.refused_in(&format!("E8 {name}"), &answer.clone().at(STRANGER).frame());
        book.passes_in(&format!("E3 {name}"), &answer.frame());
        book.passes(&format!("E3 {name}"), &hosts.ping_to(hosts.remote, 7).frame());
        let reply = |from, request, identifier| {
            hosts.inward(from, hosts.icmp(), transport::echo(hosts.is_v6(), request, identifier, b"x"))
        };
        book.refused_in(&format!("E9 {name}"), &reply(hosts.remote, false, 8).frame());
        book.refused_in(&format!("E9 {name}"), &reply(other_address(&hosts), false, 7).frame());
        book.refused_in(&format!("E10 {name}"), &reply(hosts.remote, true, 7).frame());
        book.passes_in(&format!("E3 {name}"), &reply(hosts.remote, false, 7).frame());
    }
    book.done();
}

#[test]
fn datagrams_from_outside() {
    let Some(mut book) = Book::new("datagrams_from_outside") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let asks = hosts.udp_from(hosts.remote, (7000, OPEN));
        for port in [0, 22, 53, 999, 1001] {
            book.refused_in(
                &format!("E20 {name} {port}"),
                &hosts.udp_from(hosts.remote, (7000, port)).frame(),
            );
        }
        for from in [hosts.elsewhere, hosts.neighbour, hosts.gateway, hosts.stranger, hosts.guest] {
            book.refused_in(&format!("E21 {name} {from}"), &asks.clone().from(from).frame());
        }
        for mac in [NEIGHBOUR, STRANGER, GUEST, BROADCAST] {
            book.refused_in(&format!("E22 {name} {mac:x?}"), &asks.clone().by(mac).frame());
        }
        let mut others = vec![hosts.stranger, hosts.neighbour];
        let special = match hosts.is_v6() {
            true => ["ff02::1", "ff02::fb", "::1", "fe80::1"],
            false => ["255.255.255.255", "192.0.2.255", "224.0.0.251", "127.0.0.1"],
        };
        others.extend(special.map(|text| text.parse::<IpAddr>().expect("an address")));
        for to in others {
            for mac in [GUEST, BROADCAST, [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 0xfb]] {
                book.refused_in(&format!("E23 {name} {to}"), &asks.clone().to(to).at(mac).frame());
            }
        }
        for mac in [STRANGER, NEIGHBOUR, GATEWAY, [0; 6]] {
            book.refused_in(&format!("E24 {name} {mac:x?}"), &asks.clone().at(mac).frame());
        }
        let answer = hosts.out(hosts.remote, UDP, transport::udp(OPEN, 7000, b"x"));
        book.refused(&format!("E25 {name}"), &answer.frame());
        book.passes_in(&format!("E26 {name}"), &asks.frame());
        book.refused(&format!("E27 {name}"), &answer.clone().to(hosts.denied).frame());
        let other = hosts.out(hosts.remote, UDP, transport::udp(OPEN, 7001, b"x"));
        book.refused(&format!("E27 {name}"), &other.frame());
        book.passes(&format!("E26 {name}"), &answer.frame());
        let pings = transport::echo(hosts.is_v6(), true, 7, b"x");
        let pings = hosts.inward(hosts.remote, hosts.icmp(), pings);
        book.refused_in(&format!("E28 {name}"), &pings.frame());
    }
    book.done();
}

/// ICMP errors to the guest.
#[test]
fn errors_from_outside() {
    let Some(mut book) = Book::new("errors_from_outside") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let asks = hosts.udp_to(hosts.remote, OPEN);
        let router: IpAddr = hosts.elsewhere;
        book.refused_in(&format!("E30 {name}"), &told(&hosts, router, &asks).frame());
        book.passes(&format!("E31 {name}"), &asks.frame());
        for quoted in [
            hosts.udp_to(hosts.remote, SHUT),
            hosts.out(hosts.remote, UDP, transport::udp(OWN + 1, OPEN, b"x")),
            asks.clone().to(other_address(&hosts)),
            asks.clone().from(hosts.stranger),
            hosts.out(hosts.remote, TCP, transport::tcp((OWN, OPEN), ACK, (1, 1), b"")),
            hosts.ping_to(hosts.remote, 3),
            hosts.udp_from(hosts.remote, (OPEN, OWN)),
        ] {
            book.refused_in(&format!("E32 {name}"), &told(&hosts, router, &quoted).frame());
        }
        let error = told(&hosts, router, &asks);
        for mac in [NEIGHBOUR, STRANGER] {
            book.refused_in(&format!("E33 {name} {mac:x?}"), &error.clone().by(mac).frame());
        }
        book.refused_in(&format!("E34 {name}"), &error.clone().to(hosts.stranger).frame());
        book.refused_in(&format!("E35 {name}"), &error.clone().fragment(0, true).frame());
        book.refused_in(
            &format!("E35 {name}"),
            &told(&hosts, router, &asks.clone().fragment(8, false)).frame(),
        );
        for len in 0..asks.transport() - 14 + 8 {
            let mut cut = error.clone();
            cut.payload.truncate(8 + len);
            book.refused_in(&format!("E36 {name} {len}"), &cut.frame());
        }
        book.passes_in(&format!("E31 {name}"), &error.frame());
        let syn = hosts.syn_to(hosts.remote, OPEN);
        book.passes(&format!("E31 {name}"), &syn.frame());
        for number in [1002, 500_000, 1 << 31, 1000u32.wrapping_sub(100_000)] {
            let quoted = hosts.out(hosts.remote, TCP, transport::tcp((OWN, OPEN), SYN, (number, 0), b""));
            book.refused_in(&format!("E37 {name} {number}"), &told(&hosts, router, &quoted).frame());
        }
        book.passes_in(&format!("E31 {name}"), &told(&hosts, router, &syn).frame());
        if !hosts.is_v6() {
            let quench = hosts.inward(router, hosts.icmp(), transport::error(4, 0, &asks.bytes()));
            book.refused_in("E38", &quench.frame());
        }
        let redirect = transport::error(5, 1, &asks.bytes());
        let body = [&[0; 4], &[0x20; 16][..], &[0x20; 16]].concat();
        let redirect = if hosts.is_v6() { transport::icmp(137, 0, &body) } else { redirect };
        let redirect = hosts.inward(hosts.gateway, hosts.icmp(), redirect).hops(255);
        book.refused_in(&format!("E39 {name}"), &redirect.frame());
    }
    book.done();
}

/// ICMP errors of the guest.
#[test]
fn errors_of_the_guest() {
    let Some(mut book) = Book::new("errors_of_the_guest") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let asks = hosts.udp_from(hosts.remote, (7000, OPEN));
        for to in [hosts.remote, hosts.elsewhere, hosts.stranger] {
            book.refused(&format!("E40 {name} {to}"), &complains(&hosts, to, &asks).frame());
        }
        book.passes_in(&format!("E41 {name}"), &asks.frame());
        for quoted in [
            hosts.udp_from(hosts.remote, (7001, OPEN)),
            hosts.udp_from(hosts.remote, (7000, SHUT)),
            hosts.udp_from(hosts.elsewhere, (7000, OPEN)),
            asks.clone().to(hosts.stranger),
            hosts.udp_to(hosts.remote, OPEN),
        ] {
            book.refused(&format!("E42 {name}"), &complains(&hosts, hosts.remote, &quoted).frame());
        }
        let error = complains(&hosts, hosts.remote, &asks);
        for to in [hosts.elsewhere, hosts.denied, hosts.neighbour, hosts.stranger] {
            book.refused(&format!("E43 {name} {to}"), &error.clone().to(to).frame());
        }
        for mac in [NEIGHBOUR, STRANGER, BROADCAST] {
            book.refused(&format!("E44 {name} {mac:x?}"), &error.clone().at(mac).frame());
        }
        book.refused(&format!("E45 {name}"), &error.clone().fragment(0, true).frame());
        book.passes(&format!("E41 {name}"), &error.frame());
    }
    book.done();
}

/// A guest that may send errors may not send many. The rate is per second of a clock that the test does not
/// stop: it counts over all seconds that pass.
#[test]
fn errors_of_the_guest_are_few() {
    let Some(mut book) = Book::new("errors_of_the_guest_are_few") else { return };
    let hosts = BOTH[0];
    let asks = hosts.udp_from(hosts.remote, (7000, OPEN));
    book.passes_in("E50", &asks.frame());
    let frame = complains(&hosts, hosts.remote, &asks).frame();
    let (start, before) = (std::time::Instant::now(), book.counts());
    let sent = 300u64;
    let mut arrived = 0;
    for _ in 0..sent {
        book.send("E51", &Default::default(), &frame, &[]);
    }
    let marker = book.marker();
    book.send("E51", &Default::default(), &marker, &[]);
    loop {
        let (_, got) = book.rig.wire.recv(protocol_tests::rig::LIMIT).expect("the wire").expect("a frame");
        if got == marker {
            break;
        }
        assert!(got == frame, "E51");
        arrived += 1;
    }
    let seconds = start.elapsed().as_secs() + 2;
    assert!(arrived >= 50 && arrived <= 50 * seconds, "E51: {arrived} errors in {seconds} seconds");
    book.counted("E51", &before, "tx", sent - arrived);
    book.done();
}

/// The table of flows is full: new ones are refused, old ones go on.
#[test]
fn a_full_table() {
    let setup = Setup::default();
    let Some(mut book) = Book::with("a_full_table", Some(POLICY), &["--flows", "64"], &setup) else { return };
    let hosts = BOTH[1];
    let from = |port| hosts.out(hosts.remote, UDP, transport::udp(port, OPEN, b"x")).frame();
    // The two flows of markers.
    book.only_a_marker("E60");
    let marker = book.marker_in();
    book.rig.wire.send(&marker).expect("sent");
    book.received("E60", &marker);
    for port in 1..=62 {
        book.passes(&format!("E60 {port}"), &from(port));
    }
    for port in 63..=200 {
        book.refused(&format!("E61 {port}"), &from(port));
    }
    book.refused("E61", &BOTH[0].syn_to(BOTH[0].remote, OPEN).frame());
    book.refused_in("E62", &hosts.udp_from(hosts.remote, (7000, OPEN)).frame());
    for port in 1..=62 {
        book.passes(&format!("E60 {port}"), &from(port));
        let back = hosts.udp_from(hosts.remote, (OPEN, port));
        book.passes_in(&format!("E60 {port}"), &back.frame());
    }
    book.done();
}
