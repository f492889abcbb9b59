//! The bypass book, chapter "Neighbours, routers and DHCP".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{
    BOTH, BROADCAST, GATEWAY, GUEST, Hosts, NEIGHBOUR, OPEN, POLICY, STRANGER, V4, V6,
};
use protocol_tests::bypass::link::{
    Arp, SOURCE, TARGET, advertisement, dhcp, dhcp_request, discovery, mac_option, router_advertisement,
    solicitation, solicited,
};
use protocol_tests::bypass::packet::{Mac, Packet, extension};
use protocol_tests::bypass::transport::{ICMPV6, UDP, icmp, udp};
use protocol_tests::session::Setup;

const NOBODY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
const ALL_NODES: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
const ALL_ROUTERS: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2));
const MLD_ROUTERS: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16));
/// What the guest derives from its MAC address.
const LINK_LOCAL: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0x5054, 0xff, 0xfe01, 0x203));
/// A router alert for multicast listeners, and its padding.
const ROUTER_ALERT: [u8; 7] = [0, 5, 2, 0, 0, 1, 0];

/// Returns an advertisement by the guest for `target` from `from` to `to`, with these options.
fn advertised(from: IpAddr, to: IpAddr, target: IpAddr, options: &[u8]) -> Packet {
    discovery((from, to), NEIGHBOUR, advertisement(target, options))
}

/// Returns a solicitation by the guest for `target` from `from`, with these options.
fn solicits(from: IpAddr, target: IpAddr, options: &[u8]) -> Packet {
    discovery((from, solicited(target)), NEIGHBOUR, solicitation(target, options))
}

#[test]
fn neighbours_of_others() {
    let Some(mut book) = Book::new("neighbours_of_others") else { return };
    let own = V6.guest;
    let mac = |kind, mac: Mac| mac_option(kind, mac);
    for (name, target) in [("gateway", V6.gateway), ("neighbour", V6.neighbour), ("stranger", V6.stranger)] {
        for to in [ALL_NODES, V6.neighbour] {
            let options = mac(TARGET, GUEST);
            let theft = advertised(own, to, target, &options).frame();
            book.refused(&format!("N1 {name} to {to}"), &theft);
            let as_owner = advertised(target, to, target, &options).frame();
            book.refused(&format!("N2 {name} to {to}"), &as_owner);
        }
        // The answer to the solicitation of a host that has no address yet.
        let answer = advertised(own, ALL_NODES, target, &[]).frame();
        book.refused(&format!("N3 {name}"), &answer);
        book.refused(&format!("N4 {name}"), &solicits(NOBODY, target, &[]).frame());
        book.refused(&format!("N5 as the {name}"), &solicits(target, V6.neighbour, &[]).frame());
    }
    for other in [NEIGHBOUR, GATEWAY, STRANGER, BROADCAST] {
        let options = mac(SOURCE, other);
        book.refused("N6 solicitation", &solicits(own, V6.neighbour, &options).frame());
        let options = mac(TARGET, other);
        book.refused("N6 advertisement", &advertised(own, ALL_NODES, own, &options).frame());
        for (first, second) in [(GUEST, other), (other, GUEST)] {
            let options = [mac(SOURCE, first), mac(SOURCE, second)].concat();
            book.refused("N7 solicitation", &solicits(own, V6.neighbour, &options).frame());
            let options = [mac(TARGET, first), mac(TARGET, second)].concat();
            book.refused("N7 advertisement", &advertised(own, ALL_NODES, own, &options).frame());
            let options = [mac(SOURCE, first), mac(TARGET, second)].concat();
            book.refused("N7 one of each kind", &advertised(own, ALL_NODES, own, &options).frame());
        }
    }
    malformed_discovery(&mut book);
    book.done();
}

