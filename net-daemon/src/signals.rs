//! The signals that tell this daemon to end, and a socket that becomes readable with the first of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::c_int;
use rustix::process::Signal;
use volt_program::signals::{ENDING, is_default, name};

/// What a supervisor tells its worker to end by.
pub(crate) const END: Signal = Signal::USR1;

/// A worker's own: what its supervisor says, and its own limit of processor time. The others are the
/// supervisor's, as terminals and systemd send them to all processes.
pub(crate) const OF_A_WORKER: [c_int; 2] = [END.as_raw(), libc::SIGXCPU];

/// Signals that tell this process to end: those that have their default action, so that `nohup` is heeded.
/// SIGTERM and SIGINT always: shells without job control have the latter ignored in the background, where it
/// is still of use.
pub(crate) fn ending() -> Vec<c_int> {
    let always = |signal| matches!(signal, libc::SIGTERM | libc::SIGINT);
    ENDING.into_iter().filter(|&signal| always(signal) || is_default(signal).unwrap_or(false)).collect()
}

/// Signals that have come.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Readable with the first one.
    socket: OwnedFd,
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Takes `signals` from now on. A second one ends the process: it is for a main thread that the kernel
    /// holds, as it can in memory of a front-end that never comes.
    pub(crate) fn watch(signals: &[c_int]) -> io::Result<Signals> {
        let (socket, signalled) = UnixStream::pair()?;
        let (told, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for &signal in signals {
            // In this order: the first signal asks, a second one does not.
            signal_hook::flag::register_conditional_shutdown(signal, 1, told.clone())?;
            signal_hook::flag::register(signal, told.clone())?;
            signal_hook::flag::register_usize(signal, last.clone(), signal.unsigned_abs() as usize)?;
            signal_hook::low_level::pipe::register(signal, signalled.try_clone()?)?;
        }
        Ok(Signals { socket: socket.into(), last })
    }

    /// Who told to end, once the socket is readable.
    pub(crate) fn who(&self) -> String {
        match i32::try_from(self.last.load(Ordering::SeqCst)).unwrap_or_default() {
            last if last == END.as_raw() => "the supervisor".to_owned(),
            last => name(last),
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
