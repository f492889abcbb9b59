//! Policies of volt-netd as rules of nftables: a second opinion on whom a guest may reach.
//!
//! [`Policy`] holds the rules in a form of its own. [`Policy::ruleset`] translates it for the kernel,
//! [`Policy::text`] for volt-netd. The ranges that are refused unless named are read from the page that
//! documents them.

use std::fmt::{self, Write};
use std::net::IpAddr;

/// The page with the table of ranges.
const PAGE: &str = include_str!("../../docs/reference/policy.md");

/// An address prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// Its first address.
    pub first: IpAddr,
    /// Its length in bits.
    pub len: u8,
}

impl Prefix {
    /// Returns the prefix of this length that contains `address`.
    pub fn around(address: IpAddr, len: u8) -> Prefix {
        let prefix = Prefix { first: address, len };
        Prefix { first: prefix.address(prefix.bits() & !prefix.hosts()), len }
    }

    /// Reads `ADDRESS` or `ADDRESS/LENGTH`.
    ///
    /// # Panics
    ///
    /// If it is neither.
    pub fn parse(text: &str) -> Prefix {
        let (first, len) =
            text.split_once('/').unwrap_or((text, if text.contains(':') { "128" } else { "32" }));
        Prefix { first: first.parse().expect("an address"), len: len.parse().expect("a length") }
    }

    fn bits(&self) -> u128 {
        match self.first {
            IpAddr::V4(v4) => v4.to_bits().into(),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    /// Returns the bits in which its addresses differ.
    fn hosts(&self) -> u128 {
        let width = if self.first.is_ipv4() { 32 } else { 128 };
        u128::MAX.checked_shr(128 - (width - u32::from(self.len))).unwrap_or(0)
    }

    /// Returns the address of its family with these bits.
    fn address(&self, bits: u128) -> IpAddr {
        match self.first {
            IpAddr::V4(_) => IpAddr::V4((bits as u32).into()),
            IpAddr::V6(_) => IpAddr::V6(bits.into()),
        }
    }

    /// Returns its first and last address, and those before and behind it.
    pub fn edges(&self) -> [IpAddr; 4] {
        let (first, last) = (self.bits(), self.bits() | self.hosts());
        [first, last, first.wrapping_sub(1), last.wrapping_add(1)].map(|bits| self.address(bits))
    }

    /// Returns an address inside, chosen by `random`.
    pub fn inside(&self, random: u128) -> IpAddr {
        self.address(self.bits() | random & self.hosts())
    }

    /// Whether `other` lies inside, and is longer.
    fn surrounds(&self, other: &Prefix) -> bool {
        self.first.is_ipv4() == other.first.is_ipv4()
            && other.len > self.len
            && (self.bits() ^ other.bits()) & !self.hosts() == 0
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.len)
    }
}

/// The protocols of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// In an allow rule TCP, UDP and ICMP; in a deny rule all.
    Any,
    /// That of the family.
    Icmp,
    /// One.
    Number(u8),
}

/// A rule.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Whether it denies.
    pub deny: bool,
    /// Whether the other end opens the flow.
    pub from: bool,
    /// Addresses of the other end.
    pub prefixes: Vec<Prefix>,
    /// Protocols.
    pub protocol: Protocol,
    /// First and last of ranges of ports. None: all ports.
    pub ports: Vec<(u16, u16)>,
}

/// A policy, as far as it is about addresses, protocols and ports.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// What is on the link.
    pub on_link: Vec<Prefix>,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// Returns the documented ranges that are refused unless named.
pub fn ranges() -> Vec<Prefix> {
    let table = PAGE.split("| range | what |").nth(1).expect("the table of ranges");
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|line| Prefix::parse(line.split('`').nth(1).expect("a range"))).collect()
}