/// Messages from afar, malformed ones, and options that are a guest's in no case.
fn malformed_discovery(book: &mut Book) {
    let own = V6.guest;
    for hops in [0, 1, 64, 254] {
        book.refused("N8 solicitation", &solicits(own, V6.neighbour, &[]).hops(hops).frame());
        book.refused("N8 advertisement", &advertised(own, ALL_NODES, own, &[]).hops(hops).frame());
    }
    let by_probe = solicits(NOBODY, own, &mac_option(SOURCE, GUEST));
    book.refused("N9 a probe with a MAC address", &by_probe.frame());
    for options in [&[1, 0, 0, 0, 0, 0, 0, 0][..], &[1, 2, 0, 0, 0, 0, 0, 0], &[1], &[14, 255, 0, 0]] {
        book.refused("N10 malformed options", &solicits(own, V6.neighbour, options).frame());
    }
    for kind in [3, 5, 24, 25, 31, 253] {
        let options = [&[kind, 1][..], &[0x5a; 6]].concat();
        book.refused(&format!("N11 option {kind}"), &solicits(own, V6.neighbour, &options).frame());
        book.refused(&format!("N11 option {kind}"), &advertised(own, ALL_NODES, own, &options).frame());
    }
    let long = [&[14, 100][..], &[0x5a; 798]].concat();
    book.refused("N12 solicitation", &solicits(own, V6.neighbour, &long).frame());
    book.refused("N12 advertisement", &advertised(own, V6.stranger, own, &long).frame());
    let cut = solicits(own, V6.neighbour, &[]);
    for len in 0..24 {
        let mut cut = cut.clone();
        cut.payload.truncate(len);
        book.refused(&format!("N13 {len} bytes"), &cut.frame());
    }
}

#[test]
fn neighbours_in_disguise() {
    let Some(mut book) = Book::new("neighbours_in_disguise") else { return };
    let own = V6.guest;
    let theft = advertised(own, ALL_NODES, V6.neighbour, &[]);
    let honest = advertised(own, ALL_NODES, own, &[]);
    for (name, packet) in [("theft", &theft), ("honest", &honest)] {
        book.refused(&format!("N20 {name}, atomic"), &packet.clone().fragment(0, false).frame());
        book.refused(&format!("N20 {name}, first"), &packet.clone().fragment(0, true).frame());
        let mut rest = packet.clone().fragment(8, false);
        rest.payload.drain(..8);
        book.refused(&format!("N20 {name}, last"), &rest.frame());
        for kind in [extension::HOP_BY_HOP, extension::DESTINATION] {
            let hidden = packet.clone().extension(kind, &[0, 1, 4, 0, 0, 0, 0]);
            book.refused(&format!("N21 {name} behind header {kind}"), &hidden.frame());
        }
    }
    let asks = solicits(own, V6.neighbour, &[]);
    for to in [BROADCAST, STRANGER, GATEWAY, [0x33, 0x33, 0, 0, 0, 1]] {
        book.refused("N22 solicitation", &asks.clone().at(to).frame());
    }
    for target in [V6.stranger, V6.elsewhere] {
        book.refused(&format!("N23 {target}"), &solicits(own, target, &[]).frame());
    }
    let wrong_group = discovery((own, ALL_NODES), NEIGHBOUR, solicitation(V6.neighbour, &[]));
    book.refused("N24 to all nodes", &wrong_group.frame());
    let far = advertised(own, V6.elsewhere, own, &[]).at(GATEWAY);
    book.refused("N25 off the link", &far.frame());
    book.passes("N26 solicitation", &solicits(own, V6.neighbour, &mac_option(SOURCE, GUEST)).frame());
    book.passes("N26 advertisement", &advertised(own, ALL_NODES, own, &mac_option(TARGET, GUEST)).frame());
    book.passes("N26 probe", &solicits(NOBODY, own, &[14, 1, 1, 2, 3, 4, 5, 6]).frame());
    book.passes("N26 link-local", &solicits(NOBODY, LINK_LOCAL, &[]).frame());
    book.done();
}

