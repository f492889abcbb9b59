//! The bypass book, chapter "The link": MAC addresses, ARP, and frames that are neither IPv4 nor IPv6.

use std::net::Ipv4Addr;

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{
    BOTH, BROADCAST, GATEWAY, GUEST, NEIGHBOUR, OPEN, POLICY, STRANGER, V4, V6,
};
use protocol_tests::bypass::link::{ARP, Arp, RARP};
use protocol_tests::bypass::packet::{IPV4, ether};
use protocol_tests::frame::NetHeader;
use protocol_tests::session::Setup;

/// Tries the lines about the guest's identity on a daemon.
fn identity(book: &mut Book) {
    for hosts in BOTH {
        let good = hosts.udp_to(hosts.remote, OPEN);
        for mac in [GATEWAY, NEIGHBOUR, STRANGER, BROADCAST, [0; 6], [0x53, 0x54, 0, 1, 2, 3]] {
            book.refused(&format!("L1 {} from {mac:x?}", hosts.name), &good.clone().by(mac).frame());
        }
        for from in [hosts.neighbour, hosts.gateway, hosts.stranger, hosts.remote, hosts.elsewhere] {
            book.refused(&format!("L2 {} from {from}", hosts.name), &good.clone().from(from).frame());
        }
        book.passes(&format!("L3 {}", hosts.name), &good.frame());
    }
    let other = V4.stranger;
    let nobody = Ipv4Addr::UNSPECIFIED.into();
    for target in [V4.gateway, V4.neighbour, V4.guest] {
        book.refused("L4 request", &Arp::request(other, target).frame());
    }
    for (name, sender) in [("gateway", V4.gateway), ("neighbour", V4.neighbour), ("stranger", other)] {
        let reply = Arp::reply((GUEST, sender), (NEIGHBOUR, V4.neighbour));
        book.refused(&format!("L5 reply as the {name}"), &reply.frame());
        let gratuitous = Arp { macs: (BROADCAST, GUEST), target: ([0; 6], sender), ..reply };
        book.refused(&format!("L6 gratuitous reply as the {name}"), &gratuitous.frame());
        book.refused(&format!("L6 gratuitous request as the {name}"), &Arp::request(sender, sender).frame());
        book.refused(&format!("L7 probe for the {name}"), &Arp::request(nobody, sender).frame());
    }
    let own = Arp::reply((GUEST, V4.guest), (NEIGHBOUR, V4.neighbour));
    for mac in [NEIGHBOUR, GATEWAY, BROADCAST, [0; 6]] {
        book.refused("L8 another sender's MAC", &Arp { sender: (mac, V4.guest), ..own }.frame());
    }
    for operation in [0, 3, 4, 8, 9, 25, 0xffff] {
        book.refused(&format!("L9 operation {operation}"), &Arp { operation, ..own }.frame());
    }
    for at in 14..20 {
        let mut frame = own.frame();
        frame[at] ^= 1;
        book.refused(&format!("L9 byte {at}"), &frame);
    }
    book.refused("L9 cut", &own.frame()[..41]);
    let mut long = own.frame();
    long.resize(61, 0);
    book.refused("L10 longer than the shortest frame", &long);
    book.passes("L11 reply", &own.frame());
    book.passes("L11 request", &Arp::request(V4.guest, V4.gateway).frame());
    book.passes("L11 probe", &Arp::request(nobody, V4.guest).frame());
    book.passes("L11 announcement", &Arp::request(V4.guest, V4.guest).frame());
}

#[test]
fn identity_under_a_policy() {
    let Some(mut book) = Book::new("identity_under_a_policy") else { return };
    identity(&mut book);
    for target in [V4.stranger, V4.elsewhere, Ipv4Addr::BROADCAST.into()] {
        book.refused("L12 who has", &Arp::request(V4.guest, target).frame());
    }
    book.done();
}

