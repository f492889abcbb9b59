//! What the interface's errors say about it, told once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{info, warn};
use volt_virtio::notify::Notifier;

/// The interface as a pair's worker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fine,
    /// Set down: comes back by itself.
    Down,
    /// Deleted: must be opened again.
    Gone,
}

/// Tells whoever can open the interface again that it is gone.
#[derive(Clone, Debug)]
pub struct GoneFlag {
    gone: Arc<AtomicBool>,
    wake: Arc<Notifier>,
}

impl GoneFlag {
    /// A flag that notifies `wake` when it is raised.
    pub fn new(wake: Arc<Notifier>) -> GoneFlag {
        GoneFlag { gone: Arc::default(), wake }
    }

    /// Whether it was raised since the last call.
    pub fn take(&self) -> bool {
        self.gone.swap(false, Ordering::Relaxed)
    }

    fn raise(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.wake.notify();
    }
}

/// Sorts a port's errors and logs changes.
#[derive(Debug)]
pub struct Health {
    name: String,
    state: State,
    gone: GoneFlag,
}

/// What to do with a frame that the port did not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Later again: the port is full, or there is nothing to receive.
    Wait,
    /// The frame itself is refused.
    Refused,
    /// There is no interface to take it.
    NoPort,
}

impl Health {
    /// Of the port called `name`, taken to be fine.
    pub fn new(name: String, gone: GoneFlag) -> Health {
        Health { name, state: State::Fine, gone }
    }

    /// A call worked.
    #[inline(always)]
    pub fn works(&mut self) {
        if self.state != State::Fine {
            info!("{}: up again", self.name);
            self.state = State::Fine;
        }
    }

    /// A call failed with `error`.
    #[cold]
    pub fn failed(&mut self, error: &io::Error) -> Verdict {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Verdict::Wait,
            Some(libc::EIO | libc::ENETDOWN) => {
                if self.state != State::Down {
                    warn!("{} is down: frames of the guest are dropped until it is up", self.name);
                    self.state = State::Down;
                }
                Verdict::NoPort
            }
            Some(
                libc::EBADFD
                | libc::ENODEV
                | libc::ENOTCONN
                | libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::EPIPE,
            ) => {
                if self.state != State::Gone {
                    warn!("{} is gone: frames of the guest are dropped until it is back", self.name);
                    self.state = State::Gone;
                    self.gone.raise();
                }
                Verdict::NoPort
            }
            _ => Verdict::Refused,
        }
    }
}
