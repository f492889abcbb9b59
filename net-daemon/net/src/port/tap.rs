//! A TAP interface as a port: opened by name, or passed as descriptors.
//!
//! For an existing interface, only properties of the open file are set: header size, offloads, attached
//! queues. Its addresses, MTU, link state and MAC address belong to its administrator.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::warn;
use thiserror::Error;
use volt_virtio::features::Features;

use crate::port::queue::FdQueue;
pub use crate::port::state::TapOptions;
use crate::port::state::{PortState, Reopening, TapState};
use crate::port::{HEADER_LEN, Port, PortQueue, Reopener, link};
use crate::state::{Exporter, Importer, StateError};

pub(super) mod ioctl;

/// Maximum number of queues of a TAP interface (`MAX_TAP_QUEUES`).
pub const MAX_QUEUES: usize = 256;
const TUN: &str = "/dev/net/tun";

/// The reason why a TAP interface cannot be used, with the remedy.
#[derive(Debug, Error)]
pub enum TapError {
    /// Not a valid name of an interface.
    #[error(
        "'{0}' is not an interface name: 1 to {max} bytes without '/', '%', ':' or space",
        max = link::MAX_NAME
    )]
    Name(String),
    /// The kernel's TAP driver is missing, or this process may not use it.
    #[error("cannot open {TUN}: load the kernel module 'tun', and check the permissions of the file")]
    Driver(#[source] io::Error),
    /// The interface does not exist, and this process may not create it.
    #[error(
        "there is no interface {0}, and creating one needs CAP_NET_ADMIN: create it beforehand with \
         'ip tuntap add dev {0} mode tap user USER', or pass an open descriptor with --tap-fd"
    )]
    Missing(String),
    /// It belongs to another user.
    #[error(
        "no permission to open {0}: it belongs to another user; create it with 'ip tuntap add dev {0} mode \
         tap user USER', or run with CAP_NET_ADMIN"
    )]
    Permission(String),
    /// Another process uses it.
    #[error("{0} is busy: another process, perhaps another volt-netd or a VM, has it open")]
    Busy(String),
    /// It was created with a single queue.
    #[error(
        "{0} has a single queue, but {1} are needed: create it with 'ip tuntap add dev {0} mode tap \
         multi_queue', or use --queues 1"
    )]
    SingleQueue(String, usize),
    /// Another kind of interface.
    #[error("{0} exists and is not a TAP interface")]
    NotTap(String),
    /// A descriptor that is something else.
    #[error("descriptor {0} is not an open TAP interface")]
    FdNotTap(i32, #[source] io::Error),
    /// A descriptor that was opened with wrong flags.
    #[error("descriptor {0} of {1} was opened without {2}: open it with TUNSETIFF and this flag")]
    FdFlag(i32, String, &'static str),
    /// Descriptors of more than one interface.
    #[error("descriptor {0} belongs to {1}, the first one to {2}: all queues must be of one interface")]
    FdName(i32, String, String),
    /// No descriptors: each queue is one.
    #[error("an interface needs at least one queue or descriptor")]
    NoQueue,
    /// An error of the process that opens it for this one.
    #[error(transparent)]
    Elsewhere(io::Error),
    /// The system refused something else.
    #[error("{name}: {doing} failed")]
    System {
        /// The interface.
        name: String,
        /// The operation.
        doing: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// An open TAP interface.
#[derive(Debug)]
pub struct Tap {
    name: String,
    /// For queries about the interface after the sandbox forbids new sockets.
    socket: OwnedFd,
    queues: Vec<Arc<FdQueue>>,
    attached: Vec<bool>,
    uso: bool,
    /// How to reopen it; `None` for descriptors from elsewhere.
    options: Option<TapOptions>,
    /// Whether it existed before. If so, the program must not create it again.
    existed: bool,
    /// Whether this value must clean it up.
    owned: bool,
}

impl Tap {
    /// Opens the interface, or creates it and sets it up.
    ///
    /// # Errors
    ///
    /// See [`TapError`].
    pub fn open(options: TapOptions) -> Result<Tap, TapError> {
        check_name(&options.name)?;
        let existed = link::exists(&options.name);
        if existed && options.persist {
            warn!(
                event = "persist_not_set", interface:% = options.name;
                "{} exists already: its persistence is not changed", options.name
            );
        }
        let mut tap = Tap::over(options.name.clone(), opened(&options, existed)?)?;
        (tap.options, tap.existed) = (Some(options), existed);
        Ok(tap)
    }

    /// Like [`Tap::open`], but `open` gets the queues from a process that may open them.
    ///
    /// # Errors
    ///
    /// See [`TapError`]. [`TapError::Elsewhere`] is the error of `open`.
    pub fn open_by(
        options: TapOptions,
        open: impl FnOnce(&Reopening) -> io::Result<Vec<OwnedFd>>,
    ) -> Result<Tap, TapError> {
        check_name(&options.name)?;
        let existed = link::exists(&options.name);
        // As one that may be created.
        let queues = open(&Reopening::Tap { options: options.clone(), existed: false });
        let files = queues.map_err(TapError::Elsewhere)?.into_iter().map(File::from).collect();
        let mut tap = Tap::over(options.name.clone(), files)?;
        (tap.options, tap.existed) = (Some(options), existed);
        Ok(tap)
    }

    /// Opens the queues of an interface that was deleted. Does not create it again if it existed `before`
    /// this program.
    pub(super) fn open_again(options: &TapOptions, before: bool) -> io::Result<Vec<OwnedFd>> {
        let exists = link::exists(&options.name);
        if before && !exists {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the interface does not exist"));
        }
        let files = opened(options, exists).map_err(io::Error::other)?;
        Ok(files.into_iter().map(OwnedFd::from).collect())
    }

    /// Takes over open descriptors, one for each queue pair.
    ///
    /// # Errors
    ///
    /// See [`TapError`].
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Tap, TapError> {
        let name = ioctl::check_fds(&fds)?;
        Tap::over(name, fds.into_iter().map(File::from).collect())
    }

    /// Takes over open queues of `name`.
    pub(super) fn over(name: String, files: Vec<File>) -> Result<Tap, TapError> {
        match link::socket() {
            Ok(socket) => Tap::asked_by(socket, name, files),
            Err(source) => Err(TapError::System { name, doing: "creating a socket", source }),
        }
    }

    fn asked_by(socket: OwnedFd, name: String, files: Vec<File>) -> Result<Tap, TapError> {
        let error = |doing, source| TapError::System { name: name.clone(), doing, source };
        for file in &files {
            ioctl::set_header(file, HEADER_LEN).map_err(|e| error("setting the header size", e))?;
        }
        let first = files.first().ok_or(TapError::NoQueue)?;
        let uso = ioctl::set_offload(first, libc::TUN_F_CSUM | ioctl::USO).is_ok();
        ioctl::set_offload(first, 0).map_err(|e| error("setting offloads", e))?;
        let queues: Result<Vec<_>, _> =
            files.into_iter().map(|file| FdQueue::new(file.into()).map(Arc::new)).collect();
        let queues = queues.map_err(|e| error("making it non-blocking", e))?;
        let attached = vec![true; queues.len()];
        let mut tap = Tap { name, socket, queues, attached, uso, options: None, existed: true, owned: true };
        // Until a front-end enables pairs, the first queue collects arriving frames.
        let first: Vec<bool> = (0..tap.queues.len()).map(|pair| pair == 0).collect();
        tap.attach(&first).map_err(|e| tap.error("detaching idle queues", e))?;
        Ok(tap)
    }

    pub(super) fn import(state: TapState, from: &mut Importer) -> Result<Tap, StateError> {
        let TapState { name, queues, attached, uso, options, existed } = state;
        if queues.is_empty() || queues.len() != attached.len() {
            return Err(StateError::Contradiction("the interface's queues"));
        }
        let queues = queues.into_iter().map(|fd| FdQueue::import(fd, from).map(Arc::new));
        let queues = queues.collect::<Result<_, _>>()?;
        let failed = |error| StateError::System("cannot create a socket", error);
        let socket = link::socket().map_err(failed)?;
        Ok(Tap { name, socket, queues, attached, uso, options, existed, owned: false })
    }

    /// Returns the socket for ioctls on interfaces of the network namespace.
    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    pub(super) fn state<'a>(&'a self, out: &mut Exporter<'a>) -> TapState {
        TapState {
            name: self.name.clone(),
            queues: self.queues.iter().map(|queue| queue.export(out)).collect(),
            attached: self.attached.clone(),
            uso: self.uso,
            options: self.options.clone(),
            existed: self.existed,
        }
    }

    fn error(&self, doing: &'static str, source: io::Error) -> TapError {
        TapError::System { name: self.name.clone(), doing, source }
    }
}

impl Port for Tap {
    fn name(&self) -> &str {
        &self.name
    }

    fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.queues[pair].clone()
    }

    fn extra_features(&self) -> Features {
        match self.uso {
            true => Features::NET_HOST_USO.union(Features::NET_GUEST_USO4).union(Features::NET_GUEST_USO6),
            false => Features::empty(),
        }
    }

    /// Unknown for descriptors from elsewhere: their interface may be in another network namespace, and this
    /// name may denote another interface here.
    fn mtu(&self) -> Option<u16> {
        self.options.as_ref()?;
        link::mtu(&self.socket, &self.name).ok().and_then(|mtu| u16::try_from(mtu).ok())
    }

    /// Unknown for descriptors from elsewhere, like the MTU.
    fn is_up(&self) -> Option<bool> {
        self.options.as_ref().and_then(|_| link::is_up(&self.socket, &self.name))
    }

    fn set_offloads(&mut self, acked: Features) -> io::Result<()> {
        ioctl::set_offload(&self.queues[0], ioctl::offloads(acked, self.uso))
    }

    fn attach(&mut self, active: &[bool]) -> io::Result<()> {
        let wants = |pair| active.get(pair).copied().unwrap_or(false);
        let mut result = Ok(());
        // Attach first, so that the interface always has a queue.
        for attach in [true, false] {
            for (pair, queue) in self.queues.iter().enumerate() {
                if wants(pair) == attach && self.attached[pair] != attach {
                    match ioctl::set_queue(queue, attach) {
                        // EINVAL: it is in that state already. An earlier process died between the change and
                        // its record.
                        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => result = Err(error),
                        _ => self.attached[pair] = attach,
                    }
                }
            }
        }
        result
    }

    fn reopen(&mut self) -> io::Result<()> {
        let options = self.options.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        self.adopt(Tap::open_again(options, self.existed)?)
    }

    fn reopening(&self) -> Reopener<'_> {
        let Some(options) = self.options.clone() else { return Reopener::Nobody };
        Reopener::Process(Reopening::Tap { options, existed: self.existed }, None)
    }

    fn adopt(&mut self, queues: Vec<OwnedFd>) -> io::Result<()> {
        let files = queues.into_iter().map(File::from).collect();
        let tap = Tap::asked_by(self.socket.try_clone()?, self.name.clone(), files);
        let mut tap = tap.map_err(io::Error::other)?;
        (tap.options, tap.existed) = (self.options.clone(), self.existed);
        *self = tap;
        Ok(())
    }

    fn own(&mut self) {
        self.owned = true;
    }

    fn export<'a>(&'a self, out: &mut Exporter<'a>) -> Option<PortState> {
        Some(PortState::Tap(self.state(out)))
    }
}

