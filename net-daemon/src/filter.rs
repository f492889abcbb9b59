//! The filter of a daemon: from the command line, from a state, or from both.
//!
//! The policy file is read once, at the start, because a confined daemon cannot. Its text is part of the
//! state. So a worker that a supervisor restarts has the policy that was in force, perhaps one of `volt-netd
//! ctl policy set`. The command line's settings apply again when a daemon takes over, or when systemd
//! restarts its unit.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use thiserror::Error;
use volt_filter::rules::Mode;
use volt_filter::setup::{FLOWS, Learn, Setup};
use volt_net::config::Mac;
use volt_net::filter::{DeviceFilter, DeviceFilterError};

use crate::policy::{self, FileError};

pub(crate) mod listed;
pub(crate) mod options;

use options::{ADDRESSES_UNKNOWN, FilterOptions};

/// Why there is no filter.
#[derive(Debug, Error)]
pub(crate) enum FilterError {
    #[error("{ADDRESSES_UNKNOWN}")]
    Addresses,
    #[error(transparent)]
    Device(#[from] DeviceFilterError),
}

/// The filter that a command line asks for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    addresses: Vec<IpAddr>,
    learn: Option<Learn>,
    flows: Option<u32>,
    policy: Option<(PathBuf, String)>,
}

impl Wanted {
    /// Reads the options and their policy file. Returns `None` if no filter is wanted.
    pub(crate) fn read(options: &FilterOptions) -> Result<Option<Wanted>, FileError> {
        if !options.is_given() {
            return Ok(None);
        }
        let policy = options
            .policy
            .as_deref()
            .map(|path| policy::read(path).map(|policy| (path.to_owned(), policy.text().to_owned())));
        Ok(Some(Wanted {
            addresses: options.guest_ip.clone(),
            learn: options.learn().cloned(),
            flows: options.flows,
            policy: policy.transpose()?,
        }))
    }

    /// Returns the filter for the guest with this address. What this command line leaves open stays as in
    /// the filter `before`.
    pub(crate) fn filter(
        &self,
        mac: Mac,
        before: Option<&DeviceFilter>,
    ) -> Result<DeviceFilter, FilterError> {
        let old = before.map(|before| before.filter().setup());
        let (addresses, learn) = match old {
            Some(old) if self.addresses.is_empty() && self.learn.is_none() => (&old.addresses, &old.learn),
            _ => (&self.addresses, &self.learn),
        };
        if addresses.is_empty() && learn.is_none() {
            return Err(FilterError::Addresses);
        }
        let policy = self.policy.as_ref().map(|(_, text)| text);
        let setup = Setup {
            mac: mac.0,
            addresses: addresses.clone(),
            learn: learn.clone(),
            flows: self.flows.or(old.map(|old| old.flows)).unwrap_or(FLOWS),
            policy: policy.or(old.and_then(|old| old.policy.as_ref())).cloned(),
        };
        Ok(match before {
            Some(before) => before.with_setup(setup)?,
            None => DeviceFilter::new(setup)?,
        })
    }

    /// Describes the filter that it has made.
    pub(crate) fn describe(&self, filter: &DeviceFilter) -> String {
        describe(filter, self.policy.as_ref().map(|(path, _)| path.as_path()))
    }
}

/// Describes a filter in a few words: `guarded as MAC with ADDRESSES; policy FILE: enforce`.
pub(crate) fn describe(filter: &DeviceFilter, file: Option<&Path>) -> String {
    let setup = filter.filter().setup();
    let mut addresses: Vec<String> = setup.addresses.iter().map(IpAddr::to_string).collect();
    if let Some(learn) = &setup.learn {
        addresses.extend(learn.dhcp.map(|server| format!("those that DHCP server {server} gives it")));
        addresses.extend(learn.prefixes.iter().map(|prefix| format!("its own in {prefix}")));
    }
    let policy = match (filter.filter().policy(), file) {
        (None, _) => String::new(),
        (Some(policy), None) => format!("; policy: {}", mode(policy.mode())),
        (Some(policy), Some(file)) => format!("; policy {}: {}", file.display(), mode(policy.mode())),
    };
    format!("guarded as {} with {}{policy}", Mac(setup.mac), addresses.join(", "))
}

/// Returns the name of a policy's mode.
pub(crate) fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Enforce => "enforce",
        Mode::Log => "log",
    }
}
