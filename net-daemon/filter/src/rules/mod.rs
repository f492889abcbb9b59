//! Policies: which peers a guest may reach, and which may reach it, by address.
//!
//! | module | contents |
//! |---|---|
//! | [`prefix`] | address prefixes |
//! | [`special`] | ranges that are refused unless a rule names them |
//! | [`file`] | reads a policy file, with [`values`] and [`error`] |
//! | [`rule`], [`protocol`] | one rule, and all by their prefixes; IP protocols by name |
//! | [`question`] | questions as texts |
//! | [`explain`], [`listing`], [`warnings`] | a decision, a whole policy and likely mistakes, for people |
//!
//! # Order of decisions
//!
//! 1. A deny rule fits: [`Reason::Denied`].
//! 2. An allow rule fits, and names the address: allowed.
//! 3. One would fit, but for fragments: [`Reason::Fragment`]. But for options: [`Reason::IpOptions`] or
//!    [`Reason::ExtensionHeader`].
//! 4. The address is in a range that is refused unless named, and no rule names it, or a broader one would
//!    fit: [`Reason::NotNamed`].
//! 5. A tunnel, a fragment, options: the reason of each.
//! 6. [`Reason::NotAllowed`].
//!
//! A prefix names an address if it contains it, and lies in the longest of the [`special`] ranges and of the
//! prefixes on the link that contain the address.

use std::cmp::Reverse;
use std::net::IpAddr;

pub use self::error::{MAX_PREFIXES, MAX_RULES, MAX_TEXT, PolicyError};
pub use self::explain::Explanation;
use self::prefix::Prefix;
pub use self::question::QuestionError;
use self::rule::{Fit, Index, Kind, Rule};
use self::special::{Range, SPECIAL};
use crate::Way;
use crate::reason::Reason;

mod error;
mod explain;
mod file;
mod listing;
pub mod prefix;
mod protocol;
mod question;
mod rule;
pub mod special;
#[cfg(test)]
mod tests;
mod values;
mod warnings;

/// What happens to frames that the rules do not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are refused.
    Enforce,
    /// They pass, and are counted and listed.
    Log,
}

/// The network that the guest is on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Prefixes whose hosts are reached directly.
    pub on_link: Vec<Prefix>,
    /// The gateways' addresses.
    pub gateways: Vec<IpAddr>,
    /// The gateways' MAC address. `None`: the first one that a gateway answers with.
    pub gateway_mac: Option<[u8; 6]>,
    /// MAC addresses of hosts on the link that are known.
    pub neighbours: Vec<(IpAddr, [u8; 6])>,
    /// The DHCP server that the guest may ask.
    pub dhcp: Option<std::net::Ipv4Addr>,
}

/// Who opens a flow, to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// [`Way::Out`]: the guest opens it.
    pub way: Way,
    /// The other end.
    pub peer: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The port that is opened: the peer's for a flow that the guest opens, otherwise the guest's. `None` for
    /// protocols without ports, and for fragments.
    pub port: Option<u16>,
    /// Whether it is a fragment.
    pub fragment: bool,
    /// Whether it has IPv4 options or IPv6 extension headers.
    pub options: bool,
}

/// A policy.
#[derive(Clone, Debug)]
pub struct Policy {
    text: String,
    mode: Mode,
    silent: bool,
    network: Network,
    rules: Vec<Rule>,
    index: Index,
    /// Ranges that are refused unless named: [`SPECIAL`], and the prefixes on the link.
    ranges: Vec<Range>,
}

/// An answer, and where it comes from.
#[derive(Clone, Copy, Debug)]
struct Decision {
    answer: Result<(), Reason>,
    /// The position of the rule that decided, or that would have allowed it but for the reason.
    rule: Option<usize>,
}

