//! The bypass book, chapter "Fragments".

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{BOTH, GATEWAY, Hosts, OPEN, OWN, POLICY, SHUT, V4, V6};
use protocol_tests::bypass::packet::{Packet, extension};
use protocol_tests::bypass::transport::{self, ACK, ICMPV6, SYN, TCP, UDP};
use protocol_tests::frame::NetHeader;
use protocol_tests::session::Setup;

/// Returns a packet with 64 bytes of data to `to`, for each transport.
fn whole(hosts: &Hosts) -> [Packet; 3] {
    let mut ping = hosts.ping_to(hosts.remote, 7);
    ping.payload.resize(72, 1);
    let mut segment = hosts.syn_to(hosts.remote, OPEN);
    segment.payload.resize(84, 1);
    [hosts.out(hosts.remote, UDP, transport::udp(OWN, OPEN, &[1; 64])), segment, ping]
}

/// Returns the part of a packet from this offset to that one.
fn part(packet: &Packet, from: usize, to: usize, more: bool) -> Packet {
    let mut part = packet.clone().fragment(from as u16, more);
    part.payload = packet.payload.get(from..to.min(packet.payload.len())).unwrap_or_default().to_vec();
    part
}

#[test]
fn fragments_without_a_rule() {
    let Some(mut book) = Book::new("fragments_without_a_rule") else { return };
    for hosts in BOTH {
        for packet in whole(&hosts) {
            let name = format!("{} {}", hosts.name, packet.protocol);
            let len = packet.payload.len();
            book.refused(&format!("F1 {name}"), &part(&packet, 0, 40, true).frame());
            book.refused(&format!("F2 {name}"), &part(&packet, 24, 48, true).frame());
            book.refused(&format!("F3 {name}"), &part(&packet, 40, len, false).frame());
            for tiny in 0..8 {
                book.refused(&format!("F4 {name} {tiny}"), &part(&packet, 0, tiny, true).frame());
            }
            book.refused(&format!("F5 {name}"), &part(&packet, 8, len, false).frame());
            book.refused(&format!("F5 {name}"), &part(&packet, 16, len, true).frame());
            let mut last = packet.clone().fragment(65_528, false);
            last.payload = vec![1; 64];
            book.refused(&format!("F6 {name}"), &last.frame());
            book.refused(&format!("F7 {name}"), &part(&packet, 0, len, false).fragment_flag(&hosts).frame());
            let in_flow = NetHeader { flags: 1, csum_start: 34, csum_offset: 6, ..NetHeader::default() };
            book.refused_all(&format!("F8 {name}"), [(in_flow, part(&packet, 0, len, true).frame())]);
        }
    }
    book.done();
}

/// A fragment of a whole packet: IPv4's has more to follow, IPv6's is atomic.
trait FragmentFlag {
    fn fragment_flag(self, hosts: &Hosts) -> Packet;
}

impl FragmentFlag for Packet {
    fn fragment_flag(self, hosts: &Hosts) -> Packet {
        self.fragment(0, !hosts.is_v6())
    }
}

/// The flow is open: its fragments are no part of it.
#[test]
fn fragments_of_an_open_flow() {
    let Some(mut book) = Book::new("fragments_of_an_open_flow") else { return };
    for hosts in BOTH {
        let [udp, _, ping] = whole(&hosts);
        for packet in [udp, ping] {
            let name = format!("{} {}", hosts.name, packet.protocol);
            book.passes(&format!("F10 {name}"), &packet.frame());
            book.refused(&format!("F11 {name}, first"), &part(&packet, 0, 40, true).frame());
            book.refused(&format!("F11 {name}, last"), &part(&packet, 40, 72, false).frame());
            book.passes(&format!("F10 {name}"), &packet.frame());
        }
        let back = hosts.udp_from(hosts.remote, (OPEN, OWN));
        book.refused_in(&format!("F12 {}", hosts.name), &back.clone().fragment(0, true).frame());
        book.refused_in(&format!("F12 {}", hosts.name), &back.fragment(8, false).frame());
    }
    book.done();
}

