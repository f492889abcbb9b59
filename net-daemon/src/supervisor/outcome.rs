//! The consequence of a worker's end.

use log::error;
use rustix::process::WaitStatus;
use volt_program::signals::name;

use super::{Supervisor, UNUSABLE};

/// Exit status of a worker that violated its sandbox.
const VIOLATION: i32 = volt_sandbox::violation::STATUS;

/// The end of a worker.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The worker ended by itself, with this status.
    Ended(u8),
    /// The worker could not use the state.
    Unusable,
    /// The worker died. The text says how.
    Died(String),
    /// A successor has taken over.
    GivenAway,
}

impl Supervisor<'_> {
    /// Determines the outcome of a worker's exit status.
    pub(super) fn over(&mut self, status: Option<WaitStatus>) -> Outcome {
        let exited = status.and_then(|status| status.exit_status());
        let signalled = status.and_then(|status| status.terminating_signal());
        match (exited, signalled) {
            // Another worker could not use the state either.
            (Some(UNUSABLE), _) => Outcome::Unusable,
            (Some(status), _) if status == 0 || self.is_over() => {
                Outcome::Ended(u8::try_from(status).unwrap_or(1))
            }
            (_, Some(signal)) if self.is_over() => {
                error!(event = "worker_ended"; "the worker was ended by {}", name(signal));
                Outcome::Ended(1)
            }
            // SIGSYS: the signal was blocked, as during the creation of a thread, so its handler did not run.
            (Some(VIOLATION), _) | (_, Some(libc::SIGSYS)) if self.deaths.violates_again() => {
                error!(
                    event = "workers_given_up";
                    "workers violate their sandbox again and again: no new worker is started"
                );
                Outcome::Ended(VIOLATION as u8)
            }
            (Some(status), _) => Outcome::Died(format!("ended with status {status}")),
            (_, Some(signal)) => Outcome::Died(format!("was ended by {}", name(signal))),
            (None, None) => Outcome::Died(format!("{status:?}")),
        }
    }

    /// Returns whether no new worker starts after this one.
    fn is_over(&self) -> bool {
        self.told || self.held.state.is_none() || self.predecessor.is_some()
    }
}
