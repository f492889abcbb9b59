//! The bypass book, chapter "Learnt addresses": a guard that learns the guest's addresses from DHCP and from
//! the addresses that it configures.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use protocol_tests::bypass::book::Book;
use protocol_tests::bypass::hosts::{GUEST, NEIGHBOUR, V4, V6};
use protocol_tests::bypass::link::{Arp, dhcp, dhcp_request, discovery, solicitation, solicited};
use protocol_tests::bypass::packet::Packet;
use protocol_tests::bypass::transport::{UDP, udp};
use protocol_tests::session::Setup;

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
/// Offset of the message type in a DHCP message.
const KIND: usize = 242;

fn book(test: &'static str) -> Option<Book> {
    let learn = "--guard=learn,dhcp=192.0.2.2,prefix=2001:db8:1::/64,prefix=2001:db8:2::/64";
    Book::with(test, None, &[learn, "--guest-ip", "192.0.2.10"], &Setup::default())
}

fn leased(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn own(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, host))
}

/// Returns a datagram of the guest from this address.
fn from(address: impl Into<IpAddr>) -> Vec<u8> {
    let address = address.into();
    let hosts = if address.is_ipv6() { V6 } else { V4 };
    hosts.udp_to(hosts.remote, 53).from(address).frame()
}

/// Returns a DHCP answer to the guest.
fn answer(server: IpAddr, message: &[u8]) -> Vec<u8> {
    V4.inward(server, UDP, udp(67, 68, message)).by([0x52, 0x54, 0, 0, 0, 2]).frame()
}

/// Returns a probe of the guest for an address that it wants to use.
fn probe(address: IpAddr) -> Packet {
    let nobody = Ipv6Addr::UNSPECIFIED.into();
    discovery((nobody, solicited(address)), GUEST, solicitation(address, &[]))
}

#[test]
fn leases_that_nobody_gave() {
    let Some(mut book) = book("leases_that_nobody_gave") else { return };
    let given = dhcp(false, GUEST, leased(77));
    book.refused("G1", &from(leased(77)));
    book.refused("G1", &Arp::request(leased(77).into(), V4.gateway).frame());
    book.refused_in("G2", &answer(SERVER, &given));
    book.refused("G1", &from(leased(77)));
    book.passes("G3", &dhcp_request(GUEST).frame());
    book.refused_in("G4", &answer(V4.stranger, &given));
    book.refused_in("G4", &answer(SERVER, &dhcp(false, NEIGHBOUR, leased(77))));
    let mut other = given.clone();
    other[7] ^= 1;
    book.refused_in("G4", &answer(SERVER, &other));
    book.refused("G1", &from(leased(77)));
    for kind in [2, 6] {
        // An offer and a refusal.
        let mut message = given.clone();
        message[KIND] = kind;
        book.passes_in("G5", &answer(SERVER, &message));
        book.refused("G1", &from(leased(77)));
    }
    book.passes_in("G6", &answer(SERVER, &given));
    book.passes("G6", &from(leased(77)));
    book.passes("G6", &Arp::request(leased(77).into(), V4.gateway).frame());
    book.refused("G7", &from(leased(78)));
    book.passes_in("G8", &answer(SERVER, &dhcp(false, GUEST, leased(78))));
    book.passes("G8", &from(leased(78)));
    book.refused("G9", &from(leased(77)));
    book.passes_in("G10", &answer(SERVER, &dhcp(false, GUEST, Ipv4Addr::UNSPECIFIED)));
    book.refused("G11", &from(Ipv4Addr::UNSPECIFIED));
    book.done();
}

#[test]
fn addresses_of_its_own() {
    let Some(mut book) = book("addresses_of_its_own") else { return };
    for address in [own(3, 1), own(5, 1), "fd00::1".parse().expect("an address")] {
        book.refused(&format!("G20 {address}"), &from(address));
        book.refused(&format!("G20 {address}"), &probe(address).frame());
    }
    book.refused("G21", &from("ff02::1".parse::<IpAddr>().expect("an address")));
    for net in [1, 2] {
        book.refused("G22", &from(own(net, 0)));
    }
    // One was given: seven more.
    book.passes("G23", &probe(own(2, 1)).frame());
    for host in 1..=7 {
        book.passes(&format!("G23 {host}"), &from(own(1 + host % 2, host)));
    }
    for host in 8..=40 {
        book.refused(&format!("G24 {host}"), &from(own(1 + host % 2, host)));
    }
    book.refused("G24", &probe(own(1, 50)).frame());
    for host in 1..=7 {
        book.passes(&format!("G23 {host}"), &from(own(1 + host % 2, host)));
    }
    book.done();
}
