//! Frames with which a guest behind the network of `lab::routed` tries to pass for another host, or to
//! reach one that its policy does not allow. `guest-frames` sends them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::hosts::{BROADCAST, GATEWAY, GUEST, Hosts, NEIGHBOUR, OWN, STRANGER};
use super::link::{
    Arp, TARGET, advertisement, dhcp, discovery, mac_option, router_advertisement, solicitation,
};
use super::packet::{Packet, ether, extension};
use super::transport::{SYN, TCP, UDP, tcp, udp};

/// The payload of datagrams that must not arrive.
pub const REFUSED: &[u8] = b"refused by the filter";
/// The payload of the first datagram of a round, which arrives.
pub const FIRST: &[u8] = b"marker: a round begins";
/// The payload of the last one.
pub const LAST: &[u8] = b"marker: a round ends";

/// The port of the markers.
const MARKERS: u16 = 9;
const GRE: u8 = 47;

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(groups: [u16; 3], host: u16) -> IpAddr {
    let [a, b, c] = groups;
    IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, host))
}

const ON_LINK: [u16; 3] = [0xfd77, 0, 0];
const LINK_LOCAL: [u16; 3] = [0xfe80, 0, 0];
const METADATA: IpAddr = v4(169, 254, 169, 254);

/// The hosts of the network; `remote` is allowed.
pub const V4: Hosts = Hosts {
    name: "IPv4",
    guest: v4(10, 77, 0, 2),
    gateway: v4(10, 77, 0, 1),
    neighbour: v4(10, 77, 0, 20),
    stranger: v4(10, 77, 0, 99),
    remote: v4(203, 0, 113, 1),
    denied: METADATA,
    elsewhere: v4(192, 0, 2, 200),
};
/// The same of IPv6.
pub const V6: Hosts = Hosts {
    name: "IPv6",
    guest: v6(ON_LINK, 2),
    gateway: v6(LINK_LOCAL, 1),
    neighbour: v6(ON_LINK, 0x20),
    stranger: v6(ON_LINK, 0x99),
    remote: v6([0x2001, 0xdb8, 0x113], 1),
    denied: v6([0xfd00, 0xec2, 0], 0x254),
    elsewhere: v6([0x2001, 0xdb8, 0x999], 7),
};

/// A frame that must not arrive, and the reason for which it is refused.
pub type Forged = (&'static str, Vec<u8>);

/// Returns all frames that must not arrive.
pub fn frames() -> Vec<Forged> {
    let each = [V4, V6].into_iter().flat_map(|hosts| packets(&hosts));
    [link(), each.collect()].concat()
}

/// Returns a round for `guest-frames`: all frames between two markers.
pub fn round() -> Vec<u8> {
    let marker = |text| V4.out(V4.remote, UDP, udp(OWN, MARKERS, text)).frame();
    let hostile = frames().into_iter().map(|(_, frame)| frame);
    let all = std::iter::once(marker(FIRST)).chain(hostile).chain([marker(LAST)]);
    all.flat_map(|frame| [&(frame.len() as u16).to_be_bytes()[..], &frame].concat()).collect()
}

/// Returns the packets that are alike in both families.
fn packets(hosts: &Hosts) -> Vec<Forged> {
    // No flow of a marker: another port.
    let packet = hosts.out(hosts.remote, UDP, udp(OWN + 1, MARKERS, REFUSED));
    let open = |to, port, data: &[u8]| hosts.out(to, TCP, tcp((OWN, port), SYN, (1000, 0), data)).frame();
    let options = if hosts.is_v6() {
        ("extension_header", packet.clone().extension(extension::DESTINATION, &[0, 1, 4, 0, 0, 0, 0]))
    } else {
        ("ip_options", packet.clone().options(&[148, 4, 0, 0]))
    };
    vec![
        ("source_mac", packet.clone().by(NEIGHBOUR).frame()),
        ("source_address", packet.clone().from(hosts.neighbour).frame()),
        ("source_address", packet.clone().from(hosts.elsewhere).frame()),
        ("peer_mac", packet.clone().at(NEIGHBOUR).frame()),
        ("fragment", packet.clone().fragment(0, true).frame()),
        ("fragment", packet.clone().fragment(64, false).frame()),
        (options.0, options.1.frame()),
        ("not_allowed", packet.clone().to(hosts.elsewhere).frame()),
        ("not_allowed", open(hosts.elsewhere, 443, b"")),
        ("not_named", packet.clone().to(hosts.denied).frame()),
        ("not_named", open(hosts.denied, 80, b"")),
        ("tcp_flags", open(hosts.remote, 80, REFUSED)),
        ("not_named", packet.clone().to(hosts.stranger).at(STRANGER).frame()),
        ("tunnel", hosts.out(hosts.remote, GRE, [&[0, 0, 8, 0], REFUSED].concat()).frame()),
        ("vlan", tagged(&packet.frame())),
    ]
}

/// Returns a frame with the VLAN tag 1.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 1], &frame[12..]].concat()
}

/// Returns ARP, neighbour discovery and DHCP in another host's name.
fn link() -> Vec<Forged> {
    let (all_nodes, nobody) = (v6([0xff02, 0, 0], 1), IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let own = mac_option(TARGET, GUEST);
    let claim = |from| discovery((from, all_nodes), BROADCAST, advertisement(V6.gateway, &own)).frame();
    let lease = udp(67, 68, &dhcp(false, STRANGER, Ipv4Addr::new(10, 77, 0, 99)));
    let offer = (v4(10, 77, 0, 2), v4(255, 255, 255, 255));
    let taken = discovery((nobody, V6.gateway), GATEWAY, solicitation(V6.gateway, &[]));
    vec![
        ("arp", Arp::reply((GUEST, V4.gateway), (NEIGHBOUR, V4.neighbour)).frame()),
        ("arp", Arp::reply((GUEST, V4.gateway), (BROADCAST, V4.gateway)).frame()),
        ("arp", Arp::request(V4.neighbour, V4.gateway).frame()),
        ("neighbour", claim(V6.guest)),
        ("neighbour", taken.frame()),
        (
            "router_advertisement",
            discovery((link_local(), all_nodes), BROADCAST, router_advertisement(&[])).frame(),
        ),
        ("dhcp_server", Packet::new((BROADCAST, GUEST), offer, UDP, lease).frame()),
        ("length_802_3", ether((BROADCAST, GUEST), 64, &[0x42; 64])),
        ("ethertype", ether((BROADCAST, GUEST), 0x88cc, REFUSED)),
    ]
}

/// Returns the guest's link-local address, which follows from its MAC address.
fn link_local() -> IpAddr {
    let [a, b, c, d, e, f] = GUEST.map(u16::from);
    let groups = [0xfe80, 0, 0, 0, ((a ^ 2) << 8) | b, (c << 8) | 0xff, 0xfe00 | d, (e << 8) | f];
    IpAddr::V6(Ipv6Addr::from(groups))
}
