//! The options of the guest's filter, and of `volt-netd ctl policy`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{Args, Subcommand};
use thiserror::Error;
use volt_filter::rules::Question;
use volt_filter::rules::prefix::{Prefix, PrefixError};
use volt_filter::setup::{ADDRESSES, FLOWS_RANGE, Learn};
use volt_net::filter::is_host;

/// What to add for a guest whose addresses are not known.
pub(crate) const ADDRESSES_UNKNOWN: &str =
    "the guest's addresses are not known: add --guest-ip ADDRESS or --guard=learn,dhcp=ADDRESS";

/// The guest that a command line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Guest {
    /// Another daemon serves it and knows its addresses.
    Served,
    /// Its MAC address is known.
    Known,
    /// Its MAC address is not known.
    Unknown,
}

/// Options of the filter.
#[derive(Clone, Debug, Args)]
pub(crate) struct FilterOptions {
    /// Refuse frames with which the guest pretends to be another host; with learn, take its addresses from
    /// the answers of a DHCP server, and from IPv6 prefixes in which it may configure its own
    #[arg(
        long,
        value_name = "learn[,dhcp=ADDRESS][,prefix=PREFIX...]",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    pub(crate) guard: Option<Guard>,

    /// IP addresses of the guest, for --guard and --policy; at most 8
    #[arg(long, value_name = "ADDRESS[,ADDRESS...]", value_delimiter = ',', value_parser = guest_address)]
    pub(crate) guest_ip: Vec<IpAddr>,

    /// Refuse all that this file's rules do not allow; includes --guard
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,

    /// Flows that --guard or --policy remember [default: 16384]
    #[arg(long, value_name = "N", value_parser = flows)]
    pub(crate) flows: Option<u32>,
}

impl FilterOptions {
    /// Whether a filter is wanted.
    pub(crate) fn is_given(&self) -> bool {
        self.guard.is_some() || self.policy.is_some()
    }

    /// Returns how addresses are learnt, if they are.
    pub(crate) fn learn(&self) -> Option<&Learn> {
        self.guard.as_ref()?.learn.as_ref()
    }

    /// Checks the conditions that clap cannot check: each line of a file with options is parsed alone.
    pub(crate) fn check(&self, guest: Guest) -> Result<(), (ErrorKind, String)> {
        let missing = |text: &str| Err((ErrorKind::MissingRequiredArgument, text.to_owned()));
        let given = self.guest_ip.len();
        if given > ADDRESSES {
            let text = format!("{given} addresses in --guest-ip: a guest has at most {ADDRESSES}");
            return Err((ErrorKind::TooManyValues, text));
        }
        if !self.is_given() {
            let useless = [("--guest-ip", given > 0), ("--flows", self.flows.is_some())];
            return match useless.into_iter().find(|(_, given)| *given) {
                Some((name, _)) => missing(&format!("{name} needs a filter: add --guard or --policy FILE")),
                None => Ok(()),
            };
        }
        match guest {
            Guest::Unknown => missing(
                "the guest's MAC address is not known: a front-end like QEMU does not tell it, but --guard \
                 and --policy need it: add --mac",
            ),
            Guest::Known if given == 0 && self.learn().is_none() => missing(ADDRESSES_UNKNOWN),
            Guest::Known | Guest::Served => Ok(()),
        }
    }
}

/// The value of `--guard`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Guard {
    pub(crate) learn: Option<Learn>,
}

/// Why a text is not a value of `--guard`.
#[derive(Debug, Error)]
pub(crate) enum GuardError {
    #[error("'{0}' is not learn, dhcp=ADDRESS or prefix=PREFIX")]
    Word(String),
    #[error("without learn, as in learn,dhcp=192.0.2.1")]
    NotLearn,
    #[error("learn needs dhcp=ADDRESS, prefix=PREFIX or both")]
    Source,
    #[error("dhcp={0}: give the IPv4 address of one server")]
    Dhcp(String),
    #[error("prefix={0}: guests configure addresses by themselves in IPv6 prefixes only")]
    Family(Prefix),
    #[error(transparent)]
    Prefix(#[from] PrefixError),
}

impl FromStr for Guard {
    type Err = GuardError;

