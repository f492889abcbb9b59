//! Threads that can be stopped whatever system call holds them: a queue pair's worker, the control queue's
//! relay.

use std::io;
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use thiserror::Error;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// After this long without an answer, a thread is woken from whatever call it is stuck in.
const PATIENCE: Duration = Duration::from_millis(20);
/// After this long, it is given up.
pub(crate) const LIMIT: Duration = Duration::from_secs(2);
/// The longest that counts between two looks at a thread. More passes where the whole process stands still
/// (SIGSTOP, a frozen cgroup, a virtual machine that gets no processor), and then the thread does, too.
const MOST_AT_A_TIME: Duration = Duration::from_millis(20);

/// What a thread of this library, or of one on top of it, is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Moves the frames of a queue pair.
    Pair,
    /// Reads and writes the descriptors of a vring that another thread serves.
    Vring,
    /// Finds out whether descriptors of a front-end can be used.
    Descriptors,
}

static ON_START: OnceLock<fn(ThreadKind)> = OnceLock::new();

/// Has each thread that is made from now on call `act` before anything else, whichever device it is for. It
/// is for a program that confines its threads. Only the first call counts.
pub fn on_start(act: fn(ThreadKind)) {
    let _ = ON_START.set(act);
}

/// Called by each thread, first of all.
pub fn started(kind: ThreadKind) {
    if let Some(act) = ON_START.get() {
        act(kind);
    }
}

/// Why a worker has no pair to give back.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// Its thread or one of its descriptors could not be made.
    #[error("cannot start a worker")]
    Start(#[source] io::Error),
    /// A kick descriptor that cannot be waited for.
    #[error("cannot wait for the kick descriptor of vring {0}")]
    Kick(usize, #[source] io::Error),
    /// It does not answer: the kernel holds it, for instance in memory of the front-end that never comes.
    #[error("the worker of a queue pair did not stop within {} s", LIMIT.as_secs())]
    Stuck,
    /// It panicked, which is an error of this program.
    #[error("the worker of a queue pair panicked")]
    Panicked,
}

/// Takes back what a thread that has been told to stop returns.
pub(crate) fn join<T>(thread: JoinHandle<T>) -> Result<T, WorkerError> {
    if !ends_within(&thread, LIMIT) {
        return Err(WorkerError::Stuck);
    }
    thread.join().map_err(|_| WorkerError::Panicked)
}

/// Waits for a thread that has been told to stop, and interrupts it. Whether it has ended.
pub(crate) fn ends_within<T>(thread: &JoinHandle<T>, limit: Duration) -> bool {
    interrupted_until(thread, limit, || thread.is_finished())
}

/// Interrupts a thread in its system calls until `done`. Whether that has come.
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
            // A front-end that makes a call descriptor blocking again can hold a thread in write().
            let _ = thread.kill(wake_signal());
            thread::sleep(Duration::from_millis(1));
        } else {
            thread::yield_now();
        }
    }
    true
}

/// The signal that gets a worker out of a system call. The first real-time signal is left to virtual machine
/// monitors, which kick their vCPUs by it.
fn wake_signal() -> libc::c_int {
    SIGRTMIN() + 1
}

/// Lets threads be interrupted in system calls: the signal does nothing else, where it would end the process.
/// For whoever starts one, and for who confines the process before that.
///
/// # Errors
///
/// When the system refuses the signal handler.
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

    /// A process that was stopped gives its thread the time that it had left.
    #[test]
    fn time_in_which_nothing_runs_does_not_count() {
        prepare_signal().unwrap();
        let (end, ended) = channel::<()>();
        let thread = thread::spawn(move || ended.recv());
        let mut looks = 0;
        let found = interrupted_until(&thread, Duration::from_millis(100), || {
            looks += 1;
            // As it looks from here when all of the process stands still.
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
