//! `volt-netd ctl policy`: the policy of a running daemon, and the frames that it refuses.

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;
use volt_program::display::{clock, of};
use volt_program::output::{print, print_to_reader};

use super::AWAY;
use crate::control::{self, ControlError, PolicyRequest, Request};
use crate::filter::listed::Listed;
use crate::filter::options::{LogOptions, PolicyCommand};
use crate::launch::AnyError;
use crate::policy;

mod suggest;

/// Interval of queries for `--follow`.
const INTERVAL: Duration = Duration::from_millis(500);

/// Carries out a command with the daemon at this control socket.
pub(super) fn run(path: &Path, command: &PolicyCommand) -> Result<ExitCode, AnyError> {
    match command {
        PolicyCommand::Set { file } => {
            let text = policy::read(file)?.text().to_owned();
            super::print(&ask(path, PolicyRequest::Set(text))?)?;
        }
        PolicyCommand::Show => super::print(&ask(path, PolicyRequest::Show)?)?,
        PolicyCommand::Test { question } => {
            let answer = ask(path, PolicyRequest::Test(question.to_string()))?;
            print(&answer["explanation"].as_str().ok_or(ControlError::Answer)?.trim_end())?;
            return Ok(if answer["allowed"] == true { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        PolicyCommand::Log(options) => log(path, *options)?,
        PolicyCommand::Suggest => print(&suggest::rules(&entries(path)?).trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(path: &Path, request: PolicyRequest) -> Result<Value, ControlError> {
    control::ctl(path, &Request::Policy(request))
}

/// Returns the entries of the daemon's list.
fn entries(path: &Path) -> Result<Vec<Listed>, ControlError> {
    serde_json::from_value(ask(path, PolicyRequest::Log)?).map_err(|_| ControlError::Answer)
}

/// Prints the list, and what is new in it as long as the reader reads.
fn log(path: &Path, options: LogOptions) -> Result<(), AnyError> {
    let mut known = entries(path)?;
    if !show(&known, options)? || !options.follow {
        return Ok(());
    }
    let mut answered = Instant::now();
    loop {
        sleep(INTERVAL);
        match entries(path) {
            Ok(now) => {
                let is_new = |entry: &&Listed| !known.contains(entry);
                let new: Vec<_> = now.iter().filter(is_new).cloned().collect();
                (known, answered) = (now, Instant::now());
                if !show(&new, options)? {
                    return Ok(());
                }
            }
            // The next daemon begins a list of its own.
            Err(_) if answered.elapsed() < AWAY => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Prints entries, one a line. Returns whether the reader still reads.
fn show(entries: &[Listed], options: LogOptions) -> io::Result<bool> {
    for entry in entries {
        let line = match options.json {
            true => serde_json::to_string(entry)?,
            false => format!("{}  {entry}, {}", clock(entry.last_ms), of(entry.frames, "frame")),
        };
        if !print_to_reader(&line)? {
            return Ok(false);
        }
    }
    Ok(true)
}
