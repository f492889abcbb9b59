//! The supervisor's handle of a worker: a process, and the line for its reports.

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
    /// Tells the worker to end in order. Fails only if the worker is dead.
    pub(super) fn tell_to_end(&self) {
        let _ = kill_process(self.pid, signals::END);
    }

    /// Waits a second for the worker to exit, then kills it.
    pub(super) fn reap(&self) -> Option<WaitStatus> {
        // The worker may be about to exit by itself, which takes time on a busy host.
        for _ in 0..1000 {
            match waitpid(Some(self.pid), WaitOptions::NOHANG) {
                Ok(None) => thread::sleep(Duration::from_millis(1)),
                Ok(Some((_, status))) => return Some(status),
                Err(_) => break,
            }
        }
        self.end()
    }

    /// Kills the worker.
    pub(super) fn end(&self) -> Option<WaitStatus> {
        let _ = kill_process(self.pid, Signal::KILL);
        waitpid(Some(self.pid), WaitOptions::empty()).ok().flatten().map(|(_, status)| status)
    }
}

/// Makes this worker die with its supervisor. Otherwise it would serve beside the worker of the restarted
/// unit, which continues from systemd's store.
pub(super) fn die_with_parent() {
    let parent = getppid();
    if set_parent_process_death_signal(Some(Signal::KILL)).is_err() || getppid() != parent {
        std::process::exit(1);
    }
}
