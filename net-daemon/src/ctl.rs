//! `volt-netd ctl`: finds a daemon, asks it, and prints what it answers.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use serde_json::Value;
use volt_net::limiter::LimitsChange;
use volt_program::output;

use crate::capture;
use crate::cli::{Ctl, Which};
use crate::control::{self, Request};
use crate::launch::AnyError;
use crate::runtime::Runtime;

mod find;

/// Asks the daemon that is meant.
pub(crate) fn run(which: &Which, request: &Ctl) -> Result<ExitCode, AnyError> {
    let path = match &which.control {
        Some(path) => path.clone(),
        None => find::socket(&Runtime::of_this_process(), which.interface.as_deref())?,
    };
    let request = match *request {
        Ctl::Status => Request::Status,
        Ctl::Metrics => Request::Metrics,
        Ctl::Capture(ref options) => return Ok(capture::run(&path, options)?),
        Ctl::Limits { rx_rate, tx_rate } => Request::Limits(LimitsChange { rx: rx_rate, tx: tx_rate }),
    };
    match control::ctl(&path, &request)? {
        Value::String(text) => output::print(&text.trim_end())?,
        answer => output::print(&format_args!("{answer:#}"))?,
    }
    Ok(ExitCode::SUCCESS)
}
