//! What this host gives a program, and what is lost where it does not: `volt-netd check`, `volt-vmm check`.

use std::fmt;

use log::{info, warn};
use serde_json::{Value, json};
use volt_net::port::host::{self, Interface};
use volt_sandbox::enter::Landlock;
use volt_sandbox::host::{has_seccomp, landlock_version};
use volt_virtio::error_chain;
use volt_virtio::features::{Class, Features};

/// The version of Landlock's interface from which on it has all that is asked of it.
const WHOLE_LANDLOCK: u32 = 6;

/// How much of something there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// All.
    Yes,
    /// Not all: something is lost, or cannot be known.
    Partly,
    /// Nothing, without which the program does not run.
    No,
}

impl Given {
    fn word(self) -> &'static str {
        match self {
            Given::Yes => "yes",
            Given::Partly => "partly",
            Given::No => "no",
        }
    }
}

/// One thing that a host gives or does not.
#[derive(Debug)]
pub struct Finding {
    what: String,
    given: Given,
    says: String,
}

/// All that was found.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Notes a finding: `what` it is about, and what that means.
    pub fn note(&mut self, what: &str, given: Given, says: impl fmt::Display) {
        self.0.push(Finding { what: what.to_owned(), given, says: says.to_string() });
    }

    /// Notes what sandboxes are made of.
    pub fn note_sandbox(&mut self) {
        match has_seccomp() {
            true => self.note("seccomp", Given::Yes, "each thread has a list of system calls"),
            false => self.note("seccomp", Given::No, "this kernel has none: only --sandbox=off serves"),
        }
        let (given, says) = match landlock_version() {
            None => {
                let says = "not there, or switched off: files and sockets are out of reach by seccomp alone";
                (Given::Partly, says.to_owned())
            }
            Some(version) if version < WHOLE_LANDLOCK => {
                let says = format!(
                    "version {version}: abstract sockets and signals{} are out of reach by seccomp alone",
                    if version < 4 { " and TCP ports" } else { "" }
                );
                (Given::Partly, says)
            }
            Some(version) => (Given::Yes, format!("version {version}")),
        };
        self.note("Landlock", given, says);
    }

    /// Notes what is asked of the TAP driver, and of interface `name`. This process is in another network
    /// namespace then.
    pub fn note_tap(&mut self, name: Option<&str>) {
        if let Err(error) = host::driver() {
            let says = format!("{}: no interface can be opened by name", error_chain(&error));
            let given = if name.is_some() { Given::No } else { Given::Partly };
            return self.note("TAP driver", given, says);
        }
        self.note("TAP driver", Given::Yes, "may be opened");
        match host::may_create() {
            true => self.note("CAP_NET_ADMIN", Given::Yes, "interfaces can be created and set up"),
            false => self.note(
                "CAP_NET_ADMIN",
                Given::Partly,
                "missing: an interface must be there, as by 'ip tuntap add dev NAME mode tap user USER'; \
                 none is created, given an MTU, or made again when it was deleted",
            ),
        }
        if let Some(name) = name {
            match host::interface(name) {
                Ok(Interface::Several) => {
                    self.note(name, Given::Yes, "may be used, with any number of queues");
                }
                Ok(Interface::One) => self.note(name, Given::Yes, "may be used, with one queue pair"),
                Ok(Interface::Elsewhere) => {
                    let says = "is there, but /sys is another network namespace's: whose it is is not known";
                    self.note(name, Given::Partly, says);
                }
                Err(error) => self.note(name, Given::No, error_chain(&error)),
            }
        }
        match host::features() {
            Ok(more) if more.is_empty() => self.note(
                "offloads",
                Given::Partly,
                "checksums and TCP segmentation; no UDP segmentation, which Linux has from 6.2 on",
            ),
            Ok(more) => self.note("offloads", Given::Yes, offloads(more)),
            Err(error) => {
                self.note("offloads", Given::Partly, format_args!("not known: {}", error_chain(&error)));
            }
        }
    }

    /// Whether the program runs here.
    pub fn suffice(&self) -> bool {
        self.0.iter().all(|finding| finding.given != Given::No)
    }

    /// The same as JSON: a list of objects with `what`, `given` ("yes", "partly", "no") and `says`.
    pub fn json(&self) -> Value {
        let object = |Finding { what, given, says }: &Finding| {
            let given = given.word();
            json!({ "what": what, "given": given, "says": says })
        };
        self.0.iter().map(object).collect()
    }
}

/// Says in the log what this kernel's Landlock lacks, if anything.
pub fn log_landlock(landlock: Landlock) {
    match landlock {
        Landlock::Whole => {}
        Landlock::Partly => {
            info!(
                event = "landlock_partial";
                "this kernel's Landlock is an older one: system calls alone forbid the rest"
            );
        }
        Landlock::Missing => warn!(
            event = "landlock_missing";
            "this kernel is without Landlock: system calls alone are filtered"
        ),
    }
}

fn offloads(more: Features) -> String {
    format!("checksums, TCP segmentation, and {}", more.named(Class::Net))
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
        for (n, Finding { what, given, says }) in self.0.iter().enumerate() {
            let end = if n + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "{what:width$}  {:6}  {says}{end}", given.word())?;
        }
        Ok(())
    }
}