#[test]
fn fragment_headers_in_odd_places() {
    let Some(mut book) = Book::new("fragment_headers_in_odd_places") else { return };
    let plain = V6.udp_to(V6.remote, OPEN);
    let header = |offset: u16, more| {
        let [high, low] = (offset | u16::from(more)).to_be_bytes();
        vec![0, high, low, 1, 2, 3, 4]
    };
    for offset in [0, 8, 64, 65_528] {
        for more in [false, true] {
            let place = header(offset, more);
            let once = plain.clone().extension(extension::FRAGMENT, &place);
            book.refused(&format!("F20 at {offset}"), &once.frame());
            let twice = once.clone().extension(extension::FRAGMENT, &place);
            book.refused(&format!("F21 at {offset}"), &twice.frame());
            let nested = once.clone().extension(extension::DESTINATION, &[0, 1, 4, 0, 0, 0, 0]);
            book.refused(&format!("F22 at {offset}"), &nested.clone().fragment(0, true).frame());
            book.refused(&format!("F22 options at {offset}"), &nested.frame());
        }
    }
    let behind = plain.clone().extension(extension::DESTINATION, &[0, 1, 4, 0, 0, 0, 0]).fragment(8, false);
    book.refused("F23 behind options", &behind.frame());
    // The first one would say what it is.
    for message in [134, 135, 136, 137] {
        let packet = V6.out(V6.remote, ICMPV6, transport::icmp(message, 0, &[0; 60]));
        book.refused(&format!("F24 {message}"), &part(&packet, 8, 64, false).frame());
        book.refused(&format!("F24 {message}"), &part(&packet, 0, 8, true).frame());
    }
    for bits in [0x8000u16, 0xc000] {
        let mut frame = V4.udp_to(V4.remote, OPEN).frame();
        frame[20] |= (bits >> 8) as u8;
        // The reserved bit, alone or with DF: not a fragment.
        book.passes("F25", &frame);
    }
    let mut both = V4.udp_to(V4.remote, OPEN).frame();
    both[20] = 0x60;
    book.refused("F26", &both);
    book.done();
}

/// Rules with `fragments = true`.
#[test]
fn fragments_by_a_rule() {
    let policy = POLICY.replace("protocol = \"icmp\"", "protocol = \"icmp\"\nfragments = true");
    let policy = format!(
        "{policy}\n[[allow]]\nto = [\"203.0.113.0/24\", \"2001:db8:9::/48\"]\nfragments = true\n\n\
         [[deny]]\nto = [\"203.0.113.66\", \"2001:db8:9::66\"]\nprotocol = \"udp\"\nports = 53\n"
    );
    let setup = Setup::default();
    let Some(mut book) = Book::with("fragments_by_a_rule", Some(&policy), &[], &setup) else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let ping = hosts.out(hosts.remote, hosts.icmp(), transport::echo(hosts.is_v6(), true, 3, &[1; 64]));
        if hosts.is_v6() {
            // Neighbour discovery could hide in it.
            book.refused(&format!("F30 {name}"), &part(&ping, 40, 72, false).frame());
        } else {
            book.passes(&format!("F31 {name}"), &part(&ping, 0, 40, true).frame());
            book.passes(&format!("F31 {name}"), &part(&ping, 40, 72, false).frame());
        }
        let udp = hosts.out(hosts.elsewhere, UDP, transport::udp(OWN, SHUT, &[1; 64]));
        book.passes(&format!("F31 {name} UDP"), &part(&udp, 0, 40, true).frame());
        book.passes(&format!("F31 {name} UDP"), &part(&udp, 40, 72, false).frame());
        for tiny in 0..8 {
            book.refused(&format!("F32 {name} {tiny}"), &part(&udp, 0, tiny, true).frame());
        }
        let tcp = hosts.out(hosts.elsewhere, TCP, transport::tcp((OWN, SHUT), SYN | ACK, (1, 1), &[1; 64]));
        for tiny in 0..20 {
            book.refused(&format!("F32 {name} TCP {tiny}"), &part(&tcp, 0, tiny, true).frame());
        }
        for offset in [8, 16] {
            book.refused(&format!("F33 {name} {offset}"), &part(&tcp, offset, 84, false).frame());
        }
        // A host with the same prefix whose port 53 is denied: no fragment says which port it has.
        let host = if hosts.is_v6() { "2001:db8:9::66" } else { "203.0.113.66" };
        let denied = udp.clone().to(host.parse().expect("an address"));
        book.refused(&format!("F34 {name}"), &part(&denied, 0, 40, true).frame());
        book.refused(&format!("F34 {name}"), &part(&denied, 40, 72, false).frame());
        // To another host, the same fragments have no rule.
        let other = udp.to(hosts.stranger);
        book.refused(&format!("F35 {name}"), &part(&other, 40, 72, false).frame());
        for len in [60, 1000] {
            let mut last = hosts.out(hosts.elsewhere, UDP, vec![1; len]).fragment(65_488, false);
            book.refused(&format!("F37 {name} {len}"), &last.frame());
            last.payload.truncate(27);
            book.passes(&format!("F31 {name}"), &last.frame());
        }
        let wrong = part(&tcp, 40, 84, false).at([0x52, 0x54, 0, 0, 0, 0x20]);
        book.refused(&format!("F36 {name}"), &wrong.frame());
        book.passes(&format!("F31 {name} TCP"), &part(&tcp, 40, 84, false).at(GATEWAY).frame());
    }
    book.done();
}