#[test]
fn a_guest_that_plays_router() {
    let Some(mut book) = Book::new("a_guest_that_plays_router") else { return };
    for from in [LINK_LOCAL, V6.guest, V6.gateway] {
        for to in [ALL_NODES, V6.neighbour] {
            let packet = discovery((from, to), NEIGHBOUR, router_advertisement(&[]));
            book.refused(&format!("N30 from {from} to {to}"), &packet.frame());
            book.refused("N30 fragmented", &packet.clone().fragment(0, true).frame());
            let hidden = packet.extension(extension::DESTINATION, &[0, 1, 4, 0, 0, 0, 0]);
            book.refused("N30 behind an extension header", &hidden.frame());
            let body = [&[0; 4], &[0x20; 16][..], &[0x20; 16]].concat();
            let redirect = discovery((from, to), NEIGHBOUR, icmp(137, 0, &body));
            book.refused(&format!("N31 from {from}"), &redirect.frame());
        }
    }
    for kind in [138, 139, 140, 141, 142, 144, 145, 146, 147, 148, 149, 151, 152, 153, 154, 155, 200] {
        let packet = discovery((LINK_LOCAL, ALL_NODES), NEIGHBOUR, icmp(kind, 0, &[0; 28]));
        book.refused(&format!("N32 type {kind}"), &packet.frame());
    }
    let v4 = |kind, body: &[u8]| V4.out(V4.remote, V4.icmp(), icmp(kind, 0, body));
    book.refused("N31 IPv4", &v4(5, &[0; 28]).frame());
    book.refused("N30 IPv4", &v4(9, &[1, 2, 7, 8, 192, 0, 2, 10, 0, 0, 0, 0]).frame());
    let query = icmp(130, 0, &[0; 24]);
    for from in [LINK_LOCAL, V6.guest] {
        let query = discovery((from, ALL_NODES), NEIGHBOUR, query.clone()).hops(1);
        book.refused("N33 query", &query.clone().extension(extension::HOP_BY_HOP, &ROUTER_ALERT).frame());
        book.refused("N33 query without router alert", &query.frame());
    }
    let igmp = V4.out(Ipv4Addr::new(224, 0, 0, 1).into(), 2, vec![0x11, 100, 0, 0, 0, 0, 0, 0]);
    book.refused("N34 IGMP", &igmp.at([1, 0, 0x5e, 0, 0, 1]).frame());
    let report = icmp(143, 0, &[0; 4]);
    let listens = discovery((LINK_LOCAL, MLD_ROUTERS), NEIGHBOUR, report).hops(1);
    let listens = listens.extension(extension::HOP_BY_HOP, &ROUTER_ALERT);
    book.passes("N35 report", &listens.frame());
    book.refused("N36 a report to a host", &listens.clone().to(V6.stranger).at(STRANGER).frame());
    book.refused("N36 a report to another group", &listens.clone().to(ALL_NODES).frame());
    let asks = discovery((LINK_LOCAL, ALL_ROUTERS), NEIGHBOUR, icmp(133, 0, &[0; 4]));
    book.passes("N37 solicitation", &asks.frame());
    let mut more = asks.clone();
    more.payload.extend([&[200, 20][..], &[0x5a; 158]].concat());
    book.refused("N38 unknown options", &more.frame());
    book.refused("N38 to a host", &asks.to(V6.stranger).at(STRANGER).frame());
    book.done();
}

