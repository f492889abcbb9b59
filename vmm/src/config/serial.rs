//! The host's end of the guest's serial port: `--serial stdio|none|file=PATH`.

use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// The host's end of the guest's serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialConfig {
    /// This process's standard input and output.
    Stdio,
    /// No serial port.
    None,
    /// Output to a file, no input.
    File(PathBuf),
}

/// Why a value of `--serial` is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("'{0}' is not one of stdio, none and file=PATH")]
pub struct SerialError(String);

impl FromStr for SerialConfig {
    type Err = SerialError;

    fn from_str(text: &str) -> Result<SerialConfig, SerialError> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(SerialConfig::Stdio),
            ("none", _) => Ok(SerialConfig::None),
            (_, Some(path)) if !path.is_empty() => Ok(SerialConfig::File(path.into())),
            _ => Err(SerialError(text.to_owned())),
        }
    }
}
