//! The bypass book, chapter "The virtio-net header": what a guest asks the host to do to its frames.

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{BOTH, Hosts, OPEN, OWN, POLICY};
use protocol_tests::bypass::link::Arp;
use protocol_tests::bypass::packet::Packet;
use protocol_tests::bypass::transport::{self, ACK, SYN, TCP, UDP};
use protocol_tests::frame::{NetHeader, gso};
use protocol_tests::session::Setup;
use protocol_tests::wire::feature;

const NEEDS_CSUM: u8 = gso::NEEDS_CSUM;

/// A card that negotiates all offloads of the guest's frames.
fn offloads() -> Setup {
    let base = Setup::default();
    let wanted =
        feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN | feature::HOST_USO;
    Setup { features: base.features | wanted, ..base }
}

fn book(test: &'static str) -> Option<Book> {
    Book::with(test, Some(POLICY), &[], &offloads())
}

/// Returns the header that asks for the checksum at `start` and `offset`.
fn checksum(start: usize, offset: usize) -> NetHeader {
    let (csum_start, csum_offset) = (start as u16, offset as u16);
    NetHeader { flags: NEEDS_CSUM, csum_start, csum_offset, ..NetHeader::default() }
}

/// Opens a connection from the guest, of which the next segment has the numbers 1001 and 5001.
fn open(book: &mut Book, line: &str, hosts: &Hosts) {
    let syn = hosts.syn_to(hosts.remote, OPEN);
    book.passes(line, &syn.frame());
    let answer = transport::tcp((OPEN, OWN), SYN | ACK, (5000, 1001), b"");
    book.passes_in(line, &hosts.inward(hosts.remote, TCP, answer).frame());
    let rest = transport::tcp((OWN, OPEN), ACK, (1001, 5001), b"");
    book.passes(line, &hosts.out(hosts.remote, TCP, rest).frame());
}

/// Returns a segment of an open connection with `len` bytes of data.
fn segment(hosts: &Hosts, len: usize) -> Packet {
    hosts.out(hosts.remote, TCP, transport::tcp((OWN, OPEN), ACK, (1001, 5001), &vec![0x5a; len]))
}

fn datagram(hosts: &Hosts, len: usize) -> Packet {
    hosts.out(hosts.remote, UDP, transport::udp(OWN, OPEN, &vec![0x5a; len]))
}

/// The kernel writes the checksum wherever the header says: over an address or a port as well.
#[test]
fn checksums_at_every_place() {
    let Some(mut book) = book("checksums_at_every_place") else { return };
    for hosts in BOTH {
        open(&mut book, "O1", &hosts);
        for (packet, place) in [
            (datagram(&hosts, 100), Some(6)),
            (segment(&hosts, 100), Some(16)),
            (hosts.ping_to(hosts.remote, 1), None),
        ] {
            let (name, start, frame) = (hosts.name, packet.transport(), packet.frame());
            let right = |from: usize, offset: usize| from == start && Some(offset) == place;
            let places = (0..200).flat_map(|start| [0, 2, 6, 14, 16, 18, 26, 30].map(|at| (start, at)));
            let sums = places.filter(|(from, at)| !right(*from, *at));
            let tries = sums.map(|(from, at)| (checksum(from, at), frame.clone()));
            book.refused_all(&format!("O2 {name} {}", packet.protocol), tries);
            let far = [(start, 0xfff6), (0xffff, 0xffff), (0xfff0, 22), (0, 65_535), (65_535, 0)];
            let tries = far.map(|(from, at)| (checksum(from, at), frame.clone()));
            book.refused_all(&format!("O2 {name} {}", packet.protocol), tries);
            if let Some(place) = place {
                let got = book.passes_with(&format!("O3 {name}"), &checksum(start, place), &frame);
                assert_eq!((got.flags, got.gso_type), (NEEDS_CSUM, gso::NONE), "{name}");
                assert_eq!((got.csum_start, got.csum_offset), (start as u16, place as u16), "{name}");
            }
        }
    }
    let arp = Arp::request(BOTH[0].guest, BOTH[0].gateway).frame();
    for start in 0..40 {
        book.refused_all("O4 ARP", [(checksum(start, 0), arp.clone())]);
    }
    book.done();
}

#[test]
fn flags_of_the_header() {
    let Some(mut book) = book("flags_of_the_header") else { return };
    for hosts in BOTH {
        let packet = datagram(&hosts, 100);
        let right = checksum(packet.transport(), 6);
        let others = (0..=255u8).filter(|flags| ![0, NEEDS_CSUM].contains(flags));
        let tries = others.map(|flags| (NetHeader { flags, ..right }, packet.frame()));
        book.refused_all(&format!("O5 {}", hosts.name), tries);
        let arp = Arp::request(BOTH[0].guest, BOTH[0].gateway).frame();
        book.refused_all("O5 ARP", (2..=255u8).map(|flags| (NetHeader { flags, ..right }, arp.clone())));
        // Nothing else of it goes on.
        let odd = NetHeader {
            hdr_len: 0xffff,
            gso_size: 0xffff,
            csum_start: 0xffff,
            csum_offset: 0xffff,
            num_buffers: 0xffff,
            ..NetHeader::default()
        };
        let got = book.passes_with(&format!("O6 {}", hosts.name), &odd, &packet.frame());
        let plain = NetHeader { hdr_len: got.hdr_len, ..NetHeader::default() };
        assert_eq!(got, plain, "{}", hosts.name);
        let got = book.passes_with("O6 ARP", &odd, &arp);
        assert_eq!(got, NetHeader { hdr_len: got.hdr_len, ..NetHeader::default() });
    }
    book.done();
}

