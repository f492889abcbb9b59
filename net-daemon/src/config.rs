//! The command line, and the file with further options (`--config`), which holds the options of one unit
//! beside those of all units.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::Parser;
use clap::error::ErrorKind;
use thiserror::Error;

use crate::cli::Cli;

/// Why the options cannot be read.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// clap prints its own message and sets the exit status.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    #[error("cannot read {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("{}, line {line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: String },
    #[error("the command line and {} do not fit together: {why}", path.display())]
    Together { path: PathBuf, why: String },
}

/// Reads the command line, whose first word is the program, and its `--config` file.
///
/// # Errors
///
/// A wrong option, with its file and line.
pub(crate) fn read(mut args: Vec<OsString>) -> Result<Cli, ConfigError> {
    let cli = Cli::try_parse_from(&args)?;
    let Some(path) = cli.config.clone() else { return Ok(cli) };
    let text = match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(cli),
        text => text.map_err(|error| ConfigError::Unreadable { path: path.clone(), error })?,
    };
    args.extend(options(&path, &text)?.into_iter().map(OsString::from));
    Cli::try_parse_from(&args).map_err(|error| ConfigError::Together { path, why: in_a_line(&error) })
}

/// Reads the options in a file's text, and checks each of them.
fn options(path: &Path, text: &str) -> Result<Vec<String>, ConfigError> {
    let mut options = Vec::new();
    for (line, text) in (1..).zip(text.lines().map(str::trim)) {
        if text.is_empty() || text.starts_with('#') {
            continue;
        }
        let option = match text.split_once('=') {
            Some((name, value)) => format!("--{}={}", name.trim_end(), value.trim_start()),
            None => format!("--{text}"),
        };
        let wrong = |why| Err(ConfigError::Line { path: path.to_owned(), line, why });
        match Cli::try_parse_from(["volt-netd", &option]) {
            Ok(Cli { config: Some(_), .. }) => return wrong("a file cannot include another".to_owned()),
            Ok(_) => options.push(option),
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                return wrong(format!("'{option}' works on the command line only"));
            }
            Err(error) => return wrong(in_a_line(&error)),
        }
    }
    Ok(options)
}

/// Returns clap's message in one line, without the usage.
fn in_a_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text.split("\n\nUsage:").next().and_then(|text| text.split("\n\nFor more").next());
    let lines = said.unwrap_or(&text).trim_start_matches("error: ").lines().map(str::trim);
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, args: &[&str]) -> Result<Cli, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let args = [&["volt-netd", "--config", file.path().to_str().unwrap()], args].concat();
        read(args.into_iter().map(OsString::from).collect())
    }

    #[test]
    fn a_file_has_an_option_in_each_line() {
        let text = "# two of everything\n\n queues=2\nrx-rate = 100Mbit+20kpps\n\tpersist\n";
        let cli = with(text, &["--tap", "tap0"]).unwrap();
        assert_eq!((cli.queues, cli.persist, cli.tap.as_deref()), (Some(2), true, Some("tap0")));
        assert!(cli.rx_rate.is_some() && cli.tx_rate.is_none());
        // Options that belong together stand in different lines.
        let text =
            "guard = learn,dhcp=192.0.2.1\nguest-ip=192.0.2.10,2001:db8::10\npolicy=/etc/p.toml\nflows=64\n";
        let filter = with(text, &["--tap", "tap0"]).unwrap().filter;
        assert!(filter.learn().is_some() && filter.guest_ip.len() == 2 && filter.flows == Some(64));
        let none = read(["volt-netd", "--config", "/nonexistent", "--tap", "a"].map(OsString::from).into());
        assert_eq!(none.unwrap().tap.as_deref(), Some("a"));
    }

    #[test]
    fn an_error_names_file_and_line() {
        for (text, at, why) in [
            ("queues=2\nquues=4\n", ", line 2: ", "unexpected argument '--quues' found; tip: a similar"),
            ("queues=0", ", line 1: ", "0 is not in 1..=127"),
            ("queues", ", line 1: ", "a value is required for '--queues <N>'"),
            ("mtu=1500 queues=2", ", line 1: ", "invalid value '1500 queues=2' for '--mtu <BYTES>'"),
            ("--queues=2", ", line 1: ", "unexpected argument '----queues' found"),
            ("\nhelp", ", line 2: ", "'--help' works on the command line only"),
            ("config=other", ", line 1: ", "a file cannot include another"),
            ("tap=tap1", " do not fit together: ", "'--tap <NAME>' cannot be used multiple times"),
        ] {
            let said = with(text, &["--tap", "tap0"]).unwrap_err().to_string();
            assert!(said.contains(at) && said.contains(why) && !said.contains('\n'), "{text}: {said}");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().as_os_str().to_owned();
        let said = read(vec!["volt-netd".into(), "--config".into(), path]).unwrap_err().to_string();
        let end = ": Is a directory (os error 21)";
        assert!(said.starts_with("cannot read ") && said.ends_with(end), "{said}");
        assert!(matches!(with("", &["--nonsense"]), Err(ConfigError::CommandLine(_))));
    }
}