    fn from_str(text: &str) -> Result<Guard, GuardError> {
        if text.is_empty() {
            return Ok(Guard { learn: None });
        }
        let mut words = text.split(',');
        if words.next() != Some("learn") {
            return Err(GuardError::NotLearn);
        }
        let mut learn = Learn { dhcp: None, prefixes: Vec::new() };
        for word in words {
            match word.split_once('=') {
                Some(("dhcp", server)) => {
                    let address =
                        server.parse::<Ipv4Addr>().ok().filter(|address| is_host((*address).into()));
                    let wrong = || GuardError::Dhcp(server.to_owned());
                    if learn.dhcp.replace(address.ok_or_else(wrong)?).is_some() {
                        return Err(wrong());
                    }
                }
                Some(("prefix", prefix)) => match prefix.parse::<Prefix>()? {
                    prefix if prefix.address().is_ipv4() => return Err(GuardError::Family(prefix)),
                    prefix => learn.prefixes.push(prefix),
                },
                _ => return Err(GuardError::Word(word.to_owned())),
            }
        }
        if learn.dhcp.is_none() && learn.prefixes.is_empty() {
            return Err(GuardError::Source);
        }
        Ok(Guard { learn: Some(learn) })
    }
}

/// What to do with the policy of a running daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Replace the policy at once; flows that it does not allow end
    Set {
        /// Policy file, or - for standard input
        file: PathBuf,
    },
    /// Print the policy in force
    Show,
    /// Explain what the policy in force says about a flow; exits with status 0 if its rules allow it, 1 if
    /// they refuse it
    Test {
        /// What to explain, for example 'tcp 192.0.2.7 443': see 'volt-netd policy explain --help'
        question: Question,
    },
    /// Print the frames that were refused lately, those that are alike in one line
    Log(LogOptions),
    /// Print rules that would allow what was refused for lack of a rule, the most frequent first
    Suggest,
}

/// Options of `ctl policy log`.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LogOptions {
    /// Go on with what is refused from now on, until interrupted
    #[arg(long)]
    pub(crate) follow: bool,

    /// Print a JSON object a line
    #[arg(long)]
    pub(crate) json: bool,
}

fn guest_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr =
        text.parse().map_err(|_| "an address like 192.0.2.10 or 2001:db8::10".to_owned())?;
    match is_host(address) {
        true => Ok(address),
        false => {
            Err("the address of a host, not a multicast, broadcast, loopback or unspecified one".to_owned())
        }
    }
}

fn flows(text: &str) -> Result<u32, String> {
    let flows = text.parse().ok().filter(|flows| FLOWS_RANGE.contains(flows));
    flows.ok_or_else(|| format!("a number from {} to {}", FLOWS_RANGE.start(), FLOWS_RANGE.end()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        filter: FilterOptions,
    }

    fn parse(args: &[&str]) -> Result<FilterOptions, clap::Error> {
        Line::try_parse_from([&["volt-netd"], args].concat()).map(|line| line.filter)
    }

    #[test]
    fn values_are_checked() {
        let options =
            parse(&["--guard", "--guest-ip", "192.0.2.1,2001:db8::1", "--guest-ip=192.0.2.2"]).unwrap();
        assert_eq!((options.guest_ip.len(), options.learn()), (3, None));
        let options =
            parse(&["--guard=learn,dhcp=192.0.2.1,prefix=2001:db8::/64,prefix=2001:db8:1::/64"]).unwrap();
        let learn = options.learn().unwrap();
        assert_eq!((learn.dhcp, learn.prefixes.len()), (Some(Ipv4Addr::new(192, 0, 2, 1)), 2));
        for wrong in [
            &["--guard=dhcp=192.0.2.1"][..],
            &["--guard=learn"],
            &["--guard=learn,dhcp=192.0.2.0/24"],
            &["--guard=learn,dhcp=0.0.0.0"],
            &["--guard=learn,dhcp=192.0.2.1,dhcp=192.0.2.2"],
            &["--guard=learn,prefix=192.0.2.0/24"],
            &["--guard=learn,prefix=2001:db8::1/64"],
            &["--guard=learn,slaac"],
            &["--guest-ip", "224.0.0.1"],
            &["--guest-ip", "::"],
            &["--guest-ip", "192.0.2.0/24"],
            &["--flows", "63"],
            &["--flows", "1048577"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        use Guest::{Known, Served, Unknown};
        let nine = (1..=9).map(|host| format!("192.0.2.{host}")).collect::<Vec<_>>().join(",");
        for (args, guest, missing) in [
            (&["--guard", "--guest-ip", "192.0.2.1"][..], Unknown, "add --mac"),
            (&["--policy", "p"], Known, "add --guest-ip ADDRESS or --guard=learn,dhcp=ADDRESS"),
            (&["--guard"], Known, "add --guest-ip ADDRESS or --guard=learn,dhcp=ADDRESS"),
            (&["--guest-ip", "192.0.2.1"], Known, "--guest-ip needs a filter: add --guard or --policy FILE"),
            (&["--flows", "64"], Served, "--flows needs a filter"),
            (&["--guard", "--guest-ip", &nine], Served, "at most 8"),
            (&["--guard", "--guest-ip=192.0.2.1"], Known, ""),
            (&["--policy", "p", "--guard=learn,dhcp=192.0.2.1"], Known, ""),
            (&["--policy", "p"], Served, ""),
            (&[], Unknown, ""),
        ] {
            match parse(args).unwrap().check(guest) {
                Ok(()) => assert!(missing.is_empty(), "{args:?}"),
                Err((_, text)) => assert!(!missing.is_empty() && text.contains(missing), "{args:?}: {text}"),
            }
        }
    }
}