/// Returns the GSO type of TCP.
fn own_type(hosts: &Hosts) -> u8 {
    if hosts.is_v6() { gso::TCPV6 } else { gso::TCPV4 }
}

fn segmented(packet: &Packet, place: usize, gso_type: u8, gso_size: u16) -> NetHeader {
    let headers = packet.transport() + if packet.protocol == TCP { 20 } else { 8 };
    NetHeader { gso_type, gso_size, hdr_len: headers as u16, ..checksum(packet.transport(), place) }
}

#[test]
fn segmentation_of_other_packets() {
    let Some(mut book) = book("segmentation_of_other_packets") else { return };
    let arp = Arp::request(BOTH[0].guest, BOTH[0].gateway).frame();
    for hosts in BOTH {
        open(&mut book, "O9", &hosts);
        let name = hosts.name;
        let (tcp, udp) = (segment(&hosts, 3000), datagram(&hosts, 3000));
        let own = own_type(&hosts);
        let before = book.counts();
        for kind in (1..=255u8).filter(|kind| kind & !gso::ECN != own) {
            let header = segmented(&tcp, 16, kind, 1000);
            book_later(&mut book, &format!("O10 {name} TCP as {kind}"), header, &tcp);
        }
        for kind in (1..=255u8).filter(|kind| ![gso::UDP, gso::UDP_L4].contains(kind)) {
            let header = segmented(&udp, 6, kind, 1000);
            book_later(&mut book, &format!("O10 {name} UDP as {kind}"), header, &udp);
        }
        let ping = hosts.ping_to(hosts.remote, 1);
        for kind in 1..=255u8 {
            let header = NetHeader { gso_type: kind, gso_size: 1000, ..NetHeader::default() };
            book_later(&mut book, &format!("O10 {name} echo as {kind}"), header, &ping);
        }
        book.only_a_marker(&format!("O10 {name}"));
        book.counted(&format!("O10 {name}"), &before, "tx", 253 + 253 + 255);
        for (packet, place, kind) in [(&tcp, 16, own), (&udp, 6, gso::UDP_L4), (&udp, 6, gso::UDP)] {
            let header = segmented(packet, place, kind, 1000);
            let without = NetHeader { flags: 0, ..header };
            book.refused_all(&format!("O11 {name} {kind}"), [(without, packet.frame())]);
            for size in [0, 1, 7, 65_510, 65_535] {
                let header = NetHeader { gso_size: size, ..header };
                book.refused_all(&format!("O12 {name} {kind} {size}"), [(header, packet.frame())]);
            }
            for start in [0, 14, 26, 30, 38, 200] {
                let header = NetHeader { csum_start: start, ..header };
                book.refused_all(&format!("O13 {name} {kind} {start}"), [(header, packet.frame())]);
            }
            let part = packet.clone().fragment(0, true);
            let header = NetHeader { csum_start: part.transport() as u16, ..header };
            book.refused_all(&format!("O14 {name} {kind}"), [(header, part.frame())]);
        }
    }
    for kind in 1..=8 {
        let header = NetHeader { gso_type: kind, gso_size: 20, ..NetHeader::default() };
        book.refused_all("O15 ARP", [(header, arp.clone())]);
    }
    book.done();
}

/// Sends a frame that is refused, whose absence a later marker proves.
fn book_later(book: &mut Book, line: &str, header: NetHeader, packet: &Packet) {
    book.tried.line(line);
    book.send(line, &header, &packet.frame(), &[]);
}

/// The length of the headers is made from the headers.
#[test]
fn segments_are_rebuilt() {
    let Some(mut book) = book("segments_are_rebuilt") else { return };
    for hosts in BOTH {
        open(&mut book, "O19", &hosts);
        let (tcp, udp) = (segment(&hosts, 3000), datagram(&hosts, 3000));
        for (packet, place, kind) in [(&tcp, 16, own_type(&hosts)), (&udp, 6, gso::UDP_L4)] {
            let right = segmented(packet, place, kind, 1000);
            // The wire shows how the kernel has laid out the frame, which is the same for all.
            let line = format!("O20 {} {kind}", hosts.name);
            let expected = book.passes_with(&line, &right, &packet.frame());
            assert_eq!(NetHeader { hdr_len: right.hdr_len, ..expected }, right, "{line}");
            for hdr_len in [0, 1, 14, right.hdr_len + 1, 200, 3000, 65_535] {
                let header = NetHeader { hdr_len, num_buffers: 0x5a5a, ..right };
                let got = book.passes_with(&line, &header, &packet.frame());
                assert_eq!(got, expected, "{line} {hdr_len}");
            }
        }
        // Payload behind the judged bytes arrives; the host has no say in it.
        let mut data = vec![0; 64_000];
        data.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at / 7) as u8);
        let long = hosts.out(hosts.elsewhere, TCP, transport::tcp((OWN, OPEN), ACK, (1001, 5001), &data));
        let header = segmented(&long, 16, own_type(&hosts), 1400);
        book.refused_all(&format!("O21 {}", hosts.name), [(header, long.clone().frame())]);
        let allowed = long.to(hosts.remote);
        // No more than the window that the answer has announced.
        let window = 8192;
        let mut allowed = allowed;
        allowed.payload.truncate(20 + window);
        book.passes_with(&format!("O22 {}", hosts.name), &header, &allowed.frame());
        let mut udp = hosts.out(hosts.remote, UDP, transport::udp(OWN, OPEN, &data));
        let header = segmented(&udp, 6, gso::UDP_L4, 1400);
        book.passes_with(&format!("O22 {}", hosts.name), &header, &udp.frame());
        udp.to = hosts.denied;
        book.refused_all(&format!("O21 {}", hosts.name), [(header, udp.frame())]);
    }
    book.done();
}
