//! A macvtap interface as a port: a network card of the host, shared with guests without a bridge.
//!
//! The interface must exist (`ip link add link eth0 name mv0 type macvtap mode bridge`). Its frames pass
//! through the character device `/dev/tapN`, where N is the interface's index. This file accepts the ioctls
//! of the TAP driver: header and offloads are set as for a TAP, and each open file is a queue. Unlike with a
//! TAP, the guest must use the interface's address, because the card passes on no other (except in mode
//! passthru).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;
use volt_virtio::features::Features;

use crate::config::Mac;
use crate::port::state::{MacvtapState, PortState, Reopening};
use crate::port::tap::{Tap, TapError, ioctl};
use crate::port::{Port, PortQueue, Reopener, link};
use crate::state::{Exporter, Importer, StateError};

/// The name of the driver of macvtap and macvlan interfaces.
const DRIVER: &str = "macvlan";

/// The reason why a macvtap interface cannot be used, with the remedy.
#[derive(Debug, Error)]
pub enum MacvtapError {
    /// The interface does not exist.
    #[error(
        "there is no interface {0}: create it with 'ip link add link eth0 name {0} type macvtap mode \
         bridge', with your network card for eth0"
    )]
    Missing(String),
    /// The name belongs to another kind of interface.
    #[error("{name} exists and is not a macvtap interface (its driver is '{driver}')")]
    NotMacvtap {
        /// The interface.
        name: String,
        /// Its driver.
        driver: String,
    },
    /// The device's file does not exist.
    #[error("{name} has no file {}: {hint}", .node.display())]
    NoNode {
        /// The interface.
        name: String,
        /// The file.
        node: PathBuf,
        /// How to create it.
        hint: String,
    },
    /// The file belongs to another user.
    #[error(
        "no permission to open {node}: give it to this user ('chown USER {node}'), or run as root",
        node = .0.display()
    )]
    Permission(PathBuf),
    /// All queues of the interface are in use.
    #[error("{} has no queue left: another process uses it", .0.display())]
    Busy(PathBuf),
    /// The file leads to an interface with the same index in another network namespace, or to an earlier one.
    #[error(
        "{} belongs to another interface than {name} of this network namespace (called {found}): remove it, \
         and create it again with the numbers of 'cat /sys/class/net/{name}/tap*/dev'",
        .node.display()
    )]
    OtherInterface {
        /// The interface.
        name: String,
        /// The file.
        node: PathBuf,
        /// The name of the other interface.
        found: String,
    },
    /// An error of an open queue.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The system refused something else.
    #[error("cannot open {}", .node.display())]
    Open {
        /// The file.
        node: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// An open macvtap interface.
#[derive(Debug)]
pub struct Macvtap {
    tap: Tap,
    mac: Option<Mac>,
    queues: usize,
}

impl Macvtap {
    /// Opens the interface `name` with `queues` queues, 1 to [`MAX_QUEUES`](crate::port::tap::MAX_QUEUES).
    ///
    /// # Errors
    ///
    /// See [`MacvtapError`].
    pub fn open(name: &str, queues: usize) -> Result<Macvtap, MacvtapError> {
        Macvtap::over(name, queues, opened(name, queues)?)
    }

    fn over(name: &str, queues: usize, files: Vec<File>) -> Result<Macvtap, MacvtapError> {
        let tap = Tap::over(name.to_owned(), files)?;
        Ok(Macvtap { mac: link::mac(tap.socket(), name).ok(), tap, queues })
    }

    /// Like [`Macvtap::open`], but `open` gets the queues from a process that may open them.
    ///
    /// # Errors
    ///
    /// See [`MacvtapError`].
    pub fn open_by(
        name: &str,
        queues: usize,
        open: impl FnOnce(&Reopening) -> io::Result<Vec<OwnedFd>>,
    ) -> Result<Macvtap, MacvtapError> {
        let opened = open(&Reopening::Macvtap { name: name.to_owned(), queues });
        let files = opened.map_err(TapError::Elsewhere)?.into_iter().map(File::from).collect();
        Macvtap::over(name, queues, files)
    }

    /// Opens the queues of an interface that was deleted.
    pub(super) fn open_again(name: &str, queues: usize) -> io::Result<Vec<OwnedFd>> {
        let files = opened(name, queues).map_err(io::Error::other)?;
        Ok(files.into_iter().map(OwnedFd::from).collect())
    }
}

impl Macvtap {
    pub(super) fn import(state: MacvtapState, from: &mut Importer) -> Result<Macvtap, StateError> {
        let MacvtapState { tap, mac, queues } = state;
        Ok(Macvtap { tap: Tap::import(tap, from)?, mac: mac.map(Mac), queues })
    }
}

/// Opens the queues of an interface.
fn opened(name: &str, queues: usize) -> Result<Vec<File>, MacvtapError> {
    let index = link::index(name).map_err(|_| MacvtapError::Missing(name.to_owned()))?;
    let driver = link::driver(name).unwrap_or_else(|_| "unknown".to_owned());
    if driver != DRIVER {
        return Err(MacvtapError::NotMacvtap { name: name.to_owned(), driver });
    }
    let node = PathBuf::from(format!("/dev/tap{index}"));
    (0..queues).map(|_| open_queue(name, &node)).collect()
}

fn open_queue(name: &str, node: &Path) -> Result<File, MacvtapError> {
    let own = || node.to_owned();
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => {
            MacvtapError::NoNode { name: name.to_owned(), node: own(), hint: hint(name, node) }
        }
        Some(libc::EACCES | libc::EPERM) => MacvtapError::Permission(own()),
        Some(libc::EBUSY | libc::E2BIG) => MacvtapError::Busy(own()),
        _ => MacvtapError::Open { node: own(), source },
    };
    let file = File::options().read(true).write(true).open(node).map_err(failed)?;
    ioctl::set_interface(&file, "", true).map_err(failed)?;
    let found = ioctl::name(&file).map_err(failed)?;
    // An interface of another namespace may have the same name, but not the same address.
    let address = link::mac(&file, name).map_err(failed)?;
    let meant = link::socket().and_then(|socket| link::mac(&socket, name)).map_err(failed)?;
    if found != name || address != meant {
        return Err(MacvtapError::OtherInterface { name: name.to_owned(), node: own(), found });
    }
    Ok(file)
}

