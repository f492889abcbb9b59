//! AF_XDP on the command line: `--xdp`, `--xsk-fd`, and `volt-netd xdp-helper`, which opens an interface with
//! privileges and starts a program without them.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
};
use thiserror::Error;
use volt_net::port::xdp::{XdpError, XdpFds, open_fds};
use volt_program::accounts;

use crate::fds::{self, FdError};
use crate::xdp::options::{Helper, XdpArgError, XskFd};

pub(crate) mod options;

/// Why the descriptors of `--xsk-fd` cannot be taken.
#[derive(Debug, Error)]
pub(crate) enum TakeError {
    #[error(transparent)]
    Links(#[from] XdpArgError),
    #[error(transparent)]
    Descriptor(#[from] FdError),
}

/// Takes the descriptors of `--xsk-fd`. `None`: there are none.
pub(crate) fn take(numbers: &[XskFd]) -> Result<Option<XdpFds>, TakeError> {
    let Some(first) = numbers.first() else { return Ok(None) };
    if let Some(other) = numbers.iter().find(|other| other.link != first.link) {
        return Err(XdpArgError::Links(other.link, first.link).into());
    }
    let one = |number: RawFd| fds::take(&[number]).map(|mut fds| fds.remove(0));
    let link = one(first.link)?;
    let queues = numbers.iter().map(|numbers| Ok::<_, FdError>((one(numbers.socket)?, one(numbers.umem)?)));
    Ok(Some(XdpFds { queues: queues.collect::<Result<_, _>>()?, link }))
}

/// Why the program cannot be started.
#[derive(Debug, Error)]
pub(crate) enum HelperError {
    #[error("there is no user '{0}': create one, for example with 'useradd --system --no-create-home {0}'")]
    User(String),
    #[error("--user {0} requires root")]
    NotRoot(String),
    #[error("cannot start {0}")]
    Start(String, #[source] io::Error),
    #[error("the descriptors cannot be inherited")]
    Inherit(#[source] io::Error),
    #[error("the helper's own rights cannot be kept from the program")]
    Rights(#[source] io::Error),
    #[error(transparent)]
    Interface(#[from] XdpError),
}

/// Opens the interface, and becomes the program. Returns only with an error.
pub(crate) fn help(helper: &Helper) -> Result<Infallible, HelperError> {
    let [program, options @ ..] = &*helper.program else { unreachable!("clap requires it") };
    let mut command = Command::new(program);
    command.args(options);
    if let Some(name) = &helper.user {
        let user = accounts::user(name).ok_or_else(|| HelperError::User(name.clone()))?;
        if !rustix::process::geteuid().is_root() {
            return Err(HelperError::NotRoot(name.clone()));
        }
        command.uid(user.user).gid(user.group);
    }
    let fds = open_fds(&helper.interface.options(helper.queues))?;
    if helper.user.is_some() || !rustix::process::geteuid().is_root() {
        // What the program would inherit besides the descriptors.
        keep_no_rights().map_err(HelperError::Rights)?;
    }
    command.arg("--xsk-fd").arg(numbers(&fds).map_err(HelperError::Inherit)?);
    let error = command.exec();
    Err(HelperError::Start(program.display().to_string(), error))
}

/// Clears the sets of capabilities that survive the start of another program.
fn keep_no_rights() -> io::Result<()> {
    clear_ambient_capability_set()?;
    let sets = capabilities(None)?;
    Ok(set_capabilities(None, CapabilitySets { inheritable: CapabilitySet::empty(), ..sets })?)
}

/// Lets the next program inherit the descriptors, and returns the value of `--xsk-fd` for them.
fn numbers(fds: &XdpFds) -> io::Result<String> {
    let inherited = |fd: &OwnedFd| fcntl_setfd(fd.as_fd(), FdFlags::empty()).map(|()| fd.as_raw_fd());
    let link = inherited(&fds.link)?;
    let mut text = String::new();
    for (socket, umem) in &fds.queues {
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{}:{}:{link}", inherited(socket)?, inherited(umem)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_queues_have_one_link() {
        let differ = take(&["3:4:5".parse().unwrap(), "6:7:8".parse().unwrap()]).unwrap_err().to_string();
        assert_eq!(differ, "all queues have the same link: 8 differs from 5");
    }
}
