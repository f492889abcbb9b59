//! The descriptors for notifications between driver and device: kick, call and err.
//!
//! They come from the front-end and may be anything. vhost-user prescribes an eventfd. UML sends one end of a
//! socket pair. A hostile front-end may send a file, a blocking descriptor or a full one. Neither direction
//! may ever block.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use thiserror::Error;

/// Maximum number of reads for one kick: enough for more than a pipe of the default size holds.
const MOST_READS: usize = 1024;

/// The reason why a descriptor cannot carry notifications.
#[derive(Debug, Error)]
pub enum NotifyError {
    /// A descriptor that does not support waiting.
    #[error("the descriptor is a {0} instead of an eventfd")]
    Kind(&'static str),
    /// A system call failed.
    #[error("the descriptor cannot be made non-blocking")]
    System(#[from] io::Error),
}

/// A descriptor for notifications, in either direction.
#[derive(Debug)]
pub struct Notifier {
    file: File,
}

impl Notifier {
    /// Takes over a descriptor that a front-end sent.
    ///
    /// # Errors
    ///
    /// Fails if it is not an eventfd, a pipe, or a local socket.
    pub fn new(fd: OwnedFd) -> Result<Notifier, NotifyError> {
        let mode = fstat(&fd).map_err(io::Error::from)?.st_mode;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Fifo => None,
            // Closing another kind of socket can wait for its peer (SO_LINGER).
            FileType::Socket if socket_domain(&fd).is_ok_and(|domain| domain == AddressFamily::UNIX) => None,
            FileType::Socket => Some("socket that is not local"),
            FileType::RegularFile => Some("regular file"),
            FileType::Directory => Some("directory"),
            FileType::CharacterDevice => Some("character device"),
            FileType::BlockDevice => Some("block device"),
            FileType::Symlink => Some("symbolic link"),
            // Anonymous inodes have no type.
            FileType::Unknown if is_eventfd(&fd) => None,
            FileType::Unknown => Some("signalfd, timerfd, epoll instance or the like"),
        };
        if let Some(kind) = kind {
            return Err(NotifyError::Kind(kind));
        }
        // The front-end shares the open file and can clear this flag, and then block the worker. So stopping
        // a worker does not rely on it.
        let flags = fcntl_getfl(&fd).map_err(io::Error::from)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
        Ok(Notifier { file: fd.into() })
    }

    /// Creates an eventfd for this process.
    ///
    /// # Errors
    ///
    /// Fails if the process has no descriptor left.
    pub fn eventfd() -> io::Result<Notifier> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Notifier { file: fd.into() })
    }

    /// Takes over a descriptor that another process passed to [`Notifier::new`]. The open file has kept the
    /// flags.
    pub fn again(fd: OwnedFd) -> Notifier {
        Notifier { file: fd.into() }
    }

    /// Notifies the other side. Ignores errors: a side that does not read has a pending notification, and a
    /// side that is gone needs none.
    #[inline]
    pub fn notify(&self) {
        let _ = (&self.file).write(&1u64.to_ne_bytes());
    }

    /// Waits up to `limit` for a notification. Returns whether there is one.
    #[cfg(any(test, feature = "testing"))]
    pub fn wait(&self, limit: std::time::Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let limit = Timespec::try_from(limit).ok();
        matches!(poll(&mut [PollFd::new(&self.file, PollFlags::IN)], limit.as_ref()), Ok(1))
    }

    /// Takes the pending notifications. Returns `false` if the other side is gone, or the descriptor is
    /// unusable.
    #[inline]
    pub fn clear(&self) -> bool {
        // More than the 8 bytes of an eventfd, to empty a socket or pipe in fewer calls. It must be emptied:
        // the rest would fill it in the end, and a sender that waits for room would not kick.
        let mut bytes = [0; 256];
        for _ in 0..MOST_READS {
            match (&self.file).read(&mut bytes) {
                Ok(read) if read == bytes.len() => {}
                Ok(read) => return read > 0,
                Err(error) => return matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted),
            }
        }
        true
    }
}

/// Whether an anonymous inode is an eventfd, and not for example a signalfd, whose reads would take signals
/// of this process. Only an eventfd can be written to like this. The write adds 0, for which there is always
/// room. The name of the inode would tell as well, but only to a process that may read /proc.
fn is_eventfd(fd: &OwnedFd) -> bool {
    rustix::io::write(fd, &0u64.to_ne_bytes()) == Ok(8)
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_blocking_or_full_eventfd_does_not_block() {
        let fd = eventfd(0, EventfdFlags::empty()).unwrap();
        let mut ours = File::from(fd.try_clone().unwrap());
        let notifier = Notifier::new(fd).unwrap();
        ours.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
        notifier.notify();
        assert!(is_eventfd(&notifier.file.try_clone().unwrap().into()), "a full one is one too");
        let mut count = [0; 8];
        ours.read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), u64::MAX - 1);
        assert!(notifier.clear(), "nothing to read is no end");
    }

    #[test]
    fn a_socket_carries_notifications_and_its_end() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let notifier = Notifier::new(theirs.into()).unwrap();
        notifier.notify();
        let mut bytes = [0; 8];
        (&ours).read_exact(&mut bytes).unwrap();
        assert_eq!(u64::from_ne_bytes(bytes), 1);
        assert!(notifier.clear());
        drop(ours);
        assert!(!notifier.clear());
        notifier.notify();
    }

    #[test]
    fn files_are_refused_by_kind() {
        let kind = |path| match Notifier::new(File::open(path).unwrap().into()) {
            Err(NotifyError::Kind(kind)) => kind,
            other => panic!("{other:?}"),
        };
        assert_eq!(kind("/dev/null"), "character device");
        assert_eq!(kind("/proc/self/status"), "regular file");
        assert_eq!(kind("/"), "directory");
    }

    #[expect(unsafe_code, reason = "signalfd exists in libc only")]
    fn signalfd() -> OwnedFd {
        use std::os::fd::FromRawFd;
        // SAFETY: an empty set of signals, all zero bytes; a new descriptor without another owner.
        unsafe {
            let none: libc::sigset_t = std::mem::zeroed();
            let fd = libc::signalfd(-1, &raw const none, libc::SFD_CLOEXEC);
            assert!(fd >= 0);
            OwnedFd::from_raw_fd(fd)
        }
    }

    #[test]
    fn what_is_read_like_an_eventfd_and_is_none_is_refused() {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::empty()).unwrap();
        let epoll = rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC).unwrap();
        let signals = signalfd();
        let distant =
            rustix::net::socket(AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
        for (fd, text) in
            [(timer, "timerfd"), (epoll, "epoll"), (signals, "signalfd"), (distant, "not local")]
        {
            match Notifier::new(fd) {
                Err(NotifyError::Kind(kind)) => assert!(kind.contains(text), "{kind}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_may_be_one_carries_notifications_in_its_direction() {
        use rustix::pipe::pipe;

        let (read, write) = pipe().unwrap();
        let (kick, call) = (Notifier::new(read).unwrap(), Notifier::new(write).unwrap());
        call.notify();
        assert!(kick.clear());
        assert!(kick.clear(), "nothing to read is no end");
        assert!(!call.clear(), "the wrong end");
        kick.notify();
        drop(call);
        assert!(!kick.clear());
    }
}
