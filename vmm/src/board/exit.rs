//! The end of a virtual machine, and the exit status of the process.
//!
//! Every thread may request the end with [`ExitEvent::request`]. The first reason counts. The main thread
//! waits for the event, stops the vCPUs and turns the reason into the exit status.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::board::vcpu_error::VcpuError;

/// Exit statuses besides 0 (the guest powered off, or the user ended the machine) and 128 + N (signal N).
pub mod status {
    /// The machine could not be built, or broke.
    pub const ERROR: u8 = 1;
    /// The command line is wrong (clap uses the same).
    pub const USAGE: u8 = 2;
    /// The guest asked for a reset, or its processor shut down by a triple fault.
    pub const RESET: u8 = 3;
    /// The host's KVM cannot run this guest.
    pub const KVM: u8 = 4;
    /// A panic: a bug in this program.
    pub const PANIC: u8 = 101;
}

/// Why the machine ends.
#[derive(Debug)]
pub enum ExitReason {
    /// The guest wrote to the sleep control register.
    PowerOff,
    /// The guest asked for a reset, in this way.
    Reset(&'static str),
    /// The guest's processor shut down.
    TripleFault,
    /// The user typed Ctrl-A x.
    UserQuit,
    /// A client of the API ended the machine.
    Api,
    /// This process got a signal.
    Signal(i32),
    /// A vCPU's thread cannot start.
    Thread(io::Error),
    /// A vCPU cannot continue.
    Vcpu(VcpuError),
    /// The main thread cannot wait for events.
    Console(io::Error),
}

impl ExitReason {
    /// Returns the exit status of the process.
    pub fn status(&self) -> u8 {
        match self {
            ExitReason::PowerOff | ExitReason::UserQuit | ExitReason::Api => 0,
            ExitReason::Reset(_) | ExitReason::TripleFault => status::RESET,
            ExitReason::Signal(number) => signal_status(*number),
            ExitReason::Vcpu(error) if error.is_host_limit() => status::KVM,
            ExitReason::Thread(_) | ExitReason::Vcpu(_) | ExitReason::Console(_) => status::ERROR,
        }
    }
}

/// Returns the exit status after signal `number`, like shells.
pub fn signal_status(number: i32) -> u8 {
    u8::try_from(number).map_or(u8::MAX, |number| number.saturating_add(128))
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitReason::PowerOff => write!(f, "the guest powered off"),
            ExitReason::Reset(how) => write!(f, "the guest asked for a reset through {how}"),
            ExitReason::TripleFault => write!(f, "the guest's processor shut down by a triple fault"),
            ExitReason::UserQuit => write!(f, "ended by Ctrl-A x"),
            ExitReason::Api => write!(f, "shut down by the API"),
            ExitReason::Signal(number) => {
                write!(f, "signal {number} ({})", volt_program::signals::name(*number))
            }
            ExitReason::Thread(_) => write!(f, "a vCPU's thread cannot start"),
            ExitReason::Vcpu(_) => write!(f, "a vCPU stopped"),
            ExitReason::Console(_) => write!(f, "the event loop failed"),
        }
    }
}

/// Requests and waits for the end of a machine.
pub struct ExitEvent {
    event: EventFd,
    reason: OnceLock<ExitReason>,
    watched: AtomicBool,
}

impl ExitEvent {
    /// Creates an event without a request.
    ///
    /// # Errors
    ///
    /// Fails if the process may open no more files.
    pub fn new() -> io::Result<ExitEvent> {
        Ok(ExitEvent {
            event: EventFd::new(EFD_NONBLOCK)?,
            reason: OnceLock::new(),
            watched: AtomicBool::new(false),
        })
    }

    /// Requests the end. Returns `false` if it was requested before.
    pub fn request(&self, reason: ExitReason) -> bool {
        let first = self.reason.set(reason).is_ok();
        // Fails only if the counter is full, and then it is readable already.
        let _ = self.event.write(1);
        first
    }

    /// Wakes the main thread without a request.
    pub fn wake(&self) {
        let _ = self.event.write(1);
    }

    /// Ends the effect of [`ExitEvent::wake`]. A request stays visible to all waiting threads.
    pub fn clear_wake(&self) {
        let _ = self.event.read();
        if self.is_requested() {
            self.wake();
        }
    }

    /// Returns the first request.
    pub fn reason(&self) -> Option<&ExitReason> {
        self.reason.get()
    }

    /// Records that the main thread waits for requests from now on.
    pub fn watch(&self) {
        self.watched.store(true, Ordering::SeqCst);
    }

    /// Returns whether a thread waits for requests.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Ordering::SeqCst)
    }

    /// Returns whether the end was requested.
    pub fn is_requested(&self) -> bool {
        self.reason.get().is_some()
    }
}

impl AsFd for ExitEvent {
    #[expect(unsafe_code, reason = "EventFd gives its descriptor only as a number")]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd stays open as long as `self`, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts() {
        let exit = ExitEvent::new().unwrap();
        assert!(!exit.is_requested());
        assert!(exit.request(ExitReason::Reset("the test")));
        assert!(!exit.request(ExitReason::PowerOff));
        assert_eq!(exit.reason().map(ExitReason::status), Some(status::RESET));
    }

    #[test]
    fn a_wake_is_cleared_and_a_request_is_not() {
        let exit = ExitEvent::new().unwrap();
        exit.wake();
        exit.clear_wake();
        assert!(exit.event.read().is_err());
        exit.request(ExitReason::PowerOff);
        exit.clear_wake();
        assert!(exit.event.read().is_ok());
    }

    #[test]
    fn statuses_tell_the_ends_apart() {
        assert_eq!(ExitReason::PowerOff.status(), 0);
        assert_eq!(ExitReason::Signal(15).status(), 143);
        assert_eq!(ExitReason::Signal(-1).status(), 255);
        assert_eq!(ExitReason::TripleFault.status(), 3);
    }
}
