//! Rules that would allow what was refused for lack of a rule.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::IpAddr;

use volt_filter::Way;
use volt_filter::reason::Reason;
use volt_program::display::of;

use crate::filter::listed::Listed;

/// Reasons for which a rule is missing.
const MISSING: [Reason; 2] = [Reason::NotAllowed, Reason::NotNamed];

/// What a rule allows, without the peers: way, protocol and port.
type Service = (bool, String, Option<u16>);

/// Peers of a service, and their frames.
#[derive(Default)]
struct Wish {
    peers: BTreeSet<IpAddr>,
    frames: u64,
}

/// Returns the rules as the text of a policy file, for the most frequent frames first.
pub(super) fn rules(entries: &[Listed]) -> String {
    let mut wishes: BTreeMap<Service, Wish> = BTreeMap::new();
    for entry in entries.iter().filter(|entry| MISSING.iter().any(|reason| reason.name() == entry.reason)) {
        let Some(question) = entry.question() else { continue };
        let text = question.to_string();
        let protocol = text.trim_start_matches("from ").split(' ').next().unwrap_or_default().to_owned();
        let wish = wishes.entry((question.way == Way::Out, protocol, question.port)).or_default();
        wish.peers.insert(question.peer);
        wish.frames += entry.frames;
    }
    if wishes.is_empty() {
        return "# No frame was refused for lack of a rule.".to_owned();
    }
    let mut wishes: Vec<_> = wishes.into_iter().collect();
    wishes.sort_by_key(|(_, wish)| std::cmp::Reverse(wish.frames));
    let mut text = "# Rules for what was refused. Keep those that the guest should have.\n".to_owned();
    wishes.iter().for_each(|(service, wish)| text += &rule(service, wish));
    text
}

fn rule((out, protocol, port): &Service, wish: &Wish) -> String {
    let peers: Vec<_> = wish.peers.iter().map(|peer| format!("\"{peer}\"")).collect();
    let (side, what) = if *out { ("to", "from the guest") } else { ("from", "to the guest") };
    let mut text = format!("\n# {} {what}\n[[allow]]\n", of(wish.frames, "frame"));
    let _ = match &peers[..] {
        [peer] => writeln!(text, "{side} = {peer}"),
        peers => writeln!(text, "{side} = [{}]", peers.join(", ")),
    };
    let _ = match protocol.parse::<u8>() {
        Ok(number) => writeln!(text, "protocol = {number}"),
        Err(_) => writeln!(text, "protocol = \"{protocol}\""),
    };
    if let Some(port) = port {
        let _ = writeln!(text, "ports = {port}");
    }
    text
}

#[cfg(test)]
mod tests {
    use volt_filter::rules::Policy;

    use super::*;
    use crate::filter::listed::tests::entry;

    #[test]
    fn rules_are_merged_by_service_and_allow_what_was_refused() {
        let icmp = Listed { protocol: Some(1), port: None, ..entry("not_named", "10.0.0.1", 0, 9) };
        let other = Listed { protocol: Some(253), port: None, ..entry("not_allowed", "192.0.2.7", 0, 1) };
        let into = Listed { direction: "rx".to_owned(), ..entry("not_allowed", "203.0.113.9", 22, 2) };
        let entries = [
            entry("not_allowed", "192.0.2.7", 443, 2),
            entry("not_allowed", "2001:db8::7", 443, 3),
            entry("source_mac", "192.0.2.8", 443, 100),
            icmp,
            other,
            into,
        ];
        let text = rules(&entries);
        assert_eq!(
            text,
            "\
# Rules for what was refused. Keep those that the guest should have.

# 9 frames from the guest
[[allow]]
to = \"10.0.0.1\"
protocol = \"icmp\"

# 5 frames from the guest
[[allow]]
to = [\"192.0.2.7\", \"2001:db8::7\"]
protocol = \"tcp\"
ports = 443

# 2 frames to the guest
[[allow]]
from = \"203.0.113.9\"
protocol = \"tcp\"
ports = 22

# 1 frame from the guest
[[allow]]
to = \"192.0.2.7\"
protocol = 253
"
        );
        let policy = Policy::parse(&text).unwrap();
        for entry in entries.iter().filter(|entry| entry.reason != "source_mac") {
            assert_eq!(policy.decide(&entry.question().unwrap()), Ok(()), "{entry}");
        }
        assert!(
            Policy::parse(&rules(&entries[2..3])).unwrap().decide(&entries[2].question().unwrap()).is_err()
        );
    }
}
