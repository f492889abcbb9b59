//! Command line of `volt-netd policy`.

use std::path::PathBuf;

use clap::Subcommand;
use volt_filter::rules::Question;

/// What to do with a policy file.
#[derive(Debug, Subcommand)]
pub(crate) enum Request {
    /// Check a policy file, and print its settings, rules and likely mistakes; exits with status 1 if
    /// volt-netd cannot use it
    Check {
        /// Policy file, or - for standard input
        file: PathBuf,
    },
    /// Explain what a policy file says about a flow; exits with status 0 if the rules allow it, 1 if they
    /// refuse it or the file cannot be used
    #[command(after_help = "\
A question is [from] PROTOCOL ADDRESS [PORT] [fragment] [options]. With 'from', the host with this
address opens a flow to the guest. PROTOCOL is a name or a number. 'fragment' asks about fragments,
'options' about packets with IPv4 options or IPv6 extension headers.

Examples:
  volt-netd policy explain agent.toml 'tcp 192.0.2.7 443'
  volt-netd policy explain agent.toml 'icmp 2001:db8::7'
  volt-netd policy explain agent.toml 'from tcp 203.0.113.9 22'
  volt-netd policy explain agent.toml '47 192.0.2.7 fragment'")]
    Explain {
        /// Policy file, or - for standard input
        file: PathBuf,
        /// What to explain, for example 'tcp 192.0.2.7 443'
        question: Question,
    },
}
