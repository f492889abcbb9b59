//! `volt-netd policy`: checks a policy file, and explains its decisions.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;

use thiserror::Error;
use volt_filter::rules::{MAX_TEXT, Policy, PolicyError, Question};
use volt_program::output;

use self::options::Request;

pub(crate) mod options;

/// The file name that means standard input.
const STDIN: &str = "-";

/// Why a command fails.
#[derive(Debug, Error)]
pub(crate) enum FileError {
    #[error("cannot read {0}")]
    Read(String, #[source] io::Error),
    #[error("{0}: line {1}: not UTF-8: save the file as UTF-8")]
    Encoding(String, usize),
    #[error("{0}: {1}")]
    Policy(String, PolicyError),
    #[error(transparent)]
    Output(#[from] io::Error),
}

/// Runs a command.
pub(crate) fn run(request: &Request) -> Result<ExitCode, FileError> {
    match request {
        Request::Check { file } => check(file),
        Request::Explain { file, question } => explain(file, question),
    }
}

fn check(file: &Path) -> Result<ExitCode, FileError> {
    let policy = read(file)?;
    output::print(&policy)?;
    for warning in policy.warnings() {
        output::print(&format_args!("warning: {warning}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn explain(file: &Path, question: &Question) -> Result<ExitCode, FileError> {
    let explanation = read(file)?.explain(question);
    output::print(&explanation)?;
    Ok(if explanation.answer.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads a policy file, but no more of it than a policy may have.
pub(crate) fn read(file: &Path) -> Result<Policy, FileError> {
    let is_stdin = file.as_os_str() == STDIN;
    let name = if is_stdin { "standard input".to_owned() } else { file.display().to_string() };
    let mut bytes = Vec::new();
    let limit = MAX_TEXT as u64 + 1;
    let done = match is_stdin {
        true => io::stdin().lock().take(limit).read_to_end(&mut bytes),
        false => File::open(file).and_then(|file| file.take(limit).read_to_end(&mut bytes)),
    };
    done.map_err(|error| FileError::Read(name.clone(), error))?;
    let text = match str::from_utf8(&bytes) {
        // The last character may be cut off.
        _ if bytes.len() > MAX_TEXT => return Err(FileError::Policy(name, PolicyError::Size)),
        Ok(text) => text,
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            return Err(FileError::Encoding(name, line));
        }
    };
    Policy::parse(text).map_err(|error| FileError::Policy(name, error))
}
