//! Reads a policy file.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde::Deserialize;
use toml::Spanned;

use super::error::{MAX_LINK, MAX_NEIGHBOURS, MAX_PREFIXES, MAX_RULES, MAX_TEXT, PolicyError};
use super::prefix::Prefix;
use super::protocol::Protocol;
use super::rule::{Kind, Ports, Rule};
use super::values::{Item, Mac, Many, One, Peer};
use super::{Mode, Network};
use crate::Way;

/// What a file contains.
pub(super) struct Contents {
    pub(super) mode: Mode,
    pub(super) silent: bool,
    pub(super) network: Network,
    /// In the order of the file.
    pub(super) rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    mode: ModeName,
    #[serde(default)]
    refuse: Refuse,
    #[serde(default)]
    network: NetworkTable,
    #[serde(default)]
    allow: Vec<Spanned<RuleTable>>,
    #[serde(default)]
    deny: Vec<Spanned<RuleTable>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum ModeName {
    #[default]
    Enforce,
    Log,
}

#[derive(Default, Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Refuse {
    #[default]
    Reject,
    Drop,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NetworkTable {
    #[serde(default)]
    on_link: Many<Prefix>,
    #[serde(default)]
    gateways: Many<IpAddr>,
    gateway_mac: Option<One<Mac>>,
    dhcp: Option<One<Ipv4Addr>>,
    #[serde(default)]
    neighbours: BTreeMap<Spanned<String>, One<Mac>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleTable {
    to: Option<Many<Peer>>,
    from: Option<Many<Peer>>,
    protocol: Option<One<Protocol>>,
    ports: Option<Many<Ports>>,
    fragments: Option<bool>,
    options: Option<bool>,
}

/// Reads the text of a policy file.
pub(super) fn read(text: &str) -> Result<Contents, PolicyError> {
    if text.len() > MAX_TEXT {
        return Err(PolicyError::Size);
    }
    let lines = Lines::new(text);
    let file: File = toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        PolicyError::Syntax { line: lines.of(start), what: error.message().replace('\n', " ") }
    })?;
    at_most("rules", file.allow.len() + file.deny.len(), MAX_RULES)?;
    let allow = file.allow.into_iter().map(|rule| (Kind::Allow, rule));
    let deny = file.deny.into_iter().map(|rule| (Kind::Deny, rule));
    let rules = allow.chain(deny).map(|(kind, table)| {
        let line = lines.of(table.span().start);
        rule(kind, line, table.into_inner())
    });
    let mut rules: Vec<_> = rules.collect::<Result<_, _>>()?;
    at_most("prefixes", rules.iter().map(|rule| rule.prefixes.len()).sum(), MAX_PREFIXES)?;
    rules.sort_by_key(|rule| rule.line);
    let mode = match file.mode {
        ModeName::Enforce => Mode::Enforce,
        ModeName::Log => Mode::Log,
    };
    let network = network(file.network, &lines)?;
    Ok(Contents { mode, silent: file.refuse == Refuse::Drop, network, rules })
}

fn at_most(what: &'static str, found: usize, most: usize) -> Result<(), PolicyError> {
    if found > most { Err(PolicyError::Many { what, found, most }) } else { Ok(()) }
}

fn network(table: NetworkTable, lines: &Lines) -> Result<Network, PolicyError> {
    let (on_link, gateways) = (table.on_link.0, table.gateways.0);
    at_most("prefixes on the link", on_link.len(), MAX_LINK)?;
    at_most("gateways", gateways.len(), MAX_LINK)?;
    at_most("neighbours", table.neighbours.len(), MAX_NEIGHBOURS)?;
    let mut neighbours: Vec<(IpAddr, [u8; 6])> = Vec::new();
    for (address, One(Mac(mac))) in table.neighbours {
        let syntax = |what| PolicyError::Syntax { line: lines.of(address.span().start), what };
        let ip = IpAddr::from_text(address.get_ref()).map_err(syntax)?;
        // TOML compares texts, and one IPv6 address has many.
        if neighbours.iter().any(|(other, _)| *other == ip) {
            return Err(syntax(format!("the neighbour {ip} is listed twice: keep one")));
        }
        neighbours.push((ip, mac));
    }
    let gateway_mac = table.gateway_mac.map(|One(Mac(mac))| mac);
    Ok(Network { on_link, gateways, gateway_mac, neighbours, dhcp: table.dhcp.map(|One(dhcp)| dhcp) })
}

fn rule(kind: Kind, line: usize, table: RuleTable) -> Result<Rule, PolicyError> {
    let (way, peers) = match (table.to, table.from) {
        (Some(to), None) => (Way::Out, to.0),
        (None, Some(from)) => (Way::In, from.0),
        (None, None) => return Err(PolicyError::NoPeer { line }),
        (Some(_), Some(_)) => return Err(PolicyError::BothPeers { line }),
    };
    if peers.is_empty() {
        let key = if way == Way::Out { "to" } else { "from" };
        return Err(PolicyError::Empty { line, key });
    }
    let protocol = table.protocol.map_or(Protocol::Any, |One(protocol)| protocol);
    let has_ports = table.ports.is_some();
    let ports = table.ports.unwrap_or_default().0;
    if has_ports && !protocol.has_ports() {
        return Err(PolicyError::Ports { line, protocol: protocol.to_string() });
    }
    // No ports must not become all ports.
    if has_ports && ports.is_empty() {
        return Err(PolicyError::Empty { line, key: "ports" });
    }
    for (key, value) in [("fragments", table.fragments), ("options", table.options)] {
        if kind == Kind::Deny && value.is_some() {
            return Err(PolicyError::Deny { line, key });
        }
    }
    let (fragments, options) = (table.fragments == Some(true), table.options == Some(true));
    if fragments && has_ports {
        return Err(PolicyError::FragmentPorts { line });
    }
    let prefixes = peers.into_iter().flat_map(Peer::prefixes).collect();
    Ok(Rule { line, kind, way, prefixes, protocol, ports, fragments, options })
}

/// Where lines begin.
struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Lines {
        Lines(text.match_indices('\n').map(|(at, _)| at + 1).collect())
    }

    /// Returns the line of the byte at this offset, from 1.
    fn of(&self, offset: usize) -> usize {
        self.0.partition_point(|start| *start <= offset) + 1
    }
}