/// Opens the TAP driver, as a file that belongs to no interface yet.
pub(super) fn driver() -> Result<File, TapError> {
    File::options().read(true).write(true).open(TUN).map_err(TapError::Driver)
}

pub(super) fn check_name(name: &str) -> Result<(), TapError> {
    let bad = |c: char| c.is_whitespace() || matches!(c, '/' | '%' | ':' | '\0');
    if name.is_empty() || name.len() > link::MAX_NAME || name.contains(bad) || matches!(name, "." | "..") {
        return Err(TapError::Name(name.to_owned()));
    }
    Ok(())
}

/// Opens the queues of an interface, and sets it up if it is new.
fn opened(options: &TapOptions, existed: bool) -> Result<Vec<File>, TapError> {
    let files = open_queues(options, existed)?;
    if !existed {
        let name = options.name.clone();
        let failed = |source| TapError::System { name, doing: "setting up the new interface", source };
        set_up(options, &files).map_err(failed)?;
    }
    Ok(files)
}

fn set_up(options: &TapOptions, files: &[File]) -> io::Result<()> {
    if options.persist
        && let Some(file) = files.first()
    {
        ioctl::set_persist(file)?;
    }
    if let (Some(owner), Some(file)) = (options.owner, files.first()) {
        ioctl::set_owner(file, owner)?;
    }
    if let Some(mtu) = options.mtu {
        link::set_mtu(&options.name, mtu)?;
    }
    link::set_up(&options.name)
}

