//! Frames against the filter as a whole. Tests of single rules stand with their modules.

use std::net::IpAddr;
use std::sync::Arc;

use super::*;
use crate::rules::prefix::Prefix;
use crate::setup::Learn;
use crate::summary::Summary;
use crate::testing::{GATEWAY, GUEST, ethernet, icmp, ip, packet, tcp, udp, with};
use crate::wire::neighbour::{group_mac, link_local, solicited};
use crate::wire::tcp::{ACK, PSH, RST, SYN};

mod corners;

type Mac = [u8; 6];

const OTHER: Mac = [2, 0, 0, 0, 0, 9];
const POLICY_TEXT: &str = r#"
mode = "enforce"
[network]
on-link = ["192.0.2.0/24", "2001:db8:1::/64"]
gateways = ["192.0.2.1", "fe80::fe"]
dhcp = "192.0.2.1"
[[allow]]
to = ["198.51.100.0/24", "2001:db8:5::/48"]
[[allow]]
to = ["192.0.2.7", "2001:db8:1::7"]
protocol = "tcp"
ports = 5432
[[allow]]
from = ["203.0.113.0/24", "2001:db8:9::/48"]
protocol = "tcp"
ports = 22
[[deny]]
to = ["198.51.100.66", "2001:db8:5::66"]
"#;

/// Both families: guest, allowed, denied, allowed neighbour, client, gateway.
const FAMILIES: [[&str; 6]; 2] = [
    ["192.0.2.10", "198.51.100.7", "198.51.100.66", "192.0.2.7", "203.0.113.9", "192.0.2.1"],
    ["2001:db8:1::10", "2001:db8:5::7", "2001:db8:5::66", "2001:db8:1::7", "2001:db8:9::9", "fe80::fe"],
];

/// Where the IP packet begins in a frame.
const PACKET: usize = 12 + 14;

struct Words(Vec<AtomicU64>);

impl AsRef<[AtomicU64]> for Words {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

fn setup(policy: Option<&str>) -> Setup {
    Setup {
        mac: GUEST,
        addresses: vec![ip("192.0.2.10"), ip("2001:db8:1::10")],
        learn: None,
        flows: 64,
        policy: policy.map(str::to_owned),
    }
}

fn filter(setup: Setup) -> Filter {
    let words = Words((0..Filter::words(&setup)).map(|_| AtomicU64::new(0)).collect());
    Filter::new(setup, Arc::new(words), [7, 9]).unwrap()
}

fn judged(filter: &Filter, way: Way, frame: &[u8]) -> Result<(), Reason> {
    match filter.judge(way, &mut frame.to_vec(), frame.len(), 1000) {
        Verdict::Pass => Ok(()),
        Verdict::Note(reason) | Verdict::Refuse(reason) => Err(reason),
    }
}

fn out(ends: (&str, &str), protocol: u8, payload: &[u8]) -> Vec<u8> {
    packet((GATEWAY, GUEST), ends, protocol, payload)
}

fn into(ends: (&str, &str), protocol: u8, payload: &[u8]) -> Vec<u8> {
    packet((GUEST, GATEWAY), ends, protocol, payload)
}

fn arp(macs: (Mac, Mac), operation: u8, sender: &str, target: &str) -> Vec<u8> {
    let mut message = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, address) in [(macs.1, sender), (macs.0, target)] {
        let IpAddr::V4(address) = ip(address) else { panic!() };
        message.extend(mac);
        message.extend(address.octets());
    }
    ethernet(macs.0, macs.1, 0x0806, &message)
}

/// A neighbour advertisement of `target`, sent by the host with this MAC address.
fn advertisement(macs: (Mac, Mac), ends: (&str, &str), target: &str) -> Vec<u8> {
    let IpAddr::V6(target) = ip(target) else { panic!() };
    let message = [&[136, 0, 0, 0, 0x60, 0, 0, 0], &target.octets()[..], &[2, 1], &macs.1].concat();
    packet(macs, ends, 58, &message)
}

/// Shows the filter the gateway and the neighbour.
fn show(filter: &Filter) {
    for (mac, v4, v6) in [(GATEWAY, "192.0.2.1", "fe80::fe"), (OTHER, "192.0.2.7", "2001:db8:1::7")] {
        judged(filter, Way::In, &arp((GUEST, mac), 2, v4, "192.0.2.10")).unwrap();
        judged(filter, Way::In, &advertisement((GUEST, mac), (v6, "2001:db8:1::10"), v6)).unwrap();
    }
}

fn with_policy() -> Filter {
    let filter = filter(setup(Some(POLICY_TEXT)));
    show(&filter);
    filter
}

mod errands;
mod guard;
mod hostile;
mod policy;
