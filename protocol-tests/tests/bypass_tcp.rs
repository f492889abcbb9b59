//! The bypass book, chapter "TCP connections".

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{BOTH, Hosts, OPEN, STRANGER};
use protocol_tests::bypass::packet::Packet;
use protocol_tests::bypass::transport::{self, ACK, FIN, PSH, RST, SYN, TCP, URG};

/// The window of all segments: [`transport::tcp`].
const WINDOW: u32 = 8192;

/// One connection of the guest, by its port. The guest's next number is 1001, the other's 5001.
#[derive(Clone, Copy)]
struct Connection {
    hosts: Hosts,
    port: u16,
}

impl Connection {
    fn out(&self, flags: u8, numbers: (u32, u32), data: &[u8]) -> Packet {
        self.hosts.out(self.hosts.remote, TCP, transport::tcp((self.port, OPEN), flags, numbers, data))
    }

    fn inward(&self, flags: u8, numbers: (u32, u32), data: &[u8]) -> Packet {
        self.hosts.inward(self.hosts.remote, TCP, transport::tcp((OPEN, self.port), flags, numbers, data))
    }

    /// Opens it.
    fn open(self, book: &mut Book, line: &str) -> Connection {
        book.passes(line, &self.out(SYN, (1000, 0), b"").frame());
        book.passes_in(line, &self.inward(SYN | ACK, (5000, 1001), b"").frame());
        book.passes(line, &self.out(ACK, (1001, 5001), b"").frame());
        self
    }

    /// Shows that it is open still, without moving its windows.
    fn goes_on(&self, book: &mut Book, line: &str) {
        book.passes(line, &self.out(ACK | PSH, (1001, 5001), b"data").frame());
        book.passes_in(line, &self.inward(ACK | PSH, (5001, 1001), b"data").frame());
    }
}

#[test]
fn segments_without_a_connection() {
    let Some(mut book) = Book::new("segments_without_a_connection") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let at = |port| Connection { hosts, port };
        for flags in [ACK, ACK | PSH, SYN | ACK, FIN | ACK, RST, RST | ACK] {
            let line = format!("C1 {name} {flags:#x}");
            book.refused(&line, &at(1).out(flags, (1, 1), b"").frame());
            book.refused_in(&line.replace("C1", "C2"), &at(1).inward(flags, (1, 1), b"").frame());
        }
        for flags in
            [0, FIN, PSH, URG, FIN | PSH | URG, SYN | FIN, SYN | RST, SYN | URG, SYN | FIN | ACK, 0x3f]
        {
            let line = format!("C3 {name} {flags:#x}");
            book.refused(&line, &at(1).out(flags, (1, 1), b"").frame());
            book.refused_in(&line.replace("C3", "C4"), &at(1).inward(flags, (1, 1), b"").frame());
        }
        book.refused(&format!("C5 {name}"), &at(2).out(SYN, (1, 0), b"data").frame());
        // The refused ones have begun nothing.
        book.refused_in(&format!("C6 {name}"), &at(2).inward(SYN | ACK, (1, 2), b"").frame());
    }
    book.done();
}

#[test]
fn handshakes() {
    let Some(mut book) = Book::new("handshakes") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let at = |port| Connection { hosts, port };
        let half = at(10);
        book.passes(&format!("C10 {name}"), &half.out(SYN, (1000, 0), b"").frame());
        book.refused(&format!("C11 {name}"), &half.out(ACK, (1001, 5001), b"").frame());
        book.refused(&format!("C11 {name}"), &half.out(ACK | PSH, (1001, 1), b"data").frame());
        book.refused(&format!("C11 {name}"), &half.out(FIN | ACK, (1001, 1), b"").frame());
        for number in [0, 1000, 1002, 9000] {
            let answer = half.inward(SYN | ACK, (5000, number), b"");
            book.refused_in(&format!("C12 {name} {number}"), &answer.frame());
        }
        book.refused_in(&format!("C13 {name}"), &half.inward(SYN | ACK, (5000, 1001), b"data").frame());
        book.refused_in(&format!("C14 {name}"), &half.inward(SYN, (5000, 0), b"").frame());
        book.refused_in(&format!("C15 {name}"), &half.inward(ACK, (5000, 1001), b"data").frame());
        for number in [0, 1000, 1002] {
            let refusal = half.inward(RST | ACK, (0, number), b"");
            book.refused_in(&format!("C16 {name} {number}"), &refusal.frame());
            let refusal = half.inward(RST, (number, 0), b"");
            book.refused_in(&format!("C16 {name} {number}"), &refusal.frame());
        }
        book.passes_in(&format!("C17 {name}"), &half.inward(SYN | ACK, (5000, 1001), b"").frame());
        book.passes(&format!("C18 {name}"), &half.out(SYN | ACK, (1000, 5001), b"").frame());
        book.passes(&format!("C17 {name}"), &half.out(ACK, (1001, 5001), b"").frame());
        half.goes_on(&mut book, &format!("C17 {name}"));
        let shut = at(11);
        book.passes(&format!("C10 {name}"), &shut.out(SYN, (1000, 0), b"").frame());
        book.passes_in(&format!("C19 {name}"), &shut.inward(RST | ACK, (0, 1001), b"").frame());
        book.refused(&format!("C20 {name}"), &shut.out(ACK | PSH, (9_000_000, 1), b"data").frame());
    }
    book.done();
}

