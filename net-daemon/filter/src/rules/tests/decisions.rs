//! Single decisions.

use super::*;

/// Returns the address this far from `address`. `None` beyond the family's ends.
fn beside(address: IpAddr, distance: i8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) => Some(IpAddr::V4(v4.to_bits().checked_add_signed(distance.into())?.into())),
        IpAddr::V6(v6) => Some(IpAddr::V6(v6.to_bits().checked_add_signed(distance.into())?.into())),
    }
}

fn last(prefix: Prefix) -> IpAddr {
    match prefix.address() {
        IpAddr::V4(v4) => {
            IpAddr::V4((v4.to_bits() | u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0)).into())
        }
        IpAddr::V6(v6) => {
            IpAddr::V6((v6.to_bits() | u128::MAX.checked_shr(prefix.len().into()).unwrap_or(0)).into())
        }
    }
}

fn icmp(address: IpAddr) -> String {
    format!("icmp {address}")
}

/// At both ends of each range, and just outside.
#[test]
fn special_ranges_are_refused_unless_named() {
    let any = policy("[[allow]]\nto = \"any\"");
    for Range { prefix, what } in SPECIAL {
        let (first, last) = (prefix.address(), last(*prefix));
        for address in [first, last] {
            assert_eq!(answer(&any, &icmp(address)), "not_named", "{address} {what}");
            assert!(!any.names(address), "{address} {what}");
        }
        for address in [beside(first, -1), beside(last, 1)].into_iter().flatten() {
            let is_special = SPECIAL.iter().any(|range| range.prefix.contains(address));
            let expected = if is_special { "not_named" } else { "allowed" };
            assert_eq!(answer(&any, &icmp(address)), expected, "{address} beside {what}");
        }
        // The last address of some ranges is in a narrower range.
        for address in [first, last] {
            let narrower =
                |range: &&Range| range.prefix.contains(address) && range.prefix.len() > prefix.len();
            let is_narrower = SPECIAL.iter().any(|range| narrower(&range));
            let expected = if is_narrower { "not_named" } else { "allowed" };
            for named in [*prefix, Prefix::from(address)].iter().take(if is_narrower { 1 } else { 2 }) {
                let policy = policy(&format!("[[allow]]\nto = \"{named}\""));
                assert_eq!(answer(&policy, &icmp(address)), expected, "{address} by {named}");
                assert_eq!(policy.names(address), !is_narrower);
            }
            let own = policy(&format!("[[allow]]\nto = \"{address}\""));
            assert_eq!(answer(&own, &icmp(address)), "allowed", "{address}");
        }
    }
}

#[test]
fn a_name_lies_in_the_narrowest_range() {
    let network = "[network]\non-link = [\"10.1.2.0/24\", \"2001:db8:1::/64\"]\n";
    let to = |prefix: &str| policy(&format!("{network}[[allow]]\nto = \"{prefix}\""));
    for (prefix, answers) in [
        ("0.0.0.0/0", [("icmp 10.0.0.1", "not_named"), ("icmp 198.51.100.1", "allowed")]),
        ("10.0.0.0/8", [("icmp 10.0.0.1", "allowed"), ("icmp 10.1.2.9", "not_named")]),
        ("10.1.0.0/16", [("icmp 10.1.3.1", "allowed"), ("icmp 10.1.2.9", "not_named")]),
        ("10.1.2.0/24", [("icmp 10.1.2.9", "allowed"), ("icmp 10.1.3.1", "not_named")]),
        ("10.1.2.9", [("icmp 10.1.2.9", "allowed"), ("icmp 10.1.2.8", "not_named")]),
        ("169.254.0.0/16", [("icmp 169.254.1.1", "allowed"), ("icmp 169.254.169.254", "not_named")]),
        ("169.254.169.254/32", [("icmp 169.254.169.254", "allowed"), ("icmp 169.254.1.1", "not_named")]),
        ("::/0", [("icmp fd00::1", "not_named"), ("icmp 2001:db8::1", "allowed")]),
        ("fc00::/7", [("icmp fd00::1", "allowed"), ("icmp fd00:ec2::254", "not_named")]),
        ("2001:db8::/32", [("icmp 2001:db8::1", "allowed"), ("icmp 2001:db8:1::9", "not_named")]),
        ("2001:db8:1::/64", [("icmp 2001:db8:1::9", "allowed"), ("icmp 2001:db8::1", "not_allowed")]),
        ("2001::/23", [("icmp 2001:1::1", "allowed"), ("icmp 2001::1", "not_named")]),
    ] {
        assert_answers(&to(prefix), &answers);
    }
    // A named address with a rule for something else is refused for that.
    let rules = policy("[[allow]]\nto = \"10.0.0.1\"\nprotocol = \"tcp\"\nports = 80");
    assert_answers(&rules, &[("tcp 10.0.0.1 81", "not_allowed"), ("tcp 10.0.0.2 80", "not_named")]);
    let broader = policy(&format!("{}\n[[allow]]\nto = \"any\"", rules.text()));
    assert_answers(&broader, &[("tcp 10.0.0.1 80", "allowed"), ("tcp 10.0.0.1 81", "not_named")]);
}

