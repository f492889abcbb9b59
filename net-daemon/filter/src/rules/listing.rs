//! Lists a policy: what `volt-netd policy check` prints.

use std::fmt::{self, Display};
use std::net::IpAddr;

use super::explain::MacText;
use super::rule::Rule;
use super::{Mode, Policy};

/// Joins values by commas. `none` for no values.
fn list<T: Display>(values: &[T], none: &str) -> String {
    let values: Vec<_> = values.iter().map(T::to_string).collect();
    if values.is_empty() { none.to_owned() } else { values.join(", ") }
}

impl Rule {
    /// What it allows beside whole packets without options.
    fn also(&self) -> String {
        let words = [("fragments", self.fragments), ("options", self.options)];
        let words: Vec<_> = words.into_iter().filter(|(_, has)| *has).map(|(word, _)| word).collect();
        list(&words, "-")
    }

    /// Describes it for an address: with those of its prefixes that contain it.
    pub(super) fn about(&self, address: IpAddr) -> String {
        let prefixes: Vec<_> = self.prefixes.iter().filter(|prefix| prefix.contains(address)).collect();
        let mut text = format!("{} {} {}", self.kind.name(), self.side(), list(&prefixes, "-"));
        text += &format!("; protocol {}; ports {}", self.protocol, list(&self.ports, "any"));
        if self.fragments || self.options {
            text += &format!("; also {}", self.also());
        }
        text
    }
}

impl Policy {
    /// Returns the network as lines of a name and a value.
    fn settings(&self) -> Vec<[String; 2]> {
        let network = &self.network;
        let mode = match self.mode {
            Mode::Enforce => "enforce",
            Mode::Log => "log: the rules refuse nothing",
        };
        let refuse = if self.silent { "drop" } else { "reject" };
        let mut lines = vec![
            ["mode", mode].map(str::to_owned),
            ["refuse", refuse].map(str::to_owned),
            ["on-link".to_owned(), list(&network.on_link, "none")],
            ["gateways".to_owned(), list(&network.gateways, "none")],
        ];
        if !network.gateways.is_empty() {
            let mac = network.gateway_mac.map(|mac| MacText(mac).to_string());
            lines
                .push(["gateway-mac".to_owned(), mac.unwrap_or_else(|| "the first that answers".to_owned())]);
        }
        lines.extend(network.dhcp.map(|dhcp| ["dhcp".to_owned(), dhcp.to_string()]));
        let neighbours = network.neighbours.iter();
        lines.extend(neighbours.map(|(ip, mac)| ["neighbour".to_owned(), format!("{ip} {}", MacText(*mac))]));
        lines
    }

    /// Returns the rules as rows of a table, one for each prefix.
    fn rows(&self) -> Vec<[String; 6]> {
        let heading = ["line", "rule", "address", "protocol", "ports", "also"].map(str::to_owned);
        let mut rows = vec![heading];
        for rule in &self.rules {
            let mut cells = [
                rule.line.to_string(),
                format!("{} {}", rule.kind.name(), rule.side()),
                String::new(),
                rule.protocol.to_string(),
                list(&rule.ports, "any"),
                rule.also(),
            ];
            for prefix in &rule.prefixes {
                cells[2] = prefix.to_string();
                // Further rows of the rule have the address only.
                rows.push(std::mem::take(&mut cells));
            }
        }
        rows
    }
}

/// Lists the network and the rules.
impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for [name, value] in self.settings() {
            writeln!(f, "{name:<12} {value}")?;
        }
        if self.rules.is_empty() {
            return f.write_str("no rules: no flow is allowed");
        }
        let rows = self.rows();
        let mut widths = [0; 6];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.len().max(*width);
            }
        }
        for row in &rows {
            let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
            write!(f, "\n{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}