#[test]
fn dhcp_of_others() {
    let policy = POLICY.replace("[network]", "[network]\ndhcp = \"192.0.2.2\"");
    let Some(mut book) = Book::with("dhcp_of_others", Some(&policy), &[], &Setup::default()) else { return };
    let everyone = IpAddr::V4(Ipv4Addr::BROADCAST);
    let answer = dhcp(false, NEIGHBOUR, Ipv4Addr::new(192, 0, 2, 20));
    for (ports, name) in [((67, 68), "server"), ((67, 1000), "server's port"), ((1000, 68), "client's port")]
    {
        for (to, mac) in [(everyone, BROADCAST), (V4.neighbour, NEIGHBOUR), (V4.remote, GATEWAY)] {
            let packet = V4.out(to, UDP, udp(ports.0, ports.1, &answer)).at(mac);
            book.refused(&format!("N40 {name} to {to}"), &packet.frame());
        }
    }
    for ports in [(547, 546), (547, 1000), (1000, 546)] {
        for (to, mac) in [(ALL_NODES, [0x33, 0x33, 0, 0, 0, 1]), (V6.neighbour, NEIGHBOUR)] {
            let packet = V6.out(to, UDP, udp(ports.0, ports.1, &[7; 40])).at(mac);
            book.refused(&format!("N41 to {to}"), &packet.frame());
        }
    }
    let reply = V4.out(everyone, UDP, udp(68, 67, &answer)).at(BROADCAST);
    book.refused("N42 a reply by a client's ports", &reply.frame());
    for client in [NEIGHBOUR, STRANGER, [0; 6]] {
        book.refused(&format!("N43 {client:x?}"), &dhcp_request(client).frame());
    }
    let request = dhcp_request(GUEST);
    for port in [0, 69, 1000u16] {
        let mut other = dhcp_request(NEIGHBOUR);
        other.payload[..2].copy_from_slice(&port.to_be_bytes());
        book.refused(&format!("N55 from port {port}"), &other.frame());
    }
    for option in [&[53, 1, 7][..], &[53, 0], &[52, 1, 3]] {
        let mut two = request.clone();
        let end = two.payload.iter().rposition(|byte| *byte == 255).expect("the end");
        two.payload.splice(end..end, option.iter().copied());
        let len = two.payload.len() as u16;
        two.payload[4..6].copy_from_slice(&len.to_be_bytes());
        book.refused(&format!("N56 {option:?}"), &two.frame());
    }
    book.refused("N44 in a fragment", &request.clone().fragment(0, true).frame());
    book.refused("N45 with options", &request.clone().options(&[7, 7, 4, 0, 0, 0, 0, 0]).frame());
    let mut cut = request.clone();
    cut.payload.truncate(8 + 200);
    cut.payload[4..6].copy_from_slice(&208u16.to_be_bytes());
    book.refused("N46 cut", &cut.frame());
    book.refused("N47 from another address", &request.clone().from(V4.stranger).frame());
    book.refused(
        "N48 to another server",
        &request.clone().from(V4.guest).to(V4.stranger).at(STRANGER).frame(),
    );
    book.refused("N49 to one host by broadcast", &request.clone().at(STRANGER).frame());
    book.passes("N50 the guest's own question", &request.frame());
    dhcp_answers(&mut book);
    book.done();
}

/// Answers to the guest's question.
fn dhcp_answers(book: &mut Book) {
    let server = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
    let answer = |client| dhcp(false, client, Ipv4Addr::new(192, 0, 2, 10));
    let packet = |from: IpAddr, port, message: &[u8]| {
        let packet = V4.inward(from, UDP, udp(port, 68, message));
        packet.by([0x52, 0x54, 0, 0, 0, 2])
    };
    book.refused_in("N51 another server", &packet(V4.stranger, 67, &answer(GUEST)).frame());
    book.refused_in("N51 another port", &packet(server, 1067, &answer(GUEST)).frame());
    book.refused_in("N52 for another client", &packet(server, 67, &answer(NEIGHBOUR)).frame());
    let mut other = answer(GUEST);
    other[4] ^= 1;
    book.refused_in("N53 another exchange", &packet(server, 67, &other).frame());
    book.passes_in("N54 the answer", &packet(server, 67, &answer(GUEST)).frame());
}

/// Frames from the wire that would change what the guest thinks of its link.
#[test]
fn routers_on_the_wire() {
    let Some(mut book) = Book::new("routers_on_the_wire") else { return };
    let link_local = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x99));
    let prefix = [&[3, 4, 64, 0xc0][..], &[0; 28]].concat();
    let advertises = |from: IpAddr, mac: Mac| {
        let options = [mac_option(SOURCE, mac), prefix.clone()].concat();
        let packet = Packet::new((GUEST, mac), (from, ALL_NODES), ICMPV6, router_advertisement(&options));
        packet.at([0x33, 0x33, 0, 0, 0, 1]).hops(255)
    };
    book.refused_in("N60 another router", &advertises(link_local, STRANGER).frame());
    book.refused_in("N60 another router by the gateway's MAC", &advertises(link_local, GATEWAY).frame());
    book.refused_in("N61 as the gateway", &advertises(V6.gateway, STRANGER).frame());
    book.refused_in("N62 forwarded", &advertises(V6.gateway, GATEWAY).hops(64).frame());
    book.refused_in("N62 fragmented", &advertises(V6.gateway, GATEWAY).fragment(0, false).frame());
    let hidden = advertises(V6.gateway, GATEWAY).extension(extension::DESTINATION, &[0, 1, 4, 0, 0, 0, 0]);
    book.refused_in("N63 behind an extension header", &hidden.frame());
    book.passes_in("N64 the gateway", &advertises(V6.gateway, GATEWAY).frame());
    let body = [&[0; 4], &[0x20; 16][..], &[0x20; 16]].concat();
    for (from, mac) in [(V6.gateway, GATEWAY), (link_local, STRANGER)] {
        let redirect = Packet::new((GUEST, mac), (from, V6.guest), ICMPV6, icmp(137, 0, &body)).hops(255);
        book.refused_in("N65 IPv6", &redirect.frame());
    }
    let v4 = |kind, body: &[u8]| V4.inward(V4.gateway, V4.icmp(), icmp(kind, 0, body));
    book.refused_in("N65 IPv4", &v4(5, &[0; 28]).frame());
    book.refused_in(
        "N66 router advertisement of IPv4",
        &v4(9, &[1, 2, 7, 8, 192, 0, 2, 99, 0, 0, 0, 0]).frame(),
    );
    for kind in [10, 13, 17, 37] {
        book.refused_in("N67 IPv4", &v4(kind, &[0; 16]).frame());
    }
    for kind in [133, 139, 141, 200] {
        let packet = Packet::new((GUEST, GATEWAY), (V6.gateway, V6.guest), ICMPV6, icmp(kind, 0, &[0; 28]));
        book.refused_in("N67 IPv6", &packet.hops(255).frame());
    }
    book.done();
}