/// The same rules for a pair of addresses of each family give the same answers.
#[test]
fn rules_apply_to_both_families() {
    for (near, far) in [("198.51.100", "203.0.113."), ("2001:db8:5", "2001:db8:6::")] {
        let (one, net, options) = match near.contains(':') {
            true => (format!("{near}::7"), format!("{near}::/48"), "extension_header"),
            false => (format!("{near}.7"), format!("{near}.0/24"), "ip_options"),
        };
        let other = one.replace('7', "8");
        let policy = policy(&format!(
            "[[allow]]\nto = \"{net}\"\nprotocol = \"tcp\"\nports = [443, \"8000-8100\"]\n\
             [[deny]]\nto = \"{one}\"\n[[allow]]\nfrom = \"{net}\"\nprotocol = \"udp\"\nports = 53\n\
             [[allow]]\nto = \"{net}\"\nprotocol = \"icmp\"\noptions = true\n\
             [[allow]]\nto = \"{net}\"\nprotocol = \"gre\"\nfragments = true\n\
             [[deny]]\nfrom = \"{other}\"\nprotocol = \"udp\"\nports = \"50-60\""
        ));
        for (question, expected) in [
            (format!("tcp {other} 443"), "allowed"),
            (format!("tcp {other} 8000"), "allowed"),
            (format!("tcp {other} 8100"), "allowed"),
            (format!("tcp {other} 7999"), "not_allowed"),
            (format!("tcp {other} 8101"), "not_allowed"),
            (format!("udp {other} 443"), "not_allowed"),
            (format!("from tcp {other} 443"), "not_allowed"),
            (format!("tcp {far}1 443"), "not_allowed"),
            (format!("tcp {one} 443"), "denied"),
            (format!("sctp {one}"), "denied"),
            (format!("gre {one} fragment options"), "denied"),
            (format!("from udp {one} 53"), "allowed"),
            (format!("from udp {other} 53"), "denied"),
            (format!("from udp {other} 61"), "not_allowed"),
            (format!("from udp {other} fragment"), "denied"),
            (format!("from tcp {other} fragment"), "fragment"),
            (format!("tcp {other} 443 options"), options),
            (format!("tcp {other} fragment"), "fragment"),
            (format!("icmp {other}"), "allowed"),
            (format!("icmp {other} options"), "allowed"),
            (format!("icmp {other} fragment"), "fragment"),
            (format!("gre {other}"), "allowed"),
            (format!("gre {other} fragment"), "allowed"),
            (format!("gre {other} fragment options"), options),
            (format!("esp {other}"), "tunnel"),
            (format!("esp {other} fragment"), "tunnel"),
            (format!("sctp {other} options"), options),
            (format!("sctp {other} fragment"), "fragment"),
        ] {
            assert_eq!(answer(&policy, &question), expected, "{question}");
        }
    }
}

#[test]
fn tunnels_and_unusual_protocols_are_named() {
    let any = policy("[[allow]]\nto = \"any\"");
    for (protocol, expected) in [
        ("tcp 198.51.100.1 1", "allowed"),
        ("udp 198.51.100.1 65535", "allowed"),
        ("icmp 198.51.100.1", "allowed"),
        ("icmpv6 198.51.100.1", "not_allowed"),
        ("1 2001:db8::1", "not_allowed"),
        ("icmp 2001:db8::1", "allowed"),
        ("sctp 198.51.100.1", "not_allowed"),
        ("igmp 198.51.100.1", "not_allowed"),
        ("0 2001:db8::1", "not_allowed"),
    ] {
        assert_eq!(answer(&any, protocol), expected, "{protocol}");
    }
    for number in [4, 41, 47, 50, 51, 55, 94, 97, 98, 99, 108, 115, 137] {
        let question = format!("{number} 198.51.100.1");
        assert_eq!(answer(&any, &question), "tunnel");
        let named = policy(&format!("[[allow]]\nto = \"any\"\nprotocol = {number}"));
        assert_eq!(answer(&named, &question), "allowed");
        assert_eq!(answer(&named, "tcp 198.51.100.1 80"), "not_allowed");
    }
}

#[test]
fn names_are_those_that_some_answer_is_yes_for() {
    let policy = policy(
        "[network]\non-link = \"192.0.2.0/24\"\n\
         gateways = [\"192.0.2.1\", \"fe80::1\"]\ndhcp = \"192.0.2.2\"\n\
         [network.neighbours]\n\"192.0.2.3\" = \"52:54:00:00:00:03\"\n\
         [[allow]]\nto = [\"any\", \"192.0.2.8/31\"]\nprotocol = \"tcp\"\n\
         [[allow]]\nfrom = \"192.0.2.10/31\"\n\
         [[deny]]\nto = [\"192.0.2.9\", \"198.51.100.0/24\"]\n\
         [[deny]]\nfrom = \"192.0.2.11\"\nprotocol = \"tcp\"",
    );
    for (address, named) in [
        ("192.0.2.1", true),
        ("fe80::1", true),
        ("192.0.2.2", true),
        ("192.0.2.3", true),
        ("192.0.2.4", false),
        ("192.0.2.8", true),
        ("192.0.2.9", false),
        ("192.0.2.10", true),
        ("192.0.2.11", true),
        ("198.51.100.1", false),
        ("203.0.113.1", true),
        ("10.0.0.1", false),
        ("fe80::2", false),
        ("2001:db8::1", true),
    ] {
        assert_eq!(policy.names(address.parse().unwrap()), named, "{address}");
    }
}
