//! The thread that serves one ring. It sleeps until a kick, then serves chains until there are none. While
//! the machine is paused, it waits at the [`PauseGate`].
//!
//! It needs a thread but no further file, so that a device's control vring works even if the process may open
//! no more files.
#![expect(unsafe_code, reason = "EventFd gives its descriptor only as a number")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use log::error;
use rustix::event::{PollFd, PollFlags, poll};
use vmm_sys_util::eventfd::EventFd;
use volt_virtio::error_chain;

use crate::board::pause_gate::{Member, PauseGate};
use crate::faults;
use crate::sandbox::{self, lists::WORKER};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::ring::Ring;

/// A running thread. Dropping it ends the thread after the request in progress, and waits for that.
pub struct Worker {
    stop: Arc<Stop>,
    gate: Arc<PauseGate>,
    thread: Option<JoinHandle<()>>,
}

/// Tells a worker to end, or to come to the gate. The flag is read between requests. A kick ends the worker's
/// sleep.
struct Stop {
    asked: AtomicBool,
    kick: Arc<EventFd>,
}

impl Stop {
    fn wake(&self) {
        // Fails only if the counter is full, and then the worker does not sleep.
        let _ = self.kick.write(1);
    }
}

impl Worker {
    /// Starts a thread that serves `ring` with `request` (see [`Ring::serve`]) while `gate` is open. `label`
    /// names the device in the log, `thread` names the thread in process listings.
    ///
    /// # Errors
    ///
    /// Fails if the process may have no more threads.
    pub fn spawn(
        label: &str,
        thread: &str,
        gate: &Arc<PauseGate>,
        ring: Ring,
        request: impl FnMut(Result<&Chain<'_>, ChainError>) -> u32 + Send + 'static,
    ) -> io::Result<Worker> {
        let stop = Arc::new(Stop { asked: AtomicBool::new(false), kick: ring.kick().clone() });
        let (label, its_stop, to_kick) = (label.to_owned(), stop.clone(), stop.clone());
        let member = gate.join(&label, move || to_kick.wake());
        let thread = sandbox::spawn(&WORKER, thread, move || {
            run(&label, ring, request, &its_stop, &member);
        })?;
        Ok(Worker { stop, gate: gate.clone(), thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.asked.store(true, Ordering::Release);
        self.stop.wake();
        self.gate.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!(event = "thread_panicked"; "a device's thread ended with a panic");
        }
    }
}

fn run(
    label: &str,
    mut ring: Ring,
    mut request: impl FnMut(Result<&Chain<'_>, ChainError>) -> u32,
    stop: &Stop,
    member: &Member,
) {
    let asked = || stop.asked.load(Ordering::Acquire);
    loop {
        if let Err(error) = wait_readable(ring.kick()) {
            return error!(
                event = "device_wait_failed", device:% = label;
                "{label}: stopped: waiting for the guest failed: {error}"
            );
        }
        let _ = ring.kick().read();
        loop {
            // Between two requests, because a guest could keep this loop busy forever.
            member.pass(asked);
            if asked() {
                return;
            }
            match ring.serve(&mut request) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    if faults::may_log() {
                        error!(
                            event = "device_stopped", device:% = label;
                            "{label}: stopped until the guest resets it: {}", error_chain(&error)
                        );
                    }
                    return ring.give_up();
                }
            }
        }
    }
}

/// Waits until `eventfd` is written, or for less.
fn wait_readable(eventfd: &EventFd) -> io::Result<()> {
    // SAFETY: the eventfd is open as long as the reference, which outlives this call.
    let fd = unsafe { BorrowedFd::borrow_raw(eventfd.as_raw_fd()) };
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
