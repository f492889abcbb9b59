//! An entry of the list of refused frames, as `volt-netd ctl policy log` gets it from the daemon.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use volt_filter::Way;
use volt_filter::rules::Question;
use volt_net::config::Mac;
use volt_net::filter::log::Refused;

/// Frames that were refused or noted, and are alike. Programs must accept further fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    /// `tx` or `rx`.
    pub(crate) direction: String,
    /// The name of the reason.
    pub(crate) reason: String,
    /// Whether they were refused; otherwise they passed, because the policy only logs.
    pub(crate) refused: bool,
    /// IP protocol number.
    pub(crate) protocol: Option<u8>,
    /// The other end.
    pub(crate) peer: Option<IpAddr>,
    /// Destination port.
    pub(crate) port: Option<u16>,
    pub(crate) frames: u64,
    /// Milliseconds since 1970.
    pub(crate) first_ms: u64,
    pub(crate) last_ms: u64,
    /// Of the last frame.
    pub(crate) ether_type: u16,
    pub(crate) source_mac: String,
    pub(crate) destination_mac: String,
}

impl Listed {
    /// Describes the entry of the daemon's list.
    pub(crate) fn new(entry: &Refused) -> Listed {
        let (subject, frame) = (entry.subject, entry.last_frame);
        let [destination_mac, source_mac] = frame.macs.map(|mac| Mac(mac).to_string());
        Listed {
            direction: direction(subject.way).to_owned(),
            reason: subject.reason.name().to_owned(),
            refused: subject.refused,
            protocol: subject.protocol,
            peer: subject.peer,
            port: subject.port,
            frames: entry.count,
            first_ms: entry.times[0],
            last_ms: entry.times[1],
            ether_type: frame.ether_type,
            source_mac,
            destination_mac,
        }
    }

    /// Returns the question that a policy answers for these frames, if they are IP packets.
    pub(crate) fn question(&self) -> Option<Question> {
        let way = if self.direction == direction(Way::In) { Way::In } else { Way::Out };
        let (peer, protocol, port) = (self.peer?, self.protocol?, self.port);
        Some(Question { way, peer, protocol, port, fragment: false, options: false })
    }
}

impl fmt::Display for Listed {
    /// Writes the frames and the reason, without numbers that change.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.question(), self.peer) {
            (Some(question), _) => write!(f, "{question}")?,
            (None, Some(peer)) => write!(f, "EtherType {:#06x} {peer}", self.ether_type)?,
            (None, None) => write!(f, "EtherType {:#06x}", self.ether_type)?,
        }
        if self.peer.is_none() || self.reason.contains("mac") {
            write!(f, " from {} to {}", self.source_mac, self.destination_mac)?;
        }
        write!(f, ": {}{}", if self.refused { "" } else { "would be refused, " }, self.reason)
    }
}

/// Returns the name of a way in status, metrics and lists.
pub(crate) fn direction(way: Way) -> &'static str {
    match way {
        Way::Out => "tx",
        Way::In => "rx",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns an entry for TCP to this host and port.
    pub(crate) fn entry(reason: &str, peer: &str, port: u16, frames: u64) -> Listed {
        Listed {
            direction: "tx".to_owned(),
            reason: reason.to_owned(),
            refused: true,
            protocol: Some(6),
            peer: peer.parse().ok(),
            port: Some(port),
            frames,
            first_ms: 1000,
            last_ms: 2000,
            ether_type: 0x0800,
            source_mac: "52:54:00:00:00:01".to_owned(),
            destination_mac: "52:54:00:00:00:02".to_owned(),
        }
    }

    #[test]
    fn an_entry_is_described() {
        let tcp = entry("not_allowed", "192.0.2.7", 443, 3);
        assert_eq!(tcp.to_string(), "tcp 192.0.2.7 443: not_allowed");
        let noted = Listed { refused: false, direction: "rx".to_owned(), ..tcp.clone() };
        assert_eq!(noted.to_string(), "from tcp 192.0.2.7 443: would be refused, not_allowed");
        let arp = Listed { protocol: None, ether_type: 0x0806, reason: "arp".to_owned(), ..tcp.clone() };
        assert_eq!(arp.to_string(), "EtherType 0x0806 192.0.2.7: arp");
        let other = Listed { peer: None, ether_type: 0x88cc, reason: "ethertype".to_owned(), ..tcp };
        let said = "EtherType 0x88cc from 52:54:00:00:00:01 to 52:54:00:00:00:02: ethertype";
        assert_eq!(other.to_string(), said);
    }
}