/// The padding of a guest's frame says nothing.
#[test]
fn padding_is_cleared() {
    let Some(mut book) = Book::new("padding_is_cleared") else { return };
    let own = Arp::reply((GUEST, V4.guest), (NEIGHBOUR, V4.neighbour)).frame();
    let mut padded = own.clone();
    padded[42..].fill(0x5a);
    book.send("L13 ARP", &Default::default(), &padded, &[]);
    book.arrives("L13 ARP", &own);
    let packet = V4.udp_to(V4.remote, OPEN).frame();
    let mut clear = packet.clone();
    clear.resize(60, 0);
    let mut padded = packet;
    padded.resize(60, 0x5a);
    book.send("L13 IPv4", &Default::default(), &padded, &[]);
    book.arrives("L13 IPv4", &clear);
    book.tried.line("L13");
    for hosts in BOTH {
        for trailer in [1, 40, 1000, 4000] {
            let mut packet = hosts.udp_to(hosts.remote, OPEN);
            packet.payload.resize(40, 1);
            packet.payload[5] = 40;
            packet.trailer = vec![0x5a; trailer];
            book.refused(&format!("L14 {} and {trailer} bytes", hosts.name), &packet.frame());
        }
    }
    book.done();
}

#[test]
fn other_protocols_on_the_link() {
    let Some(mut book) = Book::new("other_protocols_on_the_link") else { return };
    tags(&mut book);
    ether_types(&mut book);
    announcements(&mut book);
    short_frames(&mut book);
    book.done();
}

/// VLAN tags, and 802.3.
fn tags(book: &mut Book) {
    for hosts in BOTH {
        let inner = &hosts.udp_to(hosts.remote, OPEN).frame()[12..];
        for tag in [0x8100, 0x88a8, 0x9100, 0x9200] {
            for vlan in [0, 1, 0xfff] {
                let tagged = [&u16::to_be_bytes(vlan)[..], inner].concat();
                book.refused(&format!("L20 tag {tag:x}"), &ether((GATEWAY, GUEST), tag, &tagged));
                let double = [&[0, 1, 0x81, 0], &tagged[..]].concat();
                book.refused(&format!("L21 double tag {tag:x}"), &ether((GATEWAY, GUEST), tag, &double));
            }
        }
        let raw = &inner[2..];
        for length in [0, 46, 1500, 0x5ff] {
            let llc = [&[0xaa, 0xaa, 3, 0, 0, 0], inner].concat();
            book.refused("L22 SNAP", &ether((GATEWAY, GUEST), length, &llc));
            book.refused("L22 raw", &ether((GATEWAY, GUEST), length, raw));
        }
    }
}

fn ether_types(book: &mut Book) {
    for (name, kind) in [
        ("LLDP", 0x88cc),
        ("EAPOL", 0x888e),
        ("PPPoE discovery", 0x8863),
        ("PPPoE", 0x8864),
        ("MPLS", 0x8847),
        ("MPLS multicast", 0x8848),
        ("MACsec", 0x88e5),
        ("FCoE", 0x8906),
        ("RoCE", 0x8915),
        ("PTP", 0x88f7),
        ("Cisco", 0x2000),
        ("loopback", 0x9000),
        ("the smallest type", 0x0600),
        ("experimental", 0x88b5),
        ("IPv4 by another name", 0x0801),
    ] {
        for to in [GATEWAY, BROADCAST, [1, 0x80, 0xc2, 0, 0, 0x0e]] {
            book.refused(&format!("L23 {name}"), &ether((to, GUEST), kind, &[0x45; 60]));
        }
    }
}

/// RARP.
fn announcements(book: &mut Book) {
    let nobody = Ipv4Addr::UNSPECIFIED.into();
    let announcement = Arp {
        macs: (BROADCAST, GUEST),
        kind: RARP,
        operation: 3,
        sender: (GUEST, nobody),
        target: (GUEST, nobody),
    };
    book.passes("L24 announcement", &announcement.frame());
    for (name, other) in [
        ("of another", Arp { target: (NEIGHBOUR, nobody), ..announcement }),
        ("by another", Arp { sender: (NEIGHBOUR, nobody), ..announcement }),
        ("an answer", Arp { operation: 4, ..announcement }),
        ("with an address", Arp { target: (GUEST, V4.guest), ..announcement }),
        ("with the sender's address", Arp { sender: (GUEST, V4.guest), ..announcement }),
        ("to one host", Arp { macs: (NEIGHBOUR, GUEST), ..announcement }),
    ] {
        book.refused(&format!("L25 RARP {name}"), &other.frame());
    }
    for len in [61, 1000, 2036, 2037, 3000, 9000] {
        let mut long = announcement.frame();
        long.resize(len, 0);
        *long.last_mut().expect("bytes") = 0x5a;
        book.refused(&format!("L26 RARP of {len} bytes"), &long);
    }
}

