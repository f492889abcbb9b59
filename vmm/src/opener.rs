//! Opening files that need a path or a privilege while a machine runs: the socket of a back-end that
//! disconnected, an interface that was deleted, disks and network devices that are added.
//!
//! Until [`Opener::is_asked`], this process opens them itself. From then on, this confined process asks the
//! [opener process](volt_program::opener). It opens
//!
//! - the sockets on the command line, of back-ends and peers, and sockets and disks below the directories of
//!   `--allow-path`,
//! - interfaces of any name: the kernel decides which of them this user may attach,
//! - the kernel's vhost-net.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf, absolute};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use volt_net::port::peer_options::PeerOptions;
use volt_net::port::reopening::open_again;
use volt_net::port::state::Reopening;
use volt_program::opener::WirePath;
use volt_program::unix::{self, Access, ConnectError, SocketFile};

use crate::files::{self, OpenError};

/// The device file of vhost-net.
pub const VHOST_NET: &str = "/dev/vhost-net";

static ASKED: OnceLock<volt_program::opener::Opener> = OnceLock::new();

/// The files that the opener may open, according to the command line.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Duties {
    /// Directories whose sockets and disks may be opened.
    pub directories: Vec<WirePath>,
    /// Sockets of back-ends and peers.
    pub sockets: Vec<WirePath>,
    /// Files of own sockets, the API's and those for peers, with device and number of the inode. They are
    /// removed at the end.
    pub files: Vec<(WirePath, (u64, u64))>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Only the first one counts, so that a compromised process cannot add to it.
    Entrust(Duties),
    Disk {
        path: WirePath,
        write: bool,
    },
    Connect(WirePath),
    Interface(Reopening),
    VhostNet,
    RemoveSocket(WirePath),
}

/// The opener process. It waits until it [is asked](Opener::is_asked).
#[derive(Debug)]
pub struct Opener(volt_program::opener::Opener);

impl Opener {
    /// Forks the opener, which calls `begin` first. Called by the main thread before any other exists.
    ///
    /// # Errors
    ///
    /// Fails if the system cannot create a process, or `begin` fails.
    pub fn start(begin: impl FnOnce() -> Result<(), String>) -> io::Result<Opener> {
        let mut trusted = None;
        let opener =
            volt_program::opener::Opener::start(c"volt-opener", begin, move |request, given| {
                match (request, &trusted) {
                    (Request::Entrust(_), Some(_)) => Ok(Vec::new()),
                    (Request::Entrust(duties), None) => {
                        trusted = Some(Trusted::new(duties)?);
                        Ok(Vec::new())
                    }
                    (request, Some(trusted)) => trusted.carry_out(request, &given),
                    (_, None) => Err(io::ErrorKind::Unsupported.into()),
                }
            })?;
        Ok(Opener(opener))
    }

    /// Passes its duties to the opener. From here on, the opener opens all such files.
    ///
    /// # Errors
    ///
    /// Fails if a directory cannot be opened, or the opener has ended.
    pub fn is_asked(self, duties: Duties) -> io::Result<()> {
        self.0.ask(&Request::Entrust(duties))?.take()?;
        let _ = ASKED.set(self.0);
        Ok(())
    }
}

/// Opens a disk's image for reading, and with `write` for writing, too.
///
/// # Errors
///
/// See [`OpenError`].
pub fn open_disk(path: &Path, write: bool) -> Result<File, OpenError> {
    let Some(opener) = ASKED.get() else { return here(path, write) };
    let request = Request::Disk { path: WirePath(path.to_owned()), write };
    let mut fds = opener.ask(&request)?.take()?;
    Ok(fds.pop().ok_or(OpenError::Kind)?.into())
}

/// Connects to the back-end that listens at `path`, without waiting.
///
/// # Errors
///
/// See [`ConnectError`].
pub fn connect(path: &Path) -> Result<UnixStream, ConnectError> {
    let Some(opener) = ASKED.get() else { return unix::connect(path) };
    let mut fds = opener.ask(&Request::Connect(WirePath(path.to_owned())))?.take()?;
    Ok(fds.pop().ok_or(io::ErrorKind::NotFound).map_err(io::Error::from)?.into())
}

