//! The condition of the interface, derived from its errors and logged once for each change.

use std::io;

use log::{info, warn};

use crate::port::FILTERED;
use crate::trouble::Trouble;

/// The interface as a worker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Fine,
    /// Set down; recovers by itself.
    Down,
    /// Deleted; must be reopened.
    Gone,
}

/// Classifies a port's errors and logs changes.
#[derive(Debug)]
pub struct Health {
    name: String,
    state: State,
    trouble: Trouble,
}

/// How to treat a frame that the port did not accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again later: the port is full, or has nothing to receive.
    Wait,
    /// The port refuses this frame.
    Refused,
    /// There is no interface.
    NoPort,
}

impl Health {
    /// Creates it for the port called `name`, which is assumed to work.
    pub fn new(name: String, trouble: Trouble) -> Health {
        Health { name, state: State::Fine, trouble }
    }

    /// Notes that a call succeeded.
    #[inline(always)]
    pub fn works(&mut self) {
        if self.state != State::Fine {
            info!(event = "interface_up", interface:% = self.name; "{}: up again", self.name);
            self.state = State::Fine;
        }
    }

    /// Classifies `error`, with which a call failed. `None`: a filter refused the frame, and has recorded it.
    #[cold]
    #[inline(never)]
    pub fn failed(&mut self, error: &io::Error) -> Option<Verdict> {
        Some(match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR) => Verdict::Wait,
            Some(FILTERED) => return None,
            Some(libc::EIO | libc::ENETDOWN) => {
                if self.state != State::Down {
                    warn!(
                        event = "interface_down", interface:% = self.name;
                        "{} is down: frames of the guest are dropped until it is up", self.name
                    );
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
            ) => self.is_gone(None),
            // A port without a descriptor makes its own errors.
            None => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Verdict::Wait,
                io::ErrorKind::BrokenPipe | io::ErrorKind::InvalidData => self.is_gone(Some(error)),
                _ => Verdict::Refused,
            },
            Some(_) => Verdict::Refused,
        })
    }

    /// `why`: an error of the port's own, which may say more than its kind.
    fn is_gone(&mut self, why: Option<&io::Error>) -> Verdict {
        if self.state != State::Gone {
            let why = why.and_then(io::Error::get_ref);
            let why = why.map_or_else(String::new, |why| format!(" ({why})"));
            warn!(
                event = "interface_gone", interface:% = self.name;
                "{} is gone{why}: frames of the guest are dropped until it is back", self.name
            );
            self.state = State::Gone;
            self.trouble.port_is_gone();
        }
        Verdict::NoPort
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::notifier;

    /// Errors of a port without a descriptor count like those of the system (`PortQueue::recv`).
    #[test]
    fn errors_that_a_port_made_itself_are_understood() {
        let trouble = Trouble::new(0, notifier());
        let mut health = Health::new("wire".into(), trouble.clone());
        let mut verdict = |error: io::Error| (health.failed(&error).unwrap(), trouble.take_port_gone());
        for (own, systems) in [
            (io::ErrorKind::WouldBlock, libc::EAGAIN),
            (io::ErrorKind::Interrupted, libc::EINTR),
            (io::ErrorKind::InvalidInput, libc::EINVAL),
        ] {
            assert_eq!(verdict(own.into()), verdict(io::Error::from_raw_os_error(systems)), "{own}");
        }
        assert_eq!(verdict(io::ErrorKind::WouldBlock.into()), (Verdict::Wait, false));
        assert_eq!(verdict(io::ErrorKind::InvalidInput.into()), (Verdict::Refused, false));
        assert_eq!(verdict(io::ErrorKind::BrokenPipe.into()), (Verdict::NoPort, true));
        assert_eq!(verdict(io::ErrorKind::BrokenPipe.into()), (Verdict::NoPort, false));
    }
}
