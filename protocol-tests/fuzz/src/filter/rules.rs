//! Policies of the model: rules as plain lists, each tried in turn. The ranges that are refused unless named
//! are read from the page that documents them.

use std::net::IpAddr;
use std::sync::OnceLock;

use volt_filter::reason::Reason;

use super::read::Mac;

/// The page with the table of ranges.
const PAGE: &str = include_str!("../../../../docs/reference/policy.md");
/// Protocols that carry packets which no rule sees, as the page lists them.
const TUNNELS: [u8; 18] = [4, 41, 47, 50, 51, 55, 94, 97, 98, 99, 108, 111, 115, 137, 142, 143, 144, 145];

/// A rule.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) deny: bool,
    /// Whether the other end opens the flow.
    pub(super) from: bool,
    pub(super) prefixes: &'static [&'static str],
    /// `any`, `icmp`, or a number.
    pub(super) protocol: &'static str,
    pub(super) ports: Option<(u16, u16)>,
    pub(super) fragments: bool,
    pub(super) options: bool,
}

/// A policy.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) log: bool,
    pub(super) on_link: &'static [&'static str],
    pub(super) gateways: &'static [&'static str],
    pub(super) gateway_mac: Option<Mac>,
    pub(super) dhcp: Option<&'static str>,
    pub(super) neighbours: &'static [(&'static str, Mac)],
    pub(super) rules: &'static [Rule],
}

/// What the rules are asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) from: bool,
    pub(super) peer: IpAddr,
    pub(super) protocol: u8,
    pub(super) port: Option<u16>,
    pub(super) fragment: bool,
    pub(super) options: bool,
}

/// Returns the length of a prefix if it contains the address.
fn covers(prefix: &str, address: IpAddr) -> Option<usize> {
    let (first, len) = match prefix.split_once('/') {
        Some((first, len)) => (first, len.parse().expect("a length")),
        None => (prefix, if prefix.contains(':') { 128 } else { 32 }),
    };
    if prefix.contains(':') != address.is_ipv6() {
        return None;
    }
    let bits = |address| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let differing = bits(first.parse().expect("an address")) ^ bits(address);
    (differing.leading_zeros() as usize >= len).then_some(len)
}

/// Returns the length of the longest range that contains `address` and is refused unless named.
fn range(policy: &Policy, address: IpAddr) -> Option<usize> {
    static RANGES: OnceLock<Vec<&str>> = OnceLock::new();
    let ranges = RANGES.get_or_init(|| {
        let table = PAGE.split("| range | what |").nth(1).expect("the table of ranges");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        rows.map(|line| line.split('`').nth(1).expect("a range")).collect()
    });
    ranges.iter().chain(policy.on_link).filter_map(|range| covers(range, address)).max()
}

impl Rule {
    /// Returns the lengths of its prefixes that contain `peer`.
    fn lengths(&self, peer: IpAddr) -> Vec<usize> {
        self.prefixes.iter().filter_map(|prefix| covers(prefix, peer)).collect()
    }

    fn has_protocol(&self, number: u8, peer: IpAddr) -> bool {
        let icmp = if peer.is_ipv4() { 1 } else { 58 };
        match self.protocol {
            "any" => self.deny || [6, 17, icmp].contains(&number),
            "icmp" => number == icmp,
            text => text.parse() == Ok(number),
        }
    }

    /// Whether protocol and port fit. A fragment has no port, and fits.
    fn fits(&self, asked: &Question) -> bool {
        let fits_port = match self.ports {
            None => true,
            Some(_) if asked.fragment => true,
            Some((first, last)) => asked.port.is_some_and(|port| first <= port && port <= last),
        };
        self.has_protocol(asked.protocol, asked.peer) && fits_port
    }
}