/// Opens an interface's queues, or connects to a peer. See [`open_again`].
///
/// # Errors
///
/// Fails while the interface cannot be opened.
pub fn open_interface(what: &Reopening, given: Option<BorrowedFd<'_>>) -> io::Result<Vec<OwnedFd>> {
    match ASKED.get() {
        Some(opener) => opener.ask_with(&Request::Interface(what.clone()), given)?.take(),
        None => open_again(what, given),
    }
}

/// Opens the kernel's vhost-net.
///
/// # Errors
///
/// Fails if there is no vhost-net, or this user has no permission.
pub fn open_vhost_net() -> io::Result<OwnedFd> {
    let Some(opener) = ASKED.get() else { return vhost_net() };
    opener.ask(&Request::VhostNet)?.take()?.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Creates the own socket of a port to a peer, if it has one.
///
/// # Errors
///
/// The system refuses; or this process is confined already.
pub fn bind(options: &PeerOptions) -> io::Result<Option<(OwnedFd, SocketFile)>> {
    let Some(path) = options.own_path() else { return Ok(None) };
    if ASKED.get().is_some() {
        let text =
            "a running machine cannot create a socket: only stream=PATH, without 'listen', can be added";
        return Err(io::Error::other(text));
    }
    let bound = match options {
        PeerOptions::Stream(_) => unix::bind(path, &Access::PRIVATE).map(|(own, file)| (own.into(), file)),
        PeerOptions::Datagram(_) => unix::bind_datagram(path, &Access::PRIVATE),
    };
    bound.map(Some).map_err(io::Error::other)
}

/// Removes the file of an own socket. A failure is ignored.
pub fn remove_socket(file: &SocketFile) {
    match ASKED.get() {
        Some(opener) => {
            let request = Request::RemoveSocket(WirePath(file.path().to_owned()));
            let _ = opener.ask(&request).and_then(|asked| asked.take());
        }
        None => file.remove(),
    }
}

fn here(path: &Path, write: bool) -> Result<File, OpenError> {
    files::open(path, write, |kind| kind.is_file() || kind.is_block_device())
}

/// Opens vhost-net in this process.
///
/// # Errors
///
/// An error of the system.
pub fn vhost_net() -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(VHOST_NET);
    file.map(OwnedFd::from)
}

/// Makes sure that an interface that is created does not outlive the machine, whatever was requested.
fn of_the_machine(mut what: Reopening) -> Reopening {
    if let Reopening::Tap { options, .. } = &mut what {
        (options.persist, options.owner) = (false, None);
    }
    what
}

/// The opener's state after it got its duties.
struct Trusted {
    directories: Vec<(PathBuf, OwnedFd)>,
    sockets: Vec<WirePath>,
    files: Vec<(WirePath, (u64, u64))>,
}

impl Trusted {
    fn new(duties: Duties) -> io::Result<Trusted> {
        let Duties { directories, sockets, files } = duties;
        let opened = directories.into_iter().map(|WirePath(path)| {
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let failed = |error| {
                io::Error::other(format!("--allow-path {}: cannot be opened: {error}", path.display()))
            };
            let directory = File::options().read(true).custom_flags(flags).open(&path).map_err(failed)?;
            Ok((absolute(&path)?, directory.into()))
        });
        let directories = opened.collect::<io::Result<_>>()?;
        Ok(Trusted { directories, sockets, files })
    }

    fn carry_out(&self, request: Request, given: &[OwnedFd]) -> io::Result<Vec<OwnedFd>> {
        match request {
            Request::Entrust(_) => {}
            Request::Disk { path: WirePath(path), write } => {
                return match here(&self.below(&path)?.path(), write) {
                    Ok(file) => Ok(vec![file.into()]),
                    // The answer is an empty list of descriptors.
                    Err(OpenError::Kind) => Ok(Vec::new()),
                    Err(OpenError::System(error)) => Err(error),
                };
            }
            Request::Connect(path) if self.sockets.contains(&path) => {
                return Ok(vec![unix::connect(&path.0)?.into()]);
            }
            Request::Connect(WirePath(path)) => {
                return Ok(vec![unix::connect(&self.below(&path)?.path())?.into()]);
            }
            Request::Interface(what) => {
                let (what, _found) = self.permitted(of_the_machine(what))?;
                return open_again(&what, given.first().map(AsFd::as_fd));
            }
            Request::VhostNet => return Ok(vec![vhost_net()?]),
            Request::RemoveSocket(wanted) => {
                for (WirePath(path), inode) in self.files.iter().filter(|(own, _)| *own == wanted) {
                    SocketFile::again(path.clone(), *inode).remove();
                }
            }
        }
        Ok(Vec::new())
    }

