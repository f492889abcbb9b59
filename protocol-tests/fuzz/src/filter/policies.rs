//! The policies that the target changes between.

use super::ends::{GATEWAY, NEIGHBOUR};
use super::rules::{Policy, Rule};

const ON_LINK: &[&str] = &["192.0.2.0/24", "2001:db8:1::/64"];
const GATEWAYS: &[&str] = &["192.0.2.1", "fe80::fe"];
const ALLOWED: &[&str] = &["198.51.100.0/24", "2001:db8:5::/48"];
const DENIED: &[&str] = &["198.51.100.66", "2001:db8:5::66"];
const NEIGHBOURS: &[&str] = &["192.0.2.7", "2001:db8:1::7"];
const CLIENTS: &[&str] = &["203.0.113.0/24", "2001:db8:9::/48"];
const ANY: &[&str] = &["0.0.0.0/0", "::/0"];

const fn rule(deny: bool, from: bool, prefixes: &'static [&'static str], protocol: &'static str) -> Rule {
    Rule { deny, from, prefixes, protocol, ports: None, fragments: false, options: false }
}

const fn ports(rule: Rule, first: u16, last: u16) -> Rule {
    Rule { ports: Some((first, last)), ..rule }
}

const fn with(rule: Rule, fragments: bool, options: bool) -> Rule {
    Rule { fragments, options, ..rule }
}

/// The policies.
pub(super) const POLICIES: [Policy; 4] = [
    // Narrow, with a client's port.
    Policy {
        log: false,
        on_link: ON_LINK,
        gateways: GATEWAYS,
        gateway_mac: None,
        dhcp: Some("192.0.2.1"),
        neighbours: &[],
        rules: &[
            rule(false, false, ALLOWED, "any"),
            ports(rule(false, false, NEIGHBOURS, "6"), 443, 443),
            ports(rule(false, true, CLIENTS, "6"), 22, 1000),
            rule(true, false, DENIED, "any"),
        ],
    },
    // Broad, with fragments and options, and MAC addresses that are given.
    Policy {
        log: false,
        on_link: ON_LINK,
        gateways: GATEWAYS,
        gateway_mac: Some(GATEWAY),
        dhcp: None,
        neighbours: &[("192.0.2.7", NEIGHBOUR), ("2001:db8:1::8", NEIGHBOUR)],
        rules: &[
            with(rule(false, false, ANY, "any"), true, true),
            with(rule(false, false, &["10.0.0.0/8", "fd00::/8"], "17"), true, false),
            with(rule(false, false, NEIGHBOURS, "any"), false, true),
            with(rule(false, true, CLIENTS, "any"), true, false),
            rule(false, false, ALLOWED, "47"),
            ports(rule(true, false, CLIENTS, "6"), 53, 443),
            ports(rule(true, false, DENIED, "17"), 53, 53),
            rule(true, true, DENIED, "any"),
        ],
    },
    // Everybody may come, and the link has no gateway.
    Policy {
        log: false,
        on_link: &["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"],
        gateways: &[],
        gateway_mac: None,
        dhcp: None,
        neighbours: &[],
        rules: &[
            rule(false, true, &["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/32"], "any"),
            rule(false, false, &["192.0.2.8", "198.51.100.7", "2001:db8:5::7", "2001:db8:1::8"], "icmp"),
            rule(true, true, NEIGHBOURS, "any"),
        ],
    },
    // Refuses nothing.
    Policy {
        log: true,
        on_link: ON_LINK,
        gateways: GATEWAYS,
        gateway_mac: None,
        dhcp: Some("192.0.2.1"),
        neighbours: &[],
        rules: &[rule(false, false, ALLOWED, "17"), rule(false, false, NEIGHBOURS, "icmp")],
    },
];
