//! The bypass book, chapters "Friendly refusals", "Several queues" and "Control queue".

use std::time::{Duration, Instant};

use protocol_tests::bypass::book::{Book, introductions, marker};
use protocol_tests::bypass::hosts::{
    BOTH, GUEST, Hosts, NEIGHBOUR, OPEN, OWN, POLICY, SHUT, STRANGER, V4, V6,
};
use protocol_tests::bypass::packet::{ETHER_LEN, Packet, octets};
use protocol_tests::bypass::transport::{self, ACK, RST, TCP, UDP};
use protocol_tests::frame::NetHeader;
use protocol_tests::rig::LIMIT;
use protocol_tests::session::Setup;
use protocol_tests::wire::feature;

fn rejecting() -> String {
    POLICY.replace("refuse = \"drop\"", "refuse = \"reject\"")
}

/// Checks that the guest gets an answer to `packet` from its destination, and returns what it carries.
fn answered(book: &mut Book, line: &str, hosts: &Hosts, packet: &Packet, protocol: u8) -> Vec<u8> {
    book.refused(line, &packet.frame());
    let got = book.session.rx(0).recv(LIMIT).unwrap_or_else(|error| panic!("{line}: no answer: {error}"));
    let ip = &got.bytes[ETHER_LEN..];
    assert_eq!((&got.bytes[..6], &got.bytes[6..12]), (&GUEST[..], &packet.macs.0[..]), "{line}");
    let (found, ends, header) = match hosts.is_v6() {
        true => (ip[6], &ip[8..40], 40),
        false => (ip[9], &ip[12..20], 20),
    };
    assert_eq!(ends, [octets(packet.to), octets(packet.from)].concat(), "{line}: from and to");
    assert_eq!(found, protocol, "{line}: protocol");
    ip[header..].to_vec()
}

#[test]
fn refusals_are_friendly() {
    let (policy, setup) = (rejecting(), Setup::default());
    let Some(mut book) = Book::with("refusals_are_friendly", Some(&policy), &[], &setup) else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let syn = hosts.syn_to(hosts.elsewhere, 80);
        let reset = answered(&mut book, &format!("R1 {name}"), &hosts, &syn, TCP);
        assert_eq!(reset[..4], transport::tcp((80, OWN), 0, (0, 0), b"")[..4], "R1 {name}: ports");
        assert_eq!(reset[8..12], 1001u32.to_be_bytes(), "R1 {name}: it acknowledges the SYN");
        assert_eq!(reset[13] & (RST | ACK), RST | ACK, "R1 {name}");
        let stray = hosts.out(hosts.remote, TCP, transport::tcp((OWN, OPEN), ACK, (77, 99), b"data"));
        let reset = answered(&mut book, &format!("R1 {name}"), &hosts, &stray, TCP);
        assert_eq!((&reset[4..8], reset[13]), (&99u32.to_be_bytes()[..], RST), "R1 {name}: it fits");
        let (kind, code) = if hosts.is_v6() { (1, 1) } else { (3, 13) };
        for packet in [
            hosts.udp_to(hosts.elsewhere, 53),
            hosts.udp_to(hosts.remote, SHUT),
            hosts.udp_to(hosts.stranger, OPEN).at(STRANGER),
            hosts.ping_to(hosts.elsewhere, 1),
        ] {
            let line = format!("R2 {name} {}", packet.to);
            let error = answered(&mut book, &line, &hosts, &packet, hosts.icmp());
            assert_eq!((error[0], error[1]), (kind, code), "{line}");
            // It quotes the packet, by which the guest's stack finds its socket.
            let quoted = &error[8 + if hosts.is_v6() { 40 } else { 20 }..];
            assert_eq!(quoted[..2], packet.payload[..2], "{line}");
        }
        // Nothing follows: the marker to the guest is next.
        let silent = [
            ("spoofed", hosts.udp_to(hosts.elsewhere, 53).by(STRANGER)),
            ("another's address", hosts.udp_to(hosts.elsewhere, 53).from(hosts.stranger)),
            ("a reset", hosts.out(hosts.remote, TCP, transport::tcp((OWN, OPEN), RST, (1, 1), b""))),
            ("an echo reply", {
                let reply = transport::echo(hosts.is_v6(), false, 1, b"x");
                hosts.out(hosts.remote, hosts.icmp(), reply)
            }),
            ("a later fragment", hosts.udp_to(hosts.elsewhere, 53).fragment(8, false)),
            ("to the wrong place", hosts.udp_to(hosts.remote, OPEN).at(NEIGHBOUR)),
        ];
        for (what, packet) in silent {
            book.refused(&format!("R3 {name} {what}"), &packet.frame());
            let marker = book.marker_in();
            book.rig.wire.send(&marker).expect("sent");
            book.received(&format!("R3 {name} {what}"), &marker);
        }
    }
    book.done();
}

/// `refuse = "drop"`.
#[test]
fn refusals_can_be_silent() {
    let Some(mut book) = Book::new("refusals_can_be_silent") else { return };
    for hosts in BOTH {
        for packet in [
            hosts.syn_to(hosts.elsewhere, 80),
            hosts.udp_to(hosts.elsewhere, 53),
            hosts.ping_to(hosts.elsewhere, 1),
        ] {
            let line = format!("R4 {} {}", hosts.name, packet.protocol);
            book.refused(&line, &packet.frame());
            let marker = book.marker_in();
            book.rig.wire.send(&marker).expect("sent");
            book.received(&line, &marker);
        }
    }
    book.done();
}