    /// Checks the path of a peer as that of a back-end. The kernel decides about the others.
    fn permitted(&self, mut what: Reopening) -> io::Result<(Reopening, Option<Found>)> {
        if let Reopening::Stream { path } | Reopening::Datagram { path, .. } = &mut what
            && !self.sockets.iter().any(|WirePath(own)| own == path)
        {
            let found = self.below(path)?;
            *path = found.path();
            return Ok((what, Some(found)));
        }
        Ok((what, None))
    }

    /// Finds `path` if it is below an allowed directory. Neither `..` nor a link leads out of it.
    fn below(&self, path: &Path) -> io::Result<Found> {
        let wanted = absolute(path)?;
        let mut why = "it is not in an allowed directory";
        for (directory, opened) in &self.directories {
            let Ok(rest) = wanted.strip_prefix(directory) else { continue };
            let (flags, how) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::BENEATH);
            match openat2(opened, rest, flags, Mode::empty(), how) {
                Ok(found) => return Ok(Found(found)),
                Err(Errno::XDEV) => why = "a link leads out of the allowed directory",
                Err(error) => return Err(error.into()),
            }
        }
        Err(not_allowed(path, why))
    }
}

fn not_allowed(path: &Path, why: &str) -> io::Error {
    let text = format!("volt-vmm may not open {}: {why} (--allow-path DIR)", path.display());
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// A file that was found and is to be opened.
struct Found(OwnedFd);

impl Found {
    /// Returns a path that leads to the file, even if its original path has changed.
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Disks and sockets below the directories can be opened, and sockets by their path, and nothing else.
    #[test]
    fn what_may_be_opened_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("in/deep")).unwrap();
        std::fs::write(path("in/deep/disk"), [0; 512]).unwrap();
        std::fs::write(path("out"), [0; 512]).unwrap();
        symlink("../out", path("in/link")).unwrap();
        symlink("deep/disk", path("in/inner")).unwrap();
        let _listeners = ["socket", "in/socket", "other"].map(|name| UnixListener::bind(path(name)).unwrap());
        let duties = Duties {
            directories: vec![WirePath(path("in"))],
            sockets: vec![WirePath(path("socket"))],
            files: Vec::new(),
        };
        let trusted = Trusted::new(duties).unwrap();
        let disk =
            |name: &str, write| trusted.carry_out(Request::Disk { path: WirePath(path(name)), write }, &[]);
        let connect = |name: &str| trusted.carry_out(Request::Connect(WirePath(path(name))), &[]);
        for name in ["in/deep/disk", "in/inner", "in/./deep/disk"] {
            for write in [false, true] {
                assert_eq!(disk(name, write).unwrap().len(), 1, "{name}");
            }
        }
        assert!(disk("in/socket", false).unwrap().is_empty(), "it is no disk");
        assert_eq!(disk("in/absent", false).unwrap_err().kind(), io::ErrorKind::NotFound);
        for name in ["out", "in/link", "in/../out", "in/deep/../../out"] {
            let error = disk(name, false).unwrap_err().to_string();
            assert!(error.contains("--allow-path"), "{name}: {error}");
        }
        assert!(connect("socket").is_ok() && connect("in/socket").is_ok());
        assert!(connect("other").unwrap_err().to_string().contains("--allow-path"));
        let absent = Duties { directories: vec![WirePath(path("absent"))], ..Duties::default() };
        let error = Trusted::new(absent).err().unwrap().to_string();
        assert!(error.contains("absent") && error.contains("--allow-path"), "{error}");
    }
}
