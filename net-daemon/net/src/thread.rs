//! Threads that can be stopped in any system call: the worker of a queue pair, the relay of the control
//! queue.

use std::io;
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use thiserror::Error;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// Time without an answer after which a thread is interrupted in its system call.
const PATIENCE: Duration = Duration::from_millis(20);
/// Time without an answer after which a thread is given up.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);
/// The most that counts between two checks of a thread. More time passes when the whole process stands still
/// (SIGSTOP, a frozen cgroup, a virtual machine without CPU time); the thread then stands still, too.
const MOST_AT_A_TIME: Duration = Duration::from_millis(20);

/// The purpose of a thread of this library, or of a program that uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Moves the frames of a queue pair.
    Pair,
    /// Reads and writes the descriptors of a vring that another thread serves.
    Vring,
    /// Checks whether descriptors of a front-end are usable.
    Descriptors,
}

static ON_START: OnceLock<fn(ThreadKind)> = OnceLock::new();

/// Makes each thread that starts from now on call `act` first, for any device. For programs that confine
/// their threads. Only the first call has an effect.
pub fn on_start(act: fn(ThreadKind)) {
    let _ = ON_START.set(act);
}

/// Runs the function of [`on_start`]. Each thread calls it first.
pub fn started(kind: ThreadKind) {
    if let Some(act) = ON_START.get() {
        act(kind);
    }
}

/// The reason why a worker does not return its pair.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// Its thread or one of its descriptors could not be created.
    #[error("cannot start a worker")]
    Start(#[source] io::Error),
    /// A kick descriptor does not support waiting.
    #[error("cannot wait for the kick descriptor of vring {0}")]
    Kick(usize, #[source] io::Error),
    /// It does not answer: the kernel holds it, for example in memory of the front-end that never arrives.
    #[error("the worker of a queue pair did not stop within {} s", LIMIT.as_secs())]
    Stuck,
    /// It panicked, which is a bug of this program.
    #[error("the worker of a queue pair panicked")]
    Panicked,
}

/// Returns the result of a thread that has been told to stop.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> Result<T, WorkerError> {
    if !ends_within(&thread, LIMIT) {
        return Err(WorkerError::Stuck);
    }
    thread.join().map_err(|_| WorkerError::Panicked)
}

/// Waits for a thread that has been told to stop, and interrupts it. Returns whether it has ended.
pub(crate) fn ends_within<T>(thread: &JoinHandle<T>, limit: Duration) -> bool {
    interrupted_until(thread, limit, || thread.is_finished())
}

/// Interrupts a thread in its system calls until `done`. Returns whether `done` became true.
pub(crate) fn interrupted_until<T>(
    thread: &JoinHandle<T>,
    limit: Duration,
    mut done: impl FnMut() -> bool,
) -> bool {
    let (mut waited, mut last) = (Duration::ZERO, Instant::now());
    while !done() {
        let now = Instant::now();
        waited += (now - last).min(MOST_AT_A_TIME);
        last = now;
        if waited > limit {
            return false;
        }
        if waited > PATIENCE {
            // A front-end that makes a call descriptor blocking can hold a thread in `write()`.
            let _ = thread.kill(wake_signal());
            thread::sleep(Duration::from_millis(1));
        } else {
            thread::yield_now();
        }
    }
    true
}

/// The signal that interrupts a worker in a system call. Virtual machine monitors use the first real-time
/// signal to kick their vCPUs.
fn wake_signal() -> libc::c_int {
    SIGRTMIN() + 1
}

/// Installs a handler that does nothing for the signal that interrupts threads. Without it, the signal would
/// end the process. Call it before a thread starts, and before the process is confined.
///
/// # Errors
///
/// Fails if the system refuses the signal handler.
pub fn prepare_signal() -> io::Result<()> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static PREPARED: OnceLock<Result<(), i32>> = OnceLock::new();
    let prepare = || register_signal_handler(wake_signal(), interrupt).map_err(|error| error.errno());
    PREPARED.get_or_init(prepare).map_err(io::Error::from_raw_os_error)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// A process that was stopped gives its thread the rest of its time.
    #[test]
    fn time_in_which_nothing_runs_does_not_count() {
        prepare_signal().unwrap();
        let (end, ended) = channel::<()>();
        let thread = thread::spawn(move || ended.recv());
        let mut looks = 0;
        let found = interrupted_until(&thread, Duration::from_millis(100), || {
            looks += 1;
            // Looks like a process that stood still.
            thread::sleep(Duration::from_millis(if looks == 1 { 300 } else { 0 }));
            looks == 5
        });
        assert!(found, "given up after {looks} looks");
        assert!(!ends_within(&thread, Duration::from_millis(100)), "it goes on");
        drop(end);
        assert!(ends_within(&thread, LIMIT));
        assert!(thread.join().unwrap().is_err());
    }
}