#[test]
fn segments_beside_an_open_connection() {
    let Some(mut book) = Book::new("segments_beside_an_open_connection") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let known = Connection { hosts, port: 20 }.open(&mut book, &format!("C30 {name}"));
        let far = [1001 + WINDOW + 1, 1001 + (1 << 20), 1001 + (1 << 31), 1001u32.wrapping_sub(200_000)];
        for number in far {
            book.refused(&format!("C31 {name} {number}"), &known.out(ACK, (number, 5001), b"data").frame());
            book.refused(&format!("C33 {name} {number}"), &known.out(RST, (number, 0), b"").frame());
            book.refused(&format!("C33 {name} {number}"), &known.out(FIN | ACK, (number, 5001), b"").frame());
            let number = number.wrapping_add(4000);
            book.refused_in(
                &format!("C32 {name} {number}"),
                &known.inward(ACK, (number, 1001), b"data").frame(),
            );
            book.refused_in(&format!("C34 {name} {number}"), &known.inward(RST, (number, 0), b"").frame());
            book.refused_in(
                &format!("C34 {name} {number}"),
                &known.inward(RST | ACK, (number, 1001), b"").frame(),
            );
        }
        for number in [5002, 50_000, 5001u32.wrapping_sub(200_000)] {
            book.refused(&format!("C35 {name} {number}"), &known.out(ACK, (1001, number), b"").frame());
            let number = number.wrapping_sub(4000);
            book.refused_in(&format!("C35 {name} {number}"), &known.inward(ACK, (5001, number), b"").frame());
        }
        for flags in [0, FIN, FIN | PSH | URG, SYN | FIN, SYN | RST, 0x3f] {
            book.refused(&format!("C36 {name} {flags:#x}"), &known.out(flags, (1001, 5001), b"").frame());
            book.refused_in(
                &format!("C36 {name} {flags:#x}"),
                &known.inward(flags, (5001, 1001), b"").frame(),
            );
        }
        book.refused(&format!("C37 {name}"), &known.out(SYN, (1000, 0), b"data").frame());
        book.refused_in(&format!("C38 {name}"), &known.inward(SYN, (7000, 0), b"").frame());
        let by = |packet: Packet| packet.by(STRANGER).frame();
        book.refused_in(&format!("C39 {name}"), &by(known.inward(ACK, (5001, 1001), b"data")));
        book.refused_in(&format!("C39 {name}"), &by(known.inward(RST, (5001, 0), b"")));
        let other = known.inward(ACK, (5001, 1001), b"data").from(hosts.elsewhere);
        book.refused_in(&format!("C40 {name}"), &other.frame());
        let other = known.out(ACK, (1001, 5001), b"data").to(hosts.denied);
        book.refused(&format!("C41 {name}"), &other.frame());
        known.goes_on(&mut book, &format!("C30 {name}"));
    }
    book.done();
}

#[test]
fn connections_that_are_over() {
    let Some(mut book) = Book::new("connections_that_are_over") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let known = Connection { hosts, port: 30 }.open(&mut book, &format!("C50 {name}"));
        book.passes_in(&format!("C51 {name}"), &known.inward(RST, (5001, 0), b"").frame());
        // Another connection between the same ends is a new one: it is judged by the rules.
        book.passes(&format!("C52 {name}"), &known.out(SYN, (80_000, 0), b"").frame());
        book.refused(&format!("C53 {name}"), &known.out(ACK, (1001, 5001), b"").frame());
        book.refused_in(&format!("C53 {name}"), &known.inward(SYN | ACK, (9000, 1001), b"").frame());
        book.passes_in(&format!("C52 {name}"), &known.inward(SYN | ACK, (9000, 80_001), b"").frame());
    }
    book.done();
}

/// Connections to the guest.
#[test]
fn connections_from_outside() {
    let Some(mut book) = Book::new("connections_from_outside") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let segment =
            |from, ports, flags, numbers| hosts.inward(from, TCP, transport::tcp(ports, flags, numbers, b""));
        let syn = segment(hosts.remote, (7000, OPEN), SYN, (1000, 0));
        for port in [22, 80, 999, 1001] {
            let other = segment(hosts.remote, (7000, port), SYN, (1000, 0));
            book.refused_in(&format!("C60 {name} {port}"), &other.frame());
        }
        let others = [hosts.elsewhere, hosts.neighbour, hosts.gateway, hosts.guest];
        for from in others {
            book.refused_in(&format!("C61 {name} {from}"), &syn.clone().from(from).frame());
        }
        book.refused_in(&format!("C62 {name}"), &syn.clone().by(STRANGER).frame());
        let answer = hosts.out(hosts.remote, TCP, transport::tcp((OPEN, 7000), SYN | ACK, (5000, 1001), b""));
        book.refused(&format!("C63 {name}"), &answer.frame());
        book.passes_in(&format!("C64 {name}"), &syn.frame());
        book.refused(&format!("C65 {name}"), &answer.clone().to(hosts.neighbour).frame());
        book.passes(&format!("C64 {name}"), &answer.frame());
        let ack = segment(hosts.remote, (7000, OPEN), ACK, (1001, 5001));
        book.passes_in(&format!("C64 {name}"), &ack.frame());
        // It is no permission for a connection the other way.
        let own = hosts.out(hosts.remote, TCP, transport::tcp((OPEN, 7000), SYN, (1, 0), b""));
        book.refused(&format!("C66 {name}"), &own.frame());
        let own = hosts.out(hosts.remote, TCP, transport::tcp((OPEN, 7001), SYN, (1, 0), b""));
        book.refused(&format!("C66 {name}"), &own.frame());
    }
    book.done();
}
