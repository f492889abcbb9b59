//! Finds a daemon without the path of its control socket.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use volt_program::unix::{ConnectError, connect_within};

use crate::control::{Reply, Request, ask};
use crate::runtime::Runtime;

/// Time for a daemon to name its interface. After that, the name of its socket counts.
const LIMIT: Duration = Duration::from_secs(1);

/// Why no daemon is found.
#[derive(Debug, Error)]
pub(crate) enum FindError {
    #[error(
        "found no daemon of this user: no *.ctl answers in {}{others}. Start one, as in \
         'volt-netd --tap tap0 --socket /run/volt/net0.sock', or give --control PATH for one elsewhere",
        Listed(.places)
    )]
    None { places: Vec<PathBuf>, others: Forbidden },
    #[error("no daemon of this user serves '{interface}'; running daemons:\n{found}")]
    NotThat { interface: String, found: Found },
    #[error("several daemons run: choose one with --interface NAME or --control PATH\n{0}")]
    Several(Found),
    #[error("several daemons serve an interface of that name: choose one with --control PATH\n{0}")]
    SameName(Found),
}

/// Sockets that this user may not use.
#[derive(Debug)]
pub(crate) struct Forbidden(Vec<PathBuf>);

/// Running daemons: interface and control socket.
#[derive(Debug)]
pub(crate) struct Found(Vec<(String, PathBuf)>);

struct Listed<'a>(&'a [PathBuf]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&all.join(", "))
    }
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " (of other users: {})", Listed(&self.0)) }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.0.iter().map(|(interface, _)| interface.len()).max().unwrap_or_default();
        for (at, (interface, path)) in self.0.iter().enumerate() {
            let end = if at + 1 < self.0.len() { "\n" } else { "" };
            write!(f, "  {interface:width$}  {}{end}", path.display())?;
        }
        Ok(())
    }
}

/// Returns the socket of this user's only daemon, or of the only one with this `interface`.
pub(crate) fn socket(runtime: &Runtime, interface: Option<&str>) -> Result<PathBuf, FindError> {
    let mut forbidden = Vec::new();
    let mut live = Vec::new();
    for path in runtime.sockets() {
        match connect_within(&path, LIMIT) {
            Ok(_) => live.push(path),
            Err(ConnectError::System(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                forbidden.push(path);
            }
            // Left by a daemon that died.
            Err(_) => {}
        }
    }
    match (&mut live[..], interface) {
        ([], _) => Err(FindError::None { places: runtime.places(), others: Forbidden(forbidden) }),
        ([only], None) => Ok(std::mem::take(only)),
        (_, interface) => choose(live.into_iter().map(|path| (served(&path), path)).collect(), interface),
    }
}

fn choose(found: Vec<(String, PathBuf)>, interface: Option<&str>) -> Result<PathBuf, FindError> {
    let Some(interface) = interface else { return Err(FindError::Several(Found(found))) };
    let (mut meant, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(name, _)| name == interface);
    match (meant.pop(), &meant[..]) {
        (Some((_, path)), []) => Ok(path),
        (Some(last), _) => Err(FindError::SameName(Found(meant.into_iter().chain([last]).collect()))),
        (None, _) => Err(FindError::NotThat { interface: interface.to_owned(), found: Found(others) }),
    }
}

/// Returns the interface of the daemon with control socket `path`, from its status or the socket's name.
fn served(path: &Path) -> String {
    let said = match ask(path, &Request::Status, LIMIT) {
        Ok((_, Reply::Status(status), _)) => status["interface"].as_str().map(str::to_owned),
        _ => None,
    };
    said.unwrap_or_else(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_is_chosen_by_its_interface() {
        let daemons = |names: &[&str]| -> Vec<(String, PathBuf)> {
            let daemon = |(at, name): (usize, &&str)| ((*name).to_owned(), format!("/run/{at}.ctl").into());
            names.iter().enumerate().map(daemon).collect()
        };
        let three = ["tap0", "tap1", "longer-name"];
        assert_eq!(choose(daemons(&three), Some("tap1")).unwrap(), Path::new("/run/1.ctl"));
        let text = |names: &[&str], interface| choose(daemons(names), interface).unwrap_err().to_string();
        assert_eq!(
            text(&three, None),
            "several daemons run: choose one with --interface NAME or --control PATH\n\
             \x20 tap0         /run/0.ctl\n  tap1         /run/1.ctl\n  longer-name  /run/2.ctl"
        );
        assert_eq!(
            text(&["tap0"], Some("tap9")),
            "no daemon of this user serves 'tap9'; running daemons:\n  tap0  /run/0.ctl"
        );
        assert_eq!(
            text(&["tap0", "tap0", "tap1"], Some("tap0")),
            "several daemons serve an interface of that name: choose one with --control PATH\n\
             \x20 tap0  /run/0.ctl\n  tap0  /run/1.ctl"
        );
    }
}
