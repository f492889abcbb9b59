//! Checks of the host: `volt-netd check`, `volt-vmm check`.

use std::fmt;

use log::{info, warn};
use serde_json::{Value, json};
use volt_net::port::host::{self, Interface};
use volt_sandbox::enter::Landlock;
use volt_sandbox::host::{has_seccomp, landlock_version};
use volt_virtio::error_chain;
use volt_virtio::features::{Class, Features};

/// The first version of Landlock's interface with everything that the sandbox uses.
const WHOLE_LANDLOCK: u32 = 6;

/// Whether the host provides something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// All of it.
    Yes,
    /// Part of it, or unknown: the program runs with restrictions.
    Partly,
    /// Nothing: the program does not run.
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

/// The result of one check.
#[derive(Debug)]
pub struct Finding {
    what: String,
    given: Given,
    says: String,
}

/// The results of all checks.
#[derive(Debug, Default)]
pub struct Findings(Vec<Finding>);

impl Findings {
    /// Adds a finding: its subject `what`, and an explanation.
    pub fn note(&mut self, what: &str, given: Given, says: impl fmt::Display) {
        self.0.push(Finding { what: what.to_owned(), given, says: says.to_string() });
    }

    /// Checks the kernel's support for sandboxes.
    pub fn note_sandbox(&mut self) {
        match has_seccomp() {
            true => self.note("seccomp", Given::Yes, "each thread has a list of system calls"),
            false => self.note("seccomp", Given::No, "not in this kernel: only --sandbox=off works"),
        }
        let (given, says) = match landlock_version() {
            None => {
                let says = "missing or disabled: seccomp alone protects files and sockets";
                (Given::Partly, says.to_owned())
            }
            Some(version) if version < WHOLE_LANDLOCK => {
                let says = format!(
                    "version {version}: seccomp alone protects abstract sockets and signals{}",
                    if version < 4 { " and TCP ports" } else { "" }
                );
                (Given::Partly, says)
            }
            Some(version) => (Given::Yes, format!("version {version}")),
        };
        self.note("Landlock", given, says);
    }

    /// Checks the TAP driver, and interface `name`. Afterwards this process is in another network namespace.
    pub fn note_tap(&mut self, name: Option<&str>) {
        if let Err(error) = host::driver() {
            let says = format!("{}: interfaces cannot be opened by name", error_chain(&error));
            let given = if name.is_some() { Given::No } else { Given::Partly };
            return self.note("TAP driver", given, says);
        }
        self.note("TAP driver", Given::Yes, "can be opened");
        match host::may_create() {
            true => self.note("CAP_NET_ADMIN", Given::Yes, "interfaces can be created and set up"),
            false => self.note(
                "CAP_NET_ADMIN",
                Given::Partly,
                "missing: create interfaces with 'ip tuntap add dev NAME mode tap user USER'; volt cannot \
                 create one, set its MTU, or recreate it after it was deleted",
            ),
        }
        if let Some(name) = name {
            match host::interface(name) {
                Ok(Interface::Several) => {
                    self.note(name, Given::Yes, "usable, with any number of queues");
                }
                Ok(Interface::One) => self.note(name, Given::Yes, "usable, with one queue pair"),
                Ok(Interface::Elsewhere) => {
                    let says = "exists, but its owner is unknown: /sys belongs to another network namespace";
                    self.note(name, Given::Partly, says);
                }
                Err(error) => self.note(name, Given::No, error_chain(&error)),
            }
        }
        match host::features() {
            Ok(more) if more.is_empty() => self.note(
                "offloads",
                Given::Partly,
                "checksums and TCP segmentation; UDP segmentation needs Linux 6.2 or later",
            ),
            Ok(more) => self.note("offloads", Given::Yes, offloads(more)),
            Err(error) => {
                self.note("offloads", Given::Partly, format_args!("unknown: {}", error_chain(&error)));
            }
        }
    }

    /// Returns whether the program runs on this host.
    pub fn suffice(&self) -> bool {
        self.0.iter().all(|finding| finding.given != Given::No)
    }

    /// Returns the findings as JSON: a list of objects with `what`, `given` ("yes", "partly", "no") and
    /// `says`.
    pub fn json(&self) -> Value {
        let object = |Finding { what, given, says }: &Finding| {
            let given = given.word();
            json!({ "what": what, "given": given, "says": says })
        };
        self.0.iter().map(object).collect()
    }
}

/// Logs what this kernel's Landlock lacks, if anything.
pub fn log_landlock(landlock: Landlock) {
    match landlock {
        Landlock::Whole => {}
        Landlock::Partly => {
            info!(
                event = "landlock_partial";
                "this kernel's Landlock is an older version: only the system call filters protect the rest"
            );
        }
        Landlock::Missing => warn!(
            event = "landlock_missing";
            "this kernel has no Landlock: only the system call filters confine the process"
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
