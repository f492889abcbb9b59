//! The termination signals of this daemon, and a socket that becomes readable with the first of them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::c_int;
use rustix::process::Signal;
use volt_program::signals::{ENDING, is_default, name};

/// The signal by which a supervisor tells its worker to end.
pub(crate) const END: Signal = Signal::USR1;

/// The termination signals of a worker: the supervisor's, and that of the worker's limit of CPU time. The
/// supervisor handles the others, because terminals and systemd send them to all processes.
pub(crate) const OF_A_WORKER: [c_int; 2] = [END.as_raw(), libc::SIGXCPU];

/// Returns the termination signals of this process: those with their default action, so that `nohup` works,
/// and always SIGTERM and SIGINT. Shells without job control ignore SIGINT in background processes, where it
/// is still useful.
pub(crate) fn ending() -> Vec<c_int> {
    let always = |signal| matches!(signal, libc::SIGTERM | libc::SIGINT);
    ENDING.into_iter().filter(|&signal| always(signal) || is_default(signal).unwrap_or(false)).collect()
}

/// Receives termination signals.
#[derive(Debug)]
pub(crate) struct Signals {
    /// Readable after the first signal.
    socket: OwnedFd,
    last: Arc<AtomicUsize>,
}

impl Signals {
    /// Handles `signals` from now on. A second one ends the process, even if the kernel blocks the main
    /// thread, for instance on front-end memory that never becomes available.
    pub(crate) fn watch(signals: &[c_int]) -> io::Result<Signals> {
        let (socket, signalled) = UnixStream::pair()?;
        let (told, last) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        for &signal in signals {
            // In this order, so that the first signal sets the flag and the second one finds it set.
            signal_hook::flag::register_conditional_shutdown(signal, 1, told.clone())?;
            signal_hook::flag::register(signal, told.clone())?;
            signal_hook::flag::register_usize(signal, last.clone(), signal.unsigned_abs() as usize)?;
            signal_hook::low_level::pipe::register(signal, signalled.try_clone()?)?;
        }
        Ok(Signals { socket: socket.into(), last })
    }

    /// Names the last signal's sender or the signal, once the socket is readable.
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