impl Policy {
    /// Decides by the table "Order of decisions".
    pub(super) fn decide(&self, asked: &Question) -> Result<(), Reason> {
        let options = if asked.peer.is_ipv4() { Reason::IpOptions } else { Reason::ExtensionHeader };
        let mine = self.rules.iter().filter(|rule| rule.from == asked.from);
        let about: Vec<_> = mine.filter(|rule| !rule.lengths(asked.peer).is_empty()).collect();
        if about.iter().any(|rule| rule.deny && rule.fits(asked)) {
            return Err(Reason::Denied);
        }
        let range = range(self, asked.peer);
        let names = |rule: &Rule| {
            !rule.deny && rule.lengths(asked.peer).into_iter().any(|len| len >= range.unwrap_or(0))
        };
        let is_broader = |rule: &Rule| {
            !rule.deny && rule.lengths(asked.peer).into_iter().any(|len| len < range.unwrap_or(0))
        };
        let lacks_fragments = |rule: &Rule| asked.fragment && !rule.fragments;
        let lacks_options = |rule: &Rule| asked.options && !rule.options;
        let is_full = |rule: &Rule| rule.fits(asked) && !lacks_fragments(rule) && !lacks_options(rule);
        let fitting: Vec<_> = about.iter().filter(|rule| names(rule) && rule.fits(asked)).collect();
        if fitting.iter().any(|rule| is_full(rule)) {
            return Ok(());
        }
        if fitting.iter().any(|rule| lacks_fragments(rule)) {
            return Err(Reason::Fragment);
        }
        if !fitting.is_empty() {
            return Err(options);
        }
        let named = about.iter().any(|rule| names(rule));
        let broader = about.iter().any(|rule| is_broader(rule) && is_full(rule));
        Err(match range {
            Some(_) if !named || broader => Reason::NotNamed,
            _ if TUNNELS.contains(&asked.protocol) => Reason::Tunnel,
            _ if asked.fragment => Reason::Fragment,
            _ if asked.options => options,
            _ => Reason::NotAllowed,
        })
    }

    /// Whether it names an address, so that the guest may ask for its MAC address.
    pub(super) fn names(&self, address: IpAddr) -> bool {
        let is = |text: &str| text.parse() == Ok(address);
        let by_rules = |from: bool| {
            let about = || {
                let mine = self.rules.iter().filter(|rule| rule.from == from);
                mine.map(|rule| (rule, rule.lengths(address))).filter(|(_, lengths)| !lengths.is_empty())
            };
            let cancelled =
                about().any(|(rule, _)| rule.deny && rule.protocol == "any" && rule.ports.is_none());
            let range = range(self, address).unwrap_or(0);
            let named = about().any(|(rule, lengths)| !rule.deny && lengths.iter().any(|len| *len >= range));
            named && !cancelled
        };
        self.is_gateway(address)
            || self.dhcp.is_some_and(is)
            || self.neighbours.iter().any(|(text, _)| is(text))
            || by_rules(false)
            || by_rules(true)
    }

    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateways.iter().any(|text| text.parse() == Ok(address))
    }

    pub(super) fn is_on_link(&self, address: IpAddr) -> bool {
        let local = covers("fe80::/10", address).is_some();
        local || self.is_gateway(address) || self.on_link.iter().any(|text| covers(text, address).is_some())
    }

    /// Whether some rule lets packets of this protocol pass between the guest and `peer`.
    pub(super) fn knows(&self, peer: IpAddr, protocol: u8) -> bool {
        let covering = self.rules.iter().filter(|rule| !rule.deny && !rule.lengths(peer).is_empty());
        covering.into_iter().any(|rule| rule.has_protocol(protocol, peer))
    }

    /// Writes the policy file.
    pub(super) fn text(&self) -> String {
        let mac = |mac: &Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
        let mode = if self.log { "log" } else { "enforce" };
        let (on_link, gateways) = (self.on_link, self.gateways);
        let mut text =
            format!("mode = \"{mode}\"\n[network]\non-link = {on_link:?}\ngateways = {gateways:?}\n");
        self.gateway_mac.iter().for_each(|given| text += &format!("gateway-mac = \"{}\"\n", mac(given)));
        self.dhcp.iter().for_each(|server| text += &format!("dhcp = \"{server}\"\n"));
        if !self.neighbours.is_empty() {
            text += "[network.neighbours]\n";
        }
        for (address, given) in self.neighbours {
            text += &format!("\"{address}\" = \"{}\"\n", mac(given));
        }
        for rule in self.rules {
            let kind = if rule.deny { "deny" } else { "allow" };
            let side = if rule.from { "from" } else { "to" };
            let protocol = match rule.protocol.parse::<u8>() {
                Ok(6) => "tcp",
                Ok(17) => "udp",
                _ => rule.protocol,
            };
            text += &format!("[[{kind}]]\n{side} = {:?}\nprotocol = \"{protocol}\"\n", rule.prefixes);
            rule.ports.iter().for_each(|(first, last)| text += &format!("ports = \"{first}-{last}\"\n"));
            text += if rule.fragments { "fragments = true\n" } else { "" };
            text += if rule.options { "options = true\n" } else { "" };
        }
        text
    }
}
