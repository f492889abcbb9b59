//! Why a policy cannot be used.

use thiserror::Error;

/// Largest size of a policy file in bytes.
pub const MAX_TEXT: usize = 256 * 1024;
/// Most rules.
pub const MAX_RULES: usize = 1024;
/// Most prefixes of all rules together.
pub const MAX_PREFIXES: usize = 16_384;
/// Most prefixes on the link, and most gateways.
pub(super) const MAX_LINK: usize = 64;
/// Most neighbours.
pub(super) const MAX_NEIGHBOURS: usize = 1024;

/// Why a policy cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PolicyError {
    /// Too large a file.
    #[error("the policy has more than {MAX_TEXT} bytes: join addresses to prefixes")]
    Size,
    /// Not TOML, or wrong keys or values.
    #[error("line {line}: {what}")]
    Syntax {
        /// The line.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// Neither `to` nor `from`.
    #[error(
        "line {line}: the rule has neither 'to' nor 'from': add 'to' with the addresses that the guest opens \
         flows to, or 'from' with those that open flows to the guest"
    )]
    NoPeer {
        /// The line.
        line: usize,
    },
    /// Both `to` and `from`.
    #[error("line {line}: the rule has both 'to' and 'from': write a rule for each")]
    BothPeers {
        /// The line.
        line: usize,
    },
    /// An empty list.
    #[error("line {line}: the list '{key}' is empty: remove it, or the whole rule")]
    Empty {
        /// The line.
        line: usize,
        /// The key.
        key: &'static str,
    },
    /// Ports of a protocol without ports.
    #[error(
        "line {line}: 'ports' needs protocol = \"tcp\" or protocol = \"udp\", not \"{protocol}\": for both, \
         write a rule for each"
    )]
    Ports {
        /// The line.
        line: usize,
        /// The rule's protocol.
        protocol: String,
    },
    /// Ports and fragments.
    #[error(
        "line {line}: 'fragments' and 'ports' exclude each other, because a fragment has no port: allow \
         fragments in a rule without 'ports'"
    )]
    FragmentPorts {
        /// The line.
        line: usize,
    },
    /// `fragments` or `options` in a deny rule.
    #[error("line {line}: remove '{key}': a deny rule always covers fragments and options")]
    Deny {
        /// The line.
        line: usize,
        /// The key.
        key: &'static str,
    },
    /// Too many of something.
    #[error("the policy has {found} {what}, and may have {most}: join addresses to prefixes")]
    Many {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        most: usize,
    },
}