/// Returns the frames by which `mac` claims an address of a host on the link.
fn claims(hosts: &Hosts, mac: Mac, address: IpAddr) -> Vec<u8> {
    match hosts.is_v6() {
        false => Arp::reply((mac, address), (GUEST, hosts.guest)).frame(),
        true => {
            let message = advertisement(address, &mac_option(TARGET, mac));
            Packet::new((GUEST, mac), (address, hosts.guest), ICMPV6, message).hops(255).frame()
        }
    }
}

/// A host that claims the address of another: the guest may believe it, the filter knows better.
#[test]
fn usurpers_on_the_link() {
    let Some(mut book) = Book::new("usurpers_on_the_link") else { return };
    for hosts in BOTH {
        let name = hosts.name;
        let far = hosts.udp_to(hosts.remote, OPEN);
        book.passes_in(&format!("N70 {name}"), &claims(&hosts, STRANGER, hosts.gateway));
        book.refused(&format!("N71 {name}"), &far.clone().at(STRANGER).frame());
        let back = hosts.udp_from(hosts.remote, (7000, OPEN));
        book.refused_in(&format!("N72 {name}"), &back.by(STRANGER).frame());
        book.passes(&format!("N73 {name}"), &far.frame());
        // Nobody has the guest's own address.
        book.passes_in(&format!("N70 {name}"), &claims(&hosts, STRANGER, hosts.guest));
        book.refused(&format!("N71 {name}"), &hosts.udp_to(hosts.guest, OPEN).at(STRANGER).frame());
        book.passes_in(&format!("N70 {name}"), &claims(&hosts, STRANGER, hosts.stranger));
        book.refused(&format!("N74 {name}"), &hosts.udp_to(hosts.stranger, OPEN).at(STRANGER).frame());
    }
    book.done();
}

/// MAC addresses that the policy gives cannot be claimed, not even first.
#[test]
fn given_mac_addresses() {
    let given = "[network]\ngateway-mac = \"52:54:00:00:00:01\"\nneighbours = { \"192.0.2.20\" = \
                 \"52:54:00:00:00:20\", \"2001:db8:1::20\" = \"52:54:00:00:00:20\" }";
    let policy = POLICY.replace("[network]", given);
    let setup = Setup::default();
    let Some(mut book) = Book::unshown("given_mac_addresses", Some(&policy), &[], &setup) else { return };
    for hosts in BOTH {
        let name = hosts.name;
        for (address, to) in [(hosts.gateway, hosts.remote), (hosts.neighbour, hosts.neighbour)] {
            book.passes_in(&format!("N80 {name}"), &claims(&hosts, STRANGER, address));
            book.refused(&format!("N81 {name} {to}"), &hosts.udp_to(to, OPEN).at(STRANGER).frame());
            let mac = if to == hosts.neighbour { NEIGHBOUR } else { GATEWAY };
            book.passes(&format!("N82 {name} {to}"), &hosts.udp_to(to, OPEN).at(mac).frame());
        }
    }
    book.done();
}