impl Policy {
    /// Returns the commands for nft: a chain on the interface `from` that forwards allowed frames to the
    /// interface `to`. Frames of the MAC address `guest` go out, all others go in. Frames with the EtherType
    /// `marker` always pass.
    pub fn ruleset(&self, (from, to): (&str, &str), guest: &str, marker: u16) -> String {
        let mut ranges = ranges();
        ranges.extend(&self.on_link);
        let mut text = format!(
            "table netdev opinion {{\nchain c {{\n\
             type filter hook ingress device \"{from}\" priority 0; policy drop;\n\
             ether type {marker:#06x} fwd to \"{to}\"\n"
        );
        // Denials first: they win.
        for deny in [true, false] {
            for rule in self.rules.iter().filter(|rule| rule.deny == deny) {
                for prefix in &rule.prefixes {
                    let inside = if deny { Vec::new() } else { largest_inside(prefix, &ranges) };
                    let verdict = if deny { "drop".to_owned() } else { format!("fwd to \"{to}\"") };
                    rule.write(&mut text, guest, prefix, &inside, &verdict);
                }
            }
        }
        text + "}\n}\n"
    }

    /// Returns the policy file, with a gateway that has this MAC address.
    pub fn text(&self, gateway: &str) -> String {
        let list = |prefixes: &[Prefix]| {
            prefixes.iter().map(|prefix| format!("\"{prefix}\"")).collect::<Vec<_>>().join(", ")
        };
        let mut text = format!(
            "[network]\non-link = [{}]\ngateways = \"192.0.2.1\"\ngateway-mac = \"{gateway}\"\n",
            list(&self.on_link)
        );
        for rule in &self.rules {
            let kind = if rule.deny { "deny" } else { "allow" };
            let side = if rule.from { "from" } else { "to" };
            let protocol = match rule.protocol {
                Protocol::Any => "\"any\"".to_owned(),
                Protocol::Icmp => "\"icmp\"".to_owned(),
                Protocol::Number(6) => "\"tcp\"".to_owned(),
                Protocol::Number(17) => "\"udp\"".to_owned(),
                Protocol::Number(number) => number.to_string(),
            };
            let _ = write!(text, "[[{kind}]]\n{side} = [{}]\nprotocol = {protocol}\n", list(&rule.prefixes));
            if !rule.ports.is_empty() {
                let ports = rule.ports.iter().map(|(first, last)| format!("\"{first}-{last}\""));
                let _ = writeln!(text, "ports = [{}]", ports.collect::<Vec<_>>().join(", "));
            }
        }
        text
    }
}

/// Returns the ranges inside a prefix that no other range inside it surrounds: those that it does not reach.
fn largest_inside(prefix: &Prefix, ranges: &[Prefix]) -> Vec<Prefix> {
    let mut inside: Vec<_> = ranges.iter().filter(|range| prefix.surrounds(range)).copied().collect();
    let all = inside.clone();
    inside.retain(|range| !all.iter().any(|other| other.surrounds(range)));
    inside.dedup();
    inside
}

impl Rule {
    /// Writes the lines for one prefix.
    fn write(&self, text: &mut String, guest: &str, prefix: &Prefix, but: &[Prefix], verdict: &str) {
        let v4 = prefix.first.is_ipv4();
        let (family, icmp) = if v4 { ("ip", 1) } else { ("ip6", 58) };
        let (side, way) = if self.from { ("saddr", "!=") } else { ("daddr", "==") };
        let mut line = format!("ether saddr {way} {guest} meta protocol {family}");
        if prefix.len > 0 {
            let _ = write!(line, " {family} {side} {prefix}");
        }
        if !but.is_empty() {
            let list: Vec<_> = but.iter().map(Prefix::to_string).collect();
            let _ = write!(line, " {family} {side} != {{ {} }}", list.join(", "));
        }
        let _ = match self.protocol {
            Protocol::Any if self.deny => Ok(()),
            Protocol::Any => write!(line, " meta l4proto {{ 6, 17, {icmp} }}"),
            Protocol::Icmp => write!(line, " meta l4proto {icmp}"),
            Protocol::Number(number) => write!(line, " meta l4proto {number}"),
        };
        if self.ports.is_empty() {
            let _ = writeln!(text, "{line} {verdict}");
        }
        for (first, last) in &self.ports {
            let _ = writeln!(text, "{line} th dport {first}-{last} {verdict}");
        }
    }
}