/// Opens the first queue with or without multi-queue, as the interface needs it, then the others.
fn open_queues(options: &TapOptions, existed: bool) -> Result<Vec<File>, TapError> {
    let name = &options.name;
    let open = |multi: bool| {
        let file = driver()?;
        Ok(ioctl::set_interface(&file, name, multi).map(|()| file))
    };
    let many = options.queues > 1;
    let first = match open(many)? {
        // EINVAL: an existing interface needs the other of the two ways, or is something else.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) && existed => match open(!many)? {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Err(TapError::NotTap(name.clone())),
            _ if many => return Err(TapError::SingleQueue(name.clone(), options.queues)),
            other => other,
        },
        other => other,
    };
    let mut files = vec![first.map_err(|source| refusal(name, existed, source))?];
    for _ in 1..options.queues {
        files.push(open(true)?.map_err(|source| refusal(name, existed, source))?);
    }
    Ok(files)
}

fn refusal(name: &str, existed: bool, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM) if existed => TapError::Permission(name),
        Some(libc::EPERM) => TapError::Missing(name),
        Some(libc::EBUSY | libc::E2BIG) => TapError::Busy(name),
        _ => TapError::System { name, doing: "opening the interface", source },
    }
}

impl Drop for Tap {
    /// A persistent interface keeps its offloads when its descriptors close. The next process that opens it
    /// would get frames that it cannot handle.
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.set_offloads(Features::empty())
            && error.raw_os_error() != Some(libc::EBADFD)
        {
            warn!(
                event = "offloads_not_reset", interface:% = self.name;
                "{}: resetting offloads failed: {error}", self.name
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_descriptors_are_no_interface() {
        assert!(matches!(Tap::from_fds(Vec::new()), Err(TapError::NoQueue)));
    }
}