impl Policy {
    /// Parses the text of a policy file.
    ///
    /// # Errors
    ///
    /// See [`PolicyError`].
    pub fn parse(text: &str) -> Result<Policy, PolicyError> {
        let file::Contents { mode, silent, network, rules } = file::read(text)?;
        let on_link = network.on_link.iter().map(|prefix| Range { prefix: *prefix, what: "on-link" });
        let ranges = SPECIAL.iter().copied().chain(on_link).collect();
        let index = Index::new(&rules);
        Ok(Policy { text: text.to_owned(), mode, silent, network, rules, index, ranges })
    }

    /// Returns the text that it was parsed from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether refused frames get no answer.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// Returns the guest's network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Decides on a new flow. The mode does not matter.
    ///
    /// # Errors
    ///
    /// Returns why it is refused.
    pub fn decide(&self, question: &Question) -> Result<(), Reason> {
        self.weigh(question).answer
    }

    /// Whether the policy names `address`, so that the guest may ask for its MAC address: as a gateway, DHCP
    /// server or neighbour, or by an allow rule that no deny rule cancels.
    pub fn names(&self, address: IpAddr) -> bool {
        let network = &self.network;
        network.gateways.contains(&address)
            || network.dhcp.is_some_and(|dhcp| address == dhcp)
            || network.neighbours.iter().any(|(neighbour, _)| *neighbour == address)
            || Way::BOTH.into_iter().any(|way| self.allows_some(way, address))
    }

    /// Whether the answer to some question about `address` is yes.
    fn allows_some(&self, way: Way, address: IpAddr) -> bool {
        let bits = self.range(address).map_or(0, |range| range.prefix.len());
        let mut named = false;
        for (prefix, at) in self.index.of(address) {
            let rule = &self.rules[at];
            match rule.kind {
                _ if rule.way != way => {}
                Kind::Deny if rule.is_total() => return false,
                Kind::Deny => {}
                Kind::Allow => named |= prefix.len() >= bits,
            }
        }
        named
    }

    /// Returns the longest of the ranges that contain `address` and are refused unless named.
    fn range(&self, address: IpAddr) -> Option<Range> {
        let containing = self.ranges.iter().filter(|range| range.prefix.contains(address));
        containing.max_by_key(|range| range.prefix.len()).copied()
    }

    fn weigh(&self, question: &Question) -> Decision {
        let range = self.range(question.peer);
        let bits = range.map_or(0, |range| range.prefix.len());
        // Of two prefixes that contain the address, the longer one lies in the shorter one: comparing lengths
        // tells whether a rule names it. Of equal fits, the first rule of the file is shown.
        let mut best: Option<(Fit, Reverse<usize>)> = None;
        let mut broader: Option<usize> = None;
        for (prefix, at) in self.index.of(question.peer) {
            let rule = &self.rules[at];
            if rule.way != question.way {
                continue;
            }
            match rule.kind {
                Kind::Deny if rule.denies(question) => {
                    return Decision { answer: Err(Reason::Denied), rule: Some(at) };
                }
                Kind::Deny => {}
                Kind::Allow if prefix.len() >= bits => {
                    best = best.max(Some((rule.fit(question), Reverse(at))));
                }
                Kind::Allow if rule.fit(question) == Fit::Full => broader = broader.or(Some(at)),
                Kind::Allow => {}
            }
        }
        let named = best.is_some();
        let options = if question.peer.is_ipv4() { Reason::IpOptions } else { Reason::ExtensionHeader };
        let (answer, rule) = match best {
            Some((Fit::Full, Reverse(at))) => (Ok(()), Some(at)),
            Some((Fit::ButFragments, Reverse(at))) => (Err(Reason::Fragment), Some(at)),
            Some((Fit::ButOptions, Reverse(at))) => (Err(options), Some(at)),
            _ if range.is_some() && (broader.is_some() || !named) => (Err(Reason::NotNamed), broader),
            _ if protocol::is_tunnel(question.protocol) => (Err(Reason::Tunnel), None),
            _ if question.fragment => (Err(Reason::Fragment), None),
            _ if question.options => (Err(options), None),
            _ => (Err(Reason::NotAllowed), None),
        };
        Decision { answer, rule }
    }
}
