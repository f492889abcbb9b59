//! A worker as its supervisor sees it: a process, and the line that its reports come on.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getppid};

use crate::signals;

/// A child of this process, until [`Worker::reap`] or [`Worker::end`].
pub(super) struct Worker {
    pub(super) pid: Pid,
    pub(super) line: UnixStream,
    pub(super) started: Instant,
}

impl Worker {
    /// Ends it as this process was told to end. Fails only for one that is dead.
    pub(super) fn tell_to_end(&self) {
        let _ = kill(self.pid, signals::END);
    }

    /// Ends it for certain.
    pub(super) fn reap(&self) -> WaitStatus {
        // It may be about to exit by itself, with a status.
        for _ in 0..50 {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => thread::sleep(Duration::from_millis(1)),
                Ok(status) => return status,
                Err(_) => break,
            }
        }
        self.end()
    }

    /// Ends it at once.
    pub(super) fn end(&self) -> WaitStatus {
        let _ = kill(self.pid, Signal::SIGKILL);
        waitpid(self.pid, None).unwrap_or(WaitStatus::Signaled(self.pid, Signal::SIGKILL, false))
    }
}

/// For a worker: one that outlives a supervisor with a store would serve beside the one that the store starts.
pub(super) fn die_with_parent() {
    let parent = getppid();
    if nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).is_err() || getppid() != parent {
        std::process::exit(1);
    }
}