/// A flood of refused frames gets few answers.
#[test]
fn refusals_of_a_flood_are_few() {
    let setup = Setup::default();
    let policy = rejecting();
    let Some(mut book) = Book::with("refusals_of_a_flood_are_few", Some(&policy), &[], &setup) else {
        return;
    };
    let frame = V4.udp_to(V4.elsewhere, 53).frame();
    let start = Instant::now();
    let mut answers = 0;
    let mut take = |book: &mut Book, last: Option<&[u8]>| loop {
        let limit = if last.is_some() { LIMIT } else { Duration::ZERO };
        let Ok(got) = book.session.rx(0).recv(limit) else { return };
        match last {
            Some(last) if got.bytes == last => return,
            _ => answers += 1,
        }
    };
    let before = book.counts();
    for _ in 0..20 {
        for _ in 0..50 {
            book.send("R5", &NetHeader::default(), &frame, &[]);
        }
        take(&mut book, None);
    }
    book.only_a_marker("R5");
    let last = book.marker_in();
    book.rig.wire.send(&last).expect("sent");
    take(&mut book, Some(&last));
    let seconds = start.elapsed().as_secs() + 2;
    assert!(answers > 0 && answers <= 100 * seconds, "R5: {answers} answers in {seconds} seconds");
    book.counted("R5", &before, "tx", 1000);
    book.done();
}

/// One filter for all queues: a flow belongs to none of them.
#[test]
fn flows_over_two_queues() {
    let setup = Setup::pairs(2);
    let extra = ["--queues", "2"];
    // Nothing to the guest but what the test sends: a frame may come by either queue.
    let Some(mut book) = book_of_two(&extra, &setup) else { return };
    for (number, hosts) in BOTH.into_iter().enumerate() {
        let allowed = |port| hosts.out(hosts.remote, UDP, transport::udp(port, OPEN, b"x")).frame();
        for pair in [0, 1] {
            book.tried.line("Q1");
            sends(&mut book, pair, &allowed(100));
            book.arrives(&format!("Q1 {} {pair}", hosts.name), &allowed(100));
        }
        let before = book.counts();
        let mut sent = 0;
        for pair in [0, 1] {
            for packet in [
                hosts.udp_to(hosts.remote, SHUT),
                hosts.udp_to(hosts.denied, OPEN),
                hosts.udp_to(hosts.remote, OPEN).by(STRANGER),
                hosts.udp_to(hosts.remote, OPEN).from(hosts.stranger),
                hosts.udp_to(hosts.remote, OPEN).fragment(8 * pair as u16, pair == 0),
            ] {
                sends(&mut book, pair, &packet.frame());
                sent += 1;
            }
            let last = marker(&V4, 1000 + 2 * number as u32 + pair as u32);
            sends(&mut book, pair, &last);
            book.arrives(&format!("Q2 {} {pair}", hosts.name), &last);
        }
        book.counted(&format!("Q2 {}", hosts.name), &before, "tx", sent);
        // The answer comes by the queue that the kernel chooses.
        book.tried.line("Q3");
        for port in 200..232 {
            sends(&mut book, usize::from(port % 2), &allowed(port));
            book.arrives(&format!("Q3 {} {port}", hosts.name), &allowed(port));
            let answer = hosts.udp_from(hosts.remote, (OPEN, port)).frame();
            book.rig.wire.send(&answer).expect("sent");
            assert!(from_either(&mut book) == answer, "Q3 {} {port}", hosts.name);
        }
    }
    book.tried.all();
}

fn book_of_two(extra: &[&str], setup: &Setup) -> Option<Book> {
    Book::unshown("flows_over_two_queues", Some(POLICY), extra, setup).map(|mut book| {
        for frame in introductions() {
            book.rig.wire.send(&frame).expect("sent");
            assert!(from_either(&mut book) == frame);
        }
        book
    })
}

/// Sends a frame of the guest on this pair.
fn sends(book: &mut Book, pair: usize, frame: &[u8]) {
    book.session.tx(pair).send(frame, LIMIT).expect("used");
}

/// Returns the next frame that the guest receives on either pair.
fn from_either(book: &mut Book) -> Vec<u8> {
    let frame = protocol_tests::daemon::poll_until(LIMIT, || {
        (0..2).find_map(|pair| book.session.rx(pair).recv(Duration::ZERO).ok())
    });
    frame.expect("a frame").bytes
}

/// Commands of the control queue by which a driver changes what its device receives: volt-netd offers none.
#[test]
fn control_commands() {
    let base = Setup::default();
    let setup = Setup { control: Some(2), features: base.features | feature::CTRL_VQ, ..base };
    let extra = ["--queues", "2"];
    let Some(mut book) = Book::with("control_commands", Some(POLICY), &extra, &setup) else { return };
    let spoofed = V4.udp_to(V4.remote, OPEN).by(NEIGHBOUR);
    let commands: [(u8, u8, &[u8]); 9] = [
        (0, 0, &[1]),
        (0, 1, &[1]),
        (0, 2, &[1]),
        (1, 0, &[1, 0, 0, 0, 0x52, 0x54, 0, 0, 0, 0x20, 0, 0, 0, 0]),
        (1, 1, &NEIGHBOUR),
        (2, 0, &[1, 0]),
        (2, 1, &[1, 0]),
        (5, 0, &[0xff; 8]),
        (200, 0, &[0; 6]),
    ];
    for (class, command, data) in commands {
        let line = format!("Q10 {class} {command}");
        let answer = book.session.nic.queues[2].command(class, command, data, LIMIT);
        assert_eq!(answer.expect("an answer"), 1, "{line}: the command is refused");
        book.refused(&line, &spoofed.frame());
        book.refused(&line, &V6.udp_to(V6.remote, OPEN).by(NEIGHBOUR).frame());
        let other = V4.udp_from(V4.remote, (7000, OPEN)).at(NEIGHBOUR);
        book.refused_in(&line, &other.frame());
    }
    book.done();
}