/// Frames that end too early, and packets under another's EtherType.
fn short_frames(book: &mut Book) {
    for len in 14..34 {
        let frame = &V4.udp_to(V4.remote, OPEN).frame()[..len];
        book.refused(&format!("L27 IPv4 of {len} bytes"), frame);
    }
    for len in 14..54 {
        let frame = &V6.udp_to(V6.remote, OPEN).frame()[..len];
        book.refused(&format!("L27 IPv6 of {len} bytes"), frame);
    }
    for len in 14..42 {
        let frame = &Arp::request(V4.guest, V4.gateway).frame()[..len];
        book.refused(&format!("L27 ARP of {len} bytes"), frame);
    }
    // They never reach the filter.
    book.tried.line("L28");
    for len in 0..14 {
        book.send("L28", &Default::default(), &ether((GATEWAY, GUEST), IPV4, &[])[..len], &[]);
        book.only_a_marker(&format!("L28 {len} bytes"));
    }
    let as_arp = ether((GATEWAY, GUEST), ARP, &V4.udp_to(V4.remote, OPEN).bytes());
    book.refused("L29 an IPv4 packet as ARP", &as_arp);
    let as_v6 = ether((GATEWAY, GUEST), 0x86dd, &V4.udp_to(V4.remote, OPEN).bytes());
    book.refused("L29 an IPv4 packet as IPv6", &as_v6);
    book.refused(
        "L29 an IPv6 packet as IPv4",
        &ether((GATEWAY, GUEST), IPV4, &V6.udp_to(V6.remote, OPEN).bytes()),
    );
}

/// The guard refuses the same without a policy.
#[test]
fn identity_without_a_policy() {
    let setup = Setup::default();
    let Some(mut book) = Book::with("identity_without_a_policy", None, &[], &setup) else { return };
    for hosts in BOTH {
        let good = hosts.udp_to(hosts.stranger, 53);
        book.passes(&format!("L30 {}", hosts.name), &good.frame());
        book.refused(&format!("L31 {} MAC", hosts.name), &good.clone().by(STRANGER).frame());
        book.refused(&format!("L31 {} address", hosts.name), &good.from(hosts.stranger).frame());
    }
    let reply = Arp::reply((GUEST, V4.gateway), (NEIGHBOUR, V4.neighbour));
    book.refused("L31 ARP", &reply.frame());
    book.refused("L31 VLAN", &ether((GATEWAY, GUEST), 0x8100, &[0; 46]));
    book.done();
}

/// In the mode `log`, rules refuse nothing. The guard does.
#[test]
fn identity_in_log_mode() {
    let policy = format!("mode = \"log\"\n{POLICY}");
    let setup = Setup::default();
    let Some(mut book) = Book::with("identity_in_log_mode", Some(&policy), &[], &setup) else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let good = hosts.udp_to(hosts.elsewhere, 53);
        let before = book.counts();
        book.passes(&format!("L50 {name}"), &good.frame());
        book.counted(&format!("L50 {name}"), &before, "tx", 1);
        book.refused(&format!("L51 {name} MAC"), &good.clone().by(STRANGER).frame());
        book.refused(&format!("L51 {name} address"), &good.clone().from(hosts.stranger).frame());
        let part = good.fragment(8, false);
        let header = NetHeader { flags: 1, csum_start: 34, csum_offset: 6, ..NetHeader::default() };
        book.refused_all(&format!("L51 {name} header"), [(header, part.frame())]);
    }
    book.done();
}

/// Frames from the wire that are neither IP nor ARP, or malformed.
#[test]
fn other_protocols_from_the_wire() {
    let Some(mut book) = Book::new("other_protocols_from_the_wire") else { return };
    for hosts in BOTH {
        let packet = hosts.udp_from(hosts.remote, (7000, OPEN)).frame();
        for to in [GUEST, BROADCAST] {
            let mut frame = packet.clone();
            frame[..6].copy_from_slice(&to);
            for kind in [0x8100u16, 0x88a8, 0x88cc, 0x888e, 0x8864, 0x8847, 0x8035, 46] {
                frame[12..14].copy_from_slice(&kind.to_be_bytes());
                book.refused_in(&format!("L40 {} {kind:x}", hosts.name), &frame);
            }
        }
        let headers = if hosts.is_v6() { 14 + 40 + 8 } else { 14 + 20 + 8 };
        for len in (18..headers).step_by(3) {
            book.refused_in(&format!("L41 {} {len}", hosts.name), &packet[..len]);
        }
    }
    book.done();
}
