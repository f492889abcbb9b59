//! What the end of a worker comes to.

use log::error;
use rustix::process::WaitStatus;
use volt_program::signals::name;

use super::{Supervisor, UNUSABLE};

/// Status of a worker that did what is not in its list.
const VIOLATION: i32 = volt_sandbox::violation::STATUS;

/// How a worker's time is over.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It ended by itself, with this status.
    Ended(u8),
    /// It could not go on with the state.
    Unusable,
    /// It died.
    Died(String),
    /// Another daemon has everything now.
    GivenAway,
}

impl Supervisor<'_> {
    /// What a worker's end comes to.
    pub(super) fn over(&mut self, status: Option<WaitStatus>) -> Outcome {
        let exited = status.and_then(|status| status.exit_status());
        let signalled = status.and_then(|status| status.terminating_signal());
        match (exited, signalled) {
            // One that has never served would not do better the next time.
            (Some(UNUSABLE), _) => Outcome::Unusable,
            (Some(status), _) if status == 0 || self.is_over() => {
                Outcome::Ended(u8::try_from(status).unwrap_or(1))
            }
            (_, Some(signal)) if self.is_over() => {
                error!(event = "worker_ended"; "the worker was ended by {}", name(signal));
                Outcome::Ended(1)
            }
            // Without its line where the signal was blocked, as in the middle of making a thread.
            (Some(VIOLATION), _) | (_, Some(libc::SIGSYS)) if self.deaths.violates_again() => {
                error!(
                    event = "workers_given_up";
                    "workers violate their sandbox again and again: no other one is started"
                );
                Outcome::Ended(VIOLATION as u8)
            }
            (Some(status), _) => Outcome::Died(format!("ended with status {status}")),
            (_, Some(signal)) => Outcome::Died(format!("was ended by {}", name(signal))),
            (None, None) => Outcome::Died(format!("{status:?}")),
        }
    }

    /// Whether a worker that dies now is the last one.
    fn is_over(&self) -> bool {
        self.told || self.held.state.is_none() || self.predecessor.is_some()
    }
}
