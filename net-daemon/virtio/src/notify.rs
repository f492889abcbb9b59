//! The descriptors by which driver and device notify each other: kick, call and err.
//!
//! They come from the front-end and may be anything. vhost-user says eventfd, UML sends one end of a socket
//! pair, a hostile front-end a file, a blocking descriptor or one that is full. Neither direction may ever
//! wait.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use thiserror::Error;

/// Most reads for one kick: more than a pipe of the usual size holds.
const MOST_READS: usize = 1024;

/// Why a descriptor cannot carry notifications.
#[derive(Debug, Error)]
pub enum NotifyError {
    /// Not one that can be waited for.
    #[error("the descriptor is a {0}, where an eventfd belongs")]
    Kind(&'static str),
    /// The system refuses.
    #[error("the descriptor cannot be made non-blocking")]
    System(#[from] io::Error),
}

/// A descriptor for notifications, in either direction.
#[derive(Debug)]
pub struct Notifier {
    file: File,
}

impl Notifier {
    /// Takes a descriptor that a front-end sent.
    ///
    /// # Errors
    ///
    /// When it is neither eventfd, nor pipe, nor local socket.
    pub fn new(fd: OwnedFd) -> Result<Notifier, NotifyError> {
        let mode = fstat(&fd).map_err(io::Error::from)?.st_mode;
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Fifo => None,
            // Of others, closing can wait for their peers (SO_LINGER).
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
        // The flag belongs to the open file, which the front-end shares: it can take it back, and then block
        // the worker, which is why stopping a worker does not rely on it.
        let flags = fcntl_getfl(&fd).map_err(io::Error::from)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
        Ok(Notifier { file: fd.into() })
    }

    /// An eventfd of this process's own.
    ///
    /// # Errors
    ///
    /// When the process may have no more descriptors.
    pub fn eventfd() -> io::Result<Notifier> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Notifier { file: fd.into() })
    }

    /// Goes on with a descriptor that another process had from [`Notifier::new`]: what that has set goes with
    /// the open file.
    pub fn again(fd: OwnedFd) -> Notifier {
        Notifier { file: fd.into() }
    }

    /// Notifies the other side. One that does not read has a notification waiting already, and one that is
    /// gone needs none.
    #[inline]
    pub fn notify(&self) {
        let _ = (&self.file).write(&1u64.to_ne_bytes());
    }

    /// Waits up to `limit` for a notification; whether there is one.
    #[cfg(any(test, feature = "testing"))]
    pub fn wait(&self, limit: std::time::Duration) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let limit = Timespec::try_from(limit).ok();
        matches!(poll(&mut [PollFd::new(&self.file, PollFlags::IN)], limit.as_ref()), Ok(1))
    }

    /// Takes what was notified. `false` when the other side is gone, or the descriptor is of no use.
    #[inline]
    pub fn clear(&self) -> bool {
        // More than the 8 bytes of an eventfd: a socket or pipe is emptied in fewer calls. It is emptied, as
        // what stays would fill it in the end, and who waits for room kicks no more.
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

/// Whether an anonymous inode is an eventfd, and not one that answers a read by something else: a signalfd by
/// this process's signals. Of all of them an eventfd alone can be written to so, which adds nothing to it,
/// and for which there is always room. Their names would tell as well, to a process that may look into /proc.
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
        // SAFETY: an empty set of signals, of all zero bytes; a descriptor that is nobody else's.
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
