//! One rule, and all rules by their prefixes.

use std::fmt;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::Question;
use super::prefix::Prefix;
use super::protocol::Protocol;
use crate::Way;

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Allow,
    Deny,
}

impl Kind {
    /// Returns its name in a policy file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Allow => "allow",
            Kind::Deny => "deny",
        }
    }
}

/// Ports from first to last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ports(pub(crate) RangeInclusive<u16>);

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.0.start(), self.0.end());
        if first == last { write!(f, "{first}") } else { write!(f, "{first}-{last}") }
    }
}

/// A rule.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// Its line in the file.
    pub(crate) line: usize,
    pub(crate) kind: Kind,
    /// [`Way::Out`] for `to`, [`Way::In`] for `from`.
    pub(crate) way: Way,
    pub(crate) prefixes: Vec<Prefix>,
    pub(crate) protocol: Protocol,
    /// Empty: any port.
    pub(crate) ports: Vec<Ports>,
    pub(crate) fragments: bool,
    pub(crate) options: bool,
}

/// How an allow rule fits a question about an address in its prefixes. The last is the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    /// Other protocol or ports.
    Not,
    /// All but IPv4 options or IPv6 extension headers.
    ButOptions,
    /// All but fragments.
    ButFragments,
    /// In all.
    Full,
}

impl Rule {
    /// Returns the name of its way in a policy file.
    pub(crate) fn side(&self) -> &'static str {
        match self.way {
            Way::Out => "to",
            Way::In => "from",
        }
    }

    fn has_port(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.iter().any(|ports| ports.0.contains(&port))
    }

    /// Returns how this allow rule fits, except for the address.
    pub(crate) fn fit(&self, question: &Question) -> Fit {
        if !self.protocol.allows(question.protocol, question.peer) {
            return Fit::Not;
        }
        if question.fragment {
            // It has no port to judge. Rules with ports never have `fragments`.
            if !self.fragments {
                return Fit::ButFragments;
            }
        } else if !self.ports.is_empty() && !question.port.is_some_and(|port| self.has_port(port)) {
            return Fit::Not;
        }
        if question.options && !self.options { Fit::ButOptions } else { Fit::Full }
    }

    /// Whether this deny rule fits, except for the address. What it cannot judge, it denies.
    pub(crate) fn denies(&self, question: &Question) -> bool {
        let port = question.port.filter(|_| !question.fragment);
        self.protocol.denies(question.protocol, question.peer) && port.is_none_or(|port| self.has_port(port))
    }

    /// Whether it applies to everything to or from its addresses.
    pub(crate) fn is_total(&self) -> bool {
        self.protocol == Protocol::Any && self.ports.is_empty()
    }

    /// Whether this deny rule denies everything that `allow` allows for the addresses of both.
    pub(crate) fn outdoes(&self, allow: &Rule) -> bool {
        let within = |ports: &Ports| {
            self.ports.iter().any(|mine| mine.0.contains(ports.0.start()) && mine.0.contains(ports.0.end()))
        };
        let ports = self.ports.is_empty() || !allow.ports.is_empty() && allow.ports.iter().all(within);
        (self.protocol == Protocol::Any || self.protocol == allow.protocol) && ports
    }
}

/// The rules by their prefixes. Finding those of an address takes one search for each length in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    /// Prefixes with the positions of their rules, in order.
    entries: Vec<(Prefix, usize)>,
    /// Lengths of IPv4 and of IPv6 prefixes, longest first.
    lengths: [Vec<u8>; 2],
}

impl Index {
    pub(crate) fn new(rules: &[Rule]) -> Index {
        let each = rules.iter().enumerate();
        let mut entries: Vec<_> =
            each.flat_map(|(at, rule)| rule.prefixes.iter().map(move |prefix| (*prefix, at))).collect();
        entries.sort_unstable();
        entries.dedup();
        let lengths = [true, false].map(|v4| {
            let family = entries.iter().filter(|(prefix, _)| prefix.address().is_ipv4() == v4);
            let mut lengths: Vec<_> = family.map(|(prefix, _)| prefix.len()).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
            lengths
        });
        Index { entries, lengths }
    }

    /// Returns the prefixes that contain `address`, longest first, each with the position of its rule.
    pub(crate) fn of(&self, address: IpAddr) -> impl Iterator<Item = (Prefix, usize)> {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        let prefixes = lengths.iter().filter_map(move |len| Prefix::new(address, *len));
        prefixes.flat_map(|prefix| {
            let first = self.entries.partition_point(|(other, _)| *other < prefix);
            self.entries[first..].iter().take_while(move |(other, _)| *other == prefix).copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_finds_the_prefixes_of_an_address() {
        let rule = |prefixes: &[&str]| Rule {
            line: 1,
            kind: Kind::Allow,
            way: Way::Out,
            prefixes: prefixes.iter().map(|text| text.parse().unwrap()).collect(),
            protocol: Protocol::Any,
            ports: Vec::new(),
            fragments: false,
            options: false,
        };
        let index =
            Index::new(&[rule(&["0.0.0.0/0", "192.0.2.0/24"]), rule(&["192.0.2.7", "::/0", "192.0.2.0/24"])]);
        let of = |address: &str| {
            let found = index.of(address.parse().unwrap());
            found.map(|(prefix, at)| format!("{prefix} {at}")).collect::<Vec<_>>()
        };
        assert_eq!(of("192.0.2.7"), ["192.0.2.7 1", "192.0.2.0/24 0", "192.0.2.0/24 1", "0.0.0.0/0 0"]);
        assert_eq!(of("192.0.3.0"), ["0.0.0.0/0 0"]);
        assert_eq!(of("2001:db8::"), ["::/0 1"]);
    }
}
