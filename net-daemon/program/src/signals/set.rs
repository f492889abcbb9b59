//! Sets of signals: blocked in a thread, waited for, or read from a descriptor.
#![expect(unsafe_code, reason = "only libc has signal masks")]

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use libc::{SIG_BLOCK, SIG_SETMASK, SIG_UNBLOCK, c_int, sigset_t};

/// A set of signals.
#[derive(Clone, Copy)]
pub struct SignalSet(sigset_t);

impl SignalSet {
    /// Creates a set of these signals. A number that is not a signal is left out.
    pub fn of(signals: &[c_int]) -> SignalSet {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for &signal in signals {
            // SAFETY: `set` is initialised. A number that is not a signal is refused.
            unsafe { libc::sigaddset(&raw mut set, signal) };
        }
        SignalSet(set)
    }

    /// Creates a set of all signals.
    pub fn all() -> SignalSet {
        let mut set = MaybeUninit::uninit();
        // SAFETY: sigfillset initialises the set.
        SignalSet(unsafe {
            libc::sigfillset(set.as_mut_ptr());
            set.assume_init()
        })
    }

    /// Blocks these signals in this thread, in addition to those already blocked. Returns the signals blocked
    /// before.
    ///
    /// # Errors
    ///
    /// From the system.
    pub fn block(&self) -> io::Result<SignalSet> {
        self.mask(SIG_BLOCK)
    }

    /// Unblocks these signals in this thread. Returns the signals blocked before.
    ///
    /// # Errors
    ///
    /// From the system.
    pub fn unblock(&self) -> io::Result<SignalSet> {
        self.mask(SIG_UNBLOCK)
    }

    /// Blocks only these signals in this thread. Returns the signals blocked before.
    ///
    /// # Errors
    ///
    /// From the system.
    pub fn block_only(&self) -> io::Result<SignalSet> {
        self.mask(SIG_SETMASK)
    }

    fn mask(&self, how: c_int) -> io::Result<SignalSet> {
        let mut before = MaybeUninit::uninit();
        // SAFETY: the set is initialised, and there is room for the old one.
        match unsafe { libc::pthread_sigmask(how, &raw const self.0, before.as_mut_ptr()) } {
            // SAFETY: the call succeeded and initialised it.
            0 => Ok(SignalSet(unsafe { before.assume_init() })),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for one of these signals, and takes it. They must be blocked in all threads.
    ///
    /// # Errors
    ///
    /// From the system.
    pub fn wait(&self) -> io::Result<c_int> {
        let mut signal = 0;
        // SAFETY: both are initialised.
        match unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } {
            0 => Ok(signal),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Creates a descriptor that is readable while one of these signals is pending. They must be blocked.
    ///
    /// # Errors
    ///
    /// The process cannot open another descriptor.
    pub fn descriptor(&self) -> io::Result<SignalFd> {
        // SAFETY: the set is initialised; -1 requests a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const self.0, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: open, and owned by nothing else.
        Ok(SignalFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

impl fmt::Debug for SignalSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let signals = 1..=libc::SIGRTMAX();
        // SAFETY: the set is initialised.
        let is_in = |signal: &c_int| unsafe { libc::sigismember(&raw const self.0, *signal) == 1 };
        f.debug_set().entries(signals.filter(is_in).map(super::name)).finish()
    }
}

/// A descriptor of signals (`signalfd(2)`).
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// Takes a pending signal, if there is one.
    pub fn take(&self) -> Option<c_int> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.0, &mut info).ok().filter(|read| *read == info.len());
        // `ssi_signo` comes first.
        read.and(info.first_chunk()).map(|number| c_int::from_ne_bytes(*number))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Raises a signal in this thread only, because other threads do not block it.
    fn raise(signal: c_int) {
        // SAFETY: the signal is blocked here.
        assert_eq!(unsafe { libc::raise(signal) }, 0);
    }

    #[test]
    fn a_blocked_signal_is_read_or_waited_for() {
        let set = SignalSet::of(&[libc::SIGUSR2, 1000]);
        let before = set.block().unwrap();
        let descriptor = set.descriptor().unwrap();
        assert_eq!(descriptor.take(), None);
        raise(libc::SIGUSR2);
        assert_eq!((descriptor.take(), descriptor.take()), (Some(libc::SIGUSR2), None));
        raise(libc::SIGUSR2);
        assert_eq!(set.wait().unwrap(), libc::SIGUSR2);
        let blocked = before.block_only().unwrap();
        assert_eq!(format!("{set:?}"), r#"{"SIGUSR2"}"#);
        assert!(format!("{blocked:?}").contains("SIGUSR2") && !format!("{before:?}").contains("SIGUSR2"));
    }
}