/// Returns how to create the file. Its numbers are in sysfs, if that shows this network namespace.
fn hint(name: &str, node: &Path) -> String {
    let file = node.file_name().unwrap_or_default().to_string_lossy();
    let numbers = std::fs::read_to_string(format!("/sys/class/net/{name}/{file}/dev"));
    match numbers.ok().as_deref().and_then(|numbers| numbers.trim().split_once(':')) {
        Some((major, minor)) => format!(
            "udev is missing or not done yet; create it with 'mknod {} c {major} {minor}'",
            node.display()
        ),
        None => format!(
            "if this is a macvtap interface (and not macvlan), create it with 'mknod {} c MAJOR MINOR', with \
             the numbers from /sys/class/net/{name}/{file}/dev",
            node.display()
        ),
    }
}

impl Port for Macvtap {
    fn name(&self) -> &str {
        self.tap.name()
    }

    fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.tap.queue(pair)
    }

    fn extra_features(&self) -> Features {
        self.tap.extra_features()
    }

    fn mtu(&self) -> Option<u16> {
        link::mtu(self.tap.socket(), self.name()).ok().and_then(|mtu| u16::try_from(mtu).ok())
    }

    fn is_up(&self) -> Option<bool> {
        link::is_up(self.tap.socket(), self.name())
    }

    fn mac(&self) -> Option<Mac> {
        self.mac
    }

    fn set_offloads(&mut self, acked: Features) -> io::Result<()> {
        self.tap.set_offloads(acked)
    }

    fn attach(&mut self, active: &[bool]) -> io::Result<()> {
        self.tap.attach(active)
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.adopt(Macvtap::open_again(self.name(), self.queues)?)
    }

    fn reopening(&self) -> Reopener<'_> {
        Reopener::Process(Reopening::Macvtap { name: self.name().to_owned(), queues: self.queues }, None)
    }

    fn adopt(&mut self, queues: Vec<OwnedFd>) -> io::Result<()> {
        self.tap.adopt(queues)?;
        self.mac = link::mac(self.tap.socket(), self.name()).ok();
        Ok(())
    }

    fn own(&mut self) {
        self.tap.own();
    }

    fn export<'a>(&'a self, out: &mut Exporter<'a>) -> Option<PortState> {
        let (mac, queues) = (self.mac.map(|mac| mac.0), self.queues);
        Some(PortState::Macvtap(MacvtapState { tap: self.tap.state(out), mac, queues }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_or_of_another_kind_is_named() {
        assert!(matches!(Macvtap::open("nosuch0", 1), Err(MacvtapError::Missing(_))));
        let error = Macvtap::open("lo", 1).unwrap_err();
        assert!(matches!(&error, MacvtapError::NotMacvtap { name, .. } if name == "lo"), "{error}");
    }

    #[test]
    fn a_missing_node_comes_with_how_to_make_it() {
        let error = open_queue("mv0", Path::new("/dev/tap-none")).unwrap_err();
        assert!(error.to_string().contains("mknod /dev/tap-none c MAJOR MINOR"), "{error}");
    }
}
