//! Explains a decision.

use std::fmt;
use std::net::IpAddr;

use super::protocol::Protocol;
use super::special::Range;
use super::{Mode, Policy, Question};
use crate::Way;
use crate::reason::Reason;

/// A decision, with the rule that made it. `Display` explains it in a few lines.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// What was asked.
    pub question: Question,
    /// The answer of [`Policy::decide`].
    pub answer: Result<(), Reason>,
    /// The line of the rule that decided, or that would have allowed it but for the reason.
    pub line: Option<usize>,
    /// Where the guest's frames of the flow go.
    pub hop: Hop,
    /// The rule, with those prefixes that contain the address.
    rule: Option<String>,
    range: Option<Range>,
    mode: Mode,
}

/// Where the guest's frames to a peer go. A MAC address that is not known is the one that the host answers
/// with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// To the peer itself, which is on the link.
    Neighbour(IpAddr, Option<[u8; 6]>),
    /// To one of the gateways.
    Gateways(Vec<IpAddr>, Option<[u8; 6]>),
    /// Nowhere: the peer is not on the link, and its family has no gateway.
    Nowhere,
}

impl Policy {
    /// Explains the decision on a new flow.
    pub fn explain(&self, question: &Question) -> Explanation {
        let decision = self.weigh(question);
        let rule = decision.rule.map(|at| &self.rules[at]);
        Explanation {
            question: *question,
            answer: decision.answer,
            line: rule.map(|rule| rule.line),
            hop: self.hop(question.peer),
            rule: rule.map(|rule| rule.about(question.peer)),
            range: self.range(question.peer),
            mode: self.mode,
        }
    }

    /// Returns where the guest's frames to `peer` go.
    fn hop(&self, peer: IpAddr) -> Hop {
        let network = &self.network;
        if let Some((_, mac)) = network.neighbours.iter().find(|(neighbour, _)| *neighbour == peer) {
            return Hop::Neighbour(peer, Some(*mac));
        }
        if network.gateways.contains(&peer) {
            return Hop::Gateways(vec![peer], network.gateway_mac);
        }
        if network.is_on_link(peer) {
            return Hop::Neighbour(peer, None);
        }
        let gateways = network.gateways.iter().filter(|gateway| gateway.is_ipv4() == peer.is_ipv4());
        let gateways: Vec<_> = gateways.copied().collect();
        if gateways.is_empty() { Hop::Nowhere } else { Hop::Gateways(gateways, network.gateway_mac) }
    }
}

impl Explanation {
    /// Writes why it is refused.
    fn write_reason(&self, reason: Reason, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\nreason: {}: ", reason.name())?;
        let has_rule = self.line.is_some();
        match (reason, self.range) {
            (Reason::Denied, _) => f.write_str("a deny rule fits"),
            (Reason::Fragment, _) if has_rule => f.write_str(
                "the rule fits, but for fragments: set 'fragments = true' in a rule without ports",
            ),
            (Reason::IpOptions | Reason::ExtensionHeader, _) if has_rule => {
                f.write_str("the rule fits, but for options: set 'options = true'")
            }
            (Reason::NotNamed, Some(Range { prefix, what })) => {
                write!(f, "{} is in {prefix} ({what}); ", self.question.peer)?;
                f.write_str(match has_rule {
                    true => "the rule is broader: name an address or prefix within it",
                    false => "no rule names an address or prefix within it",
                })
            }
            (Reason::Tunnel, _) => {
                write!(f, "no rule names the protocol {}", Protocol::Number(self.question.protocol))
            }
            _ => f.write_str(reason.text()),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answer = if self.answer.is_ok() { "allowed" } else { "refused" };
        write!(f, "{answer}: {}", self.question)?;
        self.answer.or_else(|reason| self.write_reason(reason, f))?;
        if let Some((line, rule)) = self.line.zip(self.rule.as_ref()) {
            write!(f, "\nrule: line {line}: {rule}")?;
        }
        if self.answer.is_err() && self.mode == Mode::Log {
            f.write_str("\nmode: log: it passes, and is counted")?;
        }
        if self.answer.is_ok() || self.mode == Mode::Log {
            let what = if self.question.way == Way::Out { "next hop" } else { "next hop of answers" };
            write!(f, "\n{what}: {}", self.hop)?;
        }
        Ok(())
    }
}

impl fmt::Display for Hop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mac = match self {
            Hop::Neighbour(peer, mac) => {
                write!(f, "the host {peer}, on the link")?;
                mac
            }
            Hop::Gateways(gateways, mac) => {
                let gateways: Vec<_> = gateways.iter().map(IpAddr::to_string).collect();
                write!(f, "the gateway {}", gateways.join(" or "))?;
                mac
            }
            Hop::Nowhere => return f.write_str("none: not on the link, and no gateway of this family"),
        };
        match mac {
            Some(mac) => write!(f, ", {}", MacText(*mac)),
            None => f.write_str(", by the MAC address that it answers with"),
        }
    }
}

/// A MAC address as a text.
pub(super) struct MacText(pub(super) [u8; 6]);

impl fmt::Display for MacText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}
