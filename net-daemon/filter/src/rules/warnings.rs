//! Likely mistakes in a policy that is valid.

use std::net::IpAddr;

use super::prefix::Prefix;
use super::rule::{Kind, Rule};
use super::special::EMBEDDING;
use super::{Network, Policy};

impl Network {
    /// Whether a host with this address is reached without a gateway.
    pub(super) fn is_on_link(&self, address: IpAddr) -> bool {
        let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        is_link_local || self.on_link.iter().any(|prefix| prefix.contains(address))
    }

    /// Whether all hosts of a prefix are reached without a gateway.
    fn holds(&self, prefix: Prefix) -> bool {
        let is_link_local = matches!(prefix.address(), IpAddr::V6(v6) if v6.is_unicast_link_local());
        is_link_local && prefix.len() >= 10 || self.on_link.iter().any(|mine| mine.covers(prefix))
    }
}

impl Policy {
    /// Returns likely mistakes, in the order of the file's parts.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (family, is_v4) in [("IPv4", true), ("IPv6", false)] {
            self.warn_of_link(family, is_v4, &mut warnings);
        }
        self.warn_of_hosts(&mut warnings);
        for rule in self.rules.iter().filter(|rule| rule.kind == Kind::Allow) {
            for prefix in &rule.prefixes {
                warnings.extend(
                    self.fault(rule, *prefix)
                        .map(|fault| format!("line {}: {} {prefix}: {fault}", rule.line, rule.side())),
                );
            }
        }
        warnings
    }

    /// Warns of a family with rules, but without what leads to their addresses.
    fn warn_of_link(&self, family: &str, is_v4: bool, warnings: &mut Vec<String>) {
        let allows = self.rules.iter().filter(|rule| rule.kind == Kind::Allow);
        let prefixes = allows.flat_map(|rule| rule.prefixes.iter().map(move |prefix| (rule, *prefix)));
        let family_of = |prefix: Prefix| prefix.address().is_ipv4() == is_v4;
        // "any" means both families, also in a network that has one.
        let is_empty = self.network.on_link.is_empty() && self.network.gateways.is_empty();
        let concerns = |prefix: Prefix| family_of(prefix) && (is_empty || prefix.len() > 0);
        let mut prefixes = prefixes.filter(|(_, prefix)| concerns(*prefix)).peekable();
        if prefixes.peek().is_none() {
            return;
        }
        if !self.network.on_link.iter().any(|prefix| family_of(*prefix)) {
            warnings.push(format!(
                "[network]: no {family} prefix in 'on-link': hosts beside the guest are not \
                 refused unless named"
            ));
        }
        let has_gateway = self.network.gateways.iter().any(|gateway| gateway.is_ipv4() == is_v4);
        let is_known = |prefix: Prefix| {
            self.network.neighbours.iter().any(|(neighbour, _)| Prefix::from(*neighbour) == prefix)
        };
        let far = prefixes.find(|(_, prefix)| !self.network.holds(*prefix) && !is_known(*prefix));
        if let Some((rule, prefix)) = far.filter(|_| !has_gateway) {
            warnings.push(format!(
                "[network]: no {family} address in 'gateways': {prefix} (line {}) is not on the link, and \
                 cannot be reached",
                rule.line
            ));
        }
    }

    /// Warns of gateways and neighbours that are not on the link.
    fn warn_of_hosts(&self, warnings: &mut Vec<String>) {
        let network = &self.network;
        let gateways = network.gateways.iter().map(|address| ("gateway", *address));
        let neighbours = network.neighbours.iter().map(|(address, _)| ("neighbour", *address));
        for (what, address) in gateways.chain(neighbours).filter(|(_, address)| !network.is_on_link(*address))
        {
            warnings.push(format!("[network]: the {what} {address} is in no prefix of 'on-link'"));
        }
        if network.gateway_mac.is_some() && network.gateways.is_empty() {
            warnings.push("[network]: 'gateway-mac' has no effect without 'gateways'".to_owned());
        }
    }

    /// Returns why an allow rule does not do with this prefix what it seems to do.
    fn fault(&self, rule: &Rule, prefix: Prefix) -> Option<String> {
        if self.is_out_of_reach(prefix, prefix.len()) {
            let text = "reaches no address: narrower ranges that are refused unless named cover all of it";
            return Some(text.to_owned());
        }
        // A prefix that covers this one contains its first address.
        let mut covering = self.index.of(prefix.address()).filter(|(other, _)| other.covers(prefix));
        let deny = covering.find_map(|(_, at)| {
            let deny = &self.rules[at];
            (deny.kind == Kind::Deny && deny.way == rule.way && deny.outdoes(rule)).then_some(deny)
        });
        if let Some(deny) = deny {
            return Some(format!("has no effect: the deny rule in line {} covers it", deny.line));
        }
        let what = self.range(prefix.address()).filter(|range| range.prefix.covers(prefix))?.what;
        EMBEDDING.contains(&what).then(|| {
            format!("{what}: these addresses contain IPv4 addresses, which rules for IPv4 do not judge")
        })
    }

    /// Whether ranges longer than `len` bits that are refused unless named cover all of `part`.
    fn is_out_of_reach(&self, part: Prefix, len: u8) -> bool {
        let mut narrower = self.ranges.iter().filter(|range| range.prefix.len() > len);
        if narrower.clone().any(|range| range.prefix.covers(part)) {
            return true;
        }
        if !narrower.any(|range| part.covers(range.prefix)) {
            return false;
        }
        part.halves().is_some_and(|halves| halves.into_iter().all(|half| self.is_out_of_reach(half, len)))
    }
}
