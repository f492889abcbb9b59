//! `volt-netd ctl`: finds a daemon, sends it a request, and prints the answer.
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;
use volt_net::limiter::LimitsChange;
use volt_program::output;
use volt_program::watch::watch;

use crate::capture;
use crate::cli::{Ctl, StatusOptions, Which};
use crate::control::{self, ControlError, Request};
use crate::launch::AnyError;
use crate::runtime::Runtime;
use crate::status::Status;

mod find;
mod policy;
mod table;

/// How long `--watch` and `--follow` wait for a daemon that does not answer: longer than a restart of its
/// unit takes.
const AWAY: Duration = Duration::from_secs(5);

/// Sends a request to the chosen daemon, and prints the answer.
pub(crate) fn run(which: &Which, request: &Ctl) -> Result<ExitCode, AnyError> {
    let path = match &which.control {
        Some(path) => path.clone(),
        None => find::socket(&Runtime::of_this_process(), which.interface.as_deref())?,
    };
    match *request {
        Ctl::Status(options) => status(&path, options)?,
        Ctl::Metrics => print(&control::ctl(&path, &Request::Metrics)?)?,
        Ctl::Policy { ref command } => return policy::run(&path, command),
        Ctl::Capture(ref options) => return Ok(capture::run(&path, options)?),
        Ctl::Limits { rx_rate, tx_rate } => {
            let change = Request::Limits(LimitsChange { rx: rx_rate, tx: tx_rate });
            print(&control::ctl(&path, &change)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status(path: &Path, options: StatusOptions) -> Result<(), AnyError> {
    match options {
        StatusOptions { json: true, .. } => {
            print(&control::ctl(path, &Request::Status)?)?;
        }
        StatusOptions { watch: None, .. } => output::print(&table::whole(&ask(path)?).trim_end())?,
        StatusOptions { watch: Some(interval), .. } => {
            watch(interval, AWAY, || ask(path), table::moving)?;
        }
    }
    Ok(())
}

/// Prints an answer: a string as it is, anything else as JSON.
fn print(answer: &Value) -> io::Result<()> {
    match answer {
        Value::String(text) => output::print(&text.trim_end()),
        answer => output::print(&format_args!("{answer:#}")),
    }
}

/// Returns the status of the daemon with control socket `path`.
fn ask(path: &Path) -> Result<Status, ControlError> {
    let answer = control::ctl(path, &Request::Status)?;
    serde_json::from_value(answer).map_err(|_| ControlError::Answer)
}
