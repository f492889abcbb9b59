//! Questions as texts, such as `tcp 192.0.2.7 443`: for commands.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

use super::Question;
use super::protocol::{self, Protocol, ProtocolError, TCP, UDP};
use crate::Way;

const FORM: &str = "write it like 'tcp 192.0.2.7 443', 'icmp 192.0.2.7' or 'from tcp 203.0.113.9 22'";

/// Why a text is not a question.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum QuestionError {
    /// Words are missing.
    #[error("the question is not complete: {FORM}")]
    Incomplete,
    /// No such protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// `any`.
    #[error(
        "a question is about one protocol: write tcp, udp, icmp, another name or a number instead of 'any'"
    )]
    AnyProtocol,
    /// Not an address.
    #[error("'{0}' is not an IP address")]
    Address(String),
    /// Not a port.
    #[error("'{0}' is not a port from 0 to 65535")]
    Port(String),
    /// TCP or UDP without a port.
    #[error("the port is missing: add it after the address, or the word 'fragment'")]
    NoPort,
    /// A port where there is none.
    #[error("'{0}' is too much: only tcp and udp have ports, and fragments have none")]
    PortOfNone(String),
    /// An unknown word.
    #[error("'{0}' is not understood: {FORM}, then 'fragment' or 'options' if it is one or has some")]
    Word(String),
}

impl FromStr for Question {
    type Err = QuestionError;

    /// Reads `[from|to] PROTOCOL ADDRESS [PORT] [fragment] [options]`. The port is that of the end that the
    /// flow is opened to.
    fn from_str(text: &str) -> Result<Question, QuestionError> {
        let mut words = text.split_whitespace().peekable();
        let way = match words.next_if(|word| matches!(*word, "from" | "to")) {
            Some("from") => Way::In,
            _ => Way::Out,
        };
        let protocol = Protocol::from_text(words.next().ok_or(QuestionError::Incomplete)?)?;
        let peer = words.next().ok_or(QuestionError::Incomplete)?;
        let peer: IpAddr = peer.parse().map_err(|_| QuestionError::Address(peer.to_owned()))?;
        let protocol = match protocol {
            Protocol::Any => return Err(QuestionError::AnyProtocol),
            Protocol::Icmp => protocol::icmp_of(peer),
            Protocol::Number(number) => number,
        };
        let mut question = Question { way, peer, protocol, port: None, fragment: false, options: false };
        let port = words.next_if(|word| word.starts_with(|first: char| first.is_ascii_digit()));
        for word in words {
            match word {
                "fragment" => question.fragment = true,
                "options" => question.options = true,
                _ => return Err(QuestionError::Word(word.to_owned())),
            }
        }
        let has_port = matches!(protocol, TCP | UDP) && !question.fragment;
        question.port = match port {
            None if has_port => return Err(QuestionError::NoPort),
            Some(port) if !has_port => return Err(QuestionError::PortOfNone(port.to_owned())),
            Some(port) => Some(port.parse().map_err(|_| QuestionError::Port(port.to_owned()))?),
            None => None,
        };
        Ok(question)
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let icmp = protocol::icmp_of(self.peer);
        let protocol = if self.protocol == icmp { Protocol::Icmp } else { Protocol::Number(self.protocol) };
        let way = if self.way == Way::In { "from " } else { "" };
        write!(f, "{way}{protocol} {}", self.peer)?;
        self.port.iter().try_for_each(|port| write!(f, " {port}"))?;
        f.write_str(if self.fragment { " fragment" } else { "" })?;
        f.write_str(if self.options { " options" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_and_written() {
        for (text, again) in [
            ("tcp 192.0.2.7 443", "tcp 192.0.2.7 443"),
            ("  to  udp 2001:DB8::7 53 ", "udp 2001:db8::7 53"),
            ("from tcp 203.0.113.9 22", "from tcp 203.0.113.9 22"),
            ("58 2001:db8::7", "icmp 2001:db8::7"),
            ("icmpv6 192.0.2.7", "icmpv6 192.0.2.7"),
            ("6 192.0.2.7 fragment options", "tcp 192.0.2.7 fragment options"),
            ("253 192.0.2.7 options", "253 192.0.2.7 options"),
        ] {
            let question: Question = text.parse().unwrap();
            assert_eq!(question.to_string(), again);
            assert_eq!(again.parse(), Ok(question));
        }
    }

    #[test]
    fn wrong_questions_are_errors() {
        for (text, why) in [
            ("", "not complete"),
            ("from tcp", "not complete"),
            ("http 192.0.2.7 80", "'http' is not a protocol"),
            ("any 192.0.2.7", "one protocol"),
            ("tcp 192.0.2.0/24 80", "'192.0.2.0/24' is not an IP address"),
            ("tcp 192.0.2.7 65536", "'65536' is not a port"),
            ("tcp 192.0.2.7", "the port is missing"),
            ("tcp 192.0.2.7 80 fragment", "'80' is too much"),
            ("icmp 192.0.2.7 80", "'80' is too much"),
            ("tcp 192.0.2.7 https", "'https' is not understood"),
            ("tcp 192.0.2.7 80 81", "'81' is not understood"),
        ] {
            let error = text.parse::<Question>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
