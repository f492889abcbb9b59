//! A worker as its supervisor sees it: a process, and the line that its reports come on.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, getppid, kill_process, set_parent_process_death_signal, waitpid,
};

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
        let _ = kill_process(self.pid, signals::END);
    }

    /// Ends it for certain.
    pub(super) fn reap(&self) -> Option<WaitStatus> {
        // It may be about to exit by itself, with a status: a busy host has other things to do first.
        for _ in 0..1000 {
            match waitpid(Some(self.pid), WaitOptions::NOHANG) {
                Ok(None) => thread::sleep(Duration::from_millis(1)),
                Ok(Some((_, status))) => return Some(status),
                Err(_) => break,
            }
        }
        self.end()
    }

    /// Ends it at once.
    pub(super) fn end(&self) -> Option<WaitStatus> {
        let _ = kill_process(self.pid, Signal::KILL);
        waitpid(Some(self.pid), WaitOptions::empty()).ok().flatten().map(|(_, status)| status)
    }
}

/// For a worker: one that outlives a supervisor with a store would serve beside the one that the store
/// starts.
pub(super) fn die_with_parent() {
    let parent = getppid();
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || getppid() != parent {
        std::process::exit(1);
    }
}
