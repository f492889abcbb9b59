//! Commits under a supervisor: with the end of each request, the worker sends its state and the reply to the
//! supervisor, which answers the front-end.
//!
//! ```text
//! front-end        supervisor                      this process
//!    |--- request ---->|                                |
//!    |                 |<-- read ----- message -------->|  the supervisor keeps it for the next worker
//!    |                 |                                |  carries out the request
//!    |                 |<-- commit: state, reply -------|
//!    |<-- reply -------|--- held ---------------------->|
//! ```
//!
//! Whenever this process dies, a request has either not happened, and the next worker receives it, or it has
//! happened and is answered.

use std::io;

use log::warn;
use volt_net::state::Format;
use volt_vhost_user::channel::ChannelError;

use super::Server;
use crate::connection::Ended;
use crate::metrics::listener::MetricsListener;
use crate::supervision::{Answer, Observed};

impl Server {
    /// Sends the state to the supervisor, if there is one.
    pub(super) fn commit(&mut self) {
        // A commit without an answer cannot fail in a way that matters to the front-end.
        let _ = self.commit_with(None);
    }

    /// Like [`commit`](Self::commit), but with the reply to a request. Returns the number of bytes that the
    /// front-end has not accepted; `None` if this process must send the reply itself.
    fn commit_with(&mut self, answer: Option<&Answer>) -> Result<Option<usize>, ChannelError> {
        let is_answer = answer.is_some();
        let Some(mut supervisor) = self.supervisor.take() else { return Ok(None) };
        let (state, fds) = match self.export(Format::NEWEST) {
            Ok(exported) => exported,
            Err(why) => {
                warn!(event = "state_not_kept"; "the supervisor does not have the latest state: {why}");
                self.supervisor = Some(supervisor);
                return Ok(None);
            }
        };
        let unsent = self.connection.as_ref().map_or(&[][..], |connection| connection.channel.unsent());
        let observed = Observed {
            pairs: self.device.pairs(),
            counters: self.device.counters_id(),
            metrics: self.metrics.as_ref().map(MetricsListener::id),
        };
        match supervisor.commit(state, &fds, unsent, answer, observed) {
            Ok(unsent) => {
                self.supervisor = Some(supervisor);
                Ok(Some(unsent))
            }
            Err(error) => {
                self.lose_supervisor(&error);
                match error.kind() {
                    // The supervisor has not read the commit.
                    io::ErrorKind::BrokenPipe => Ok(None),
                    // The supervisor may have answered. No reply is better than two.
                    _ if is_answer => Err(error.into()),
                    _ => Ok(None),
                }
            }
        }
    }

    pub(super) fn lose_supervisor(&mut self, error: &io::Error) {
        warn!(event = "supervisor_gone"; "the supervisor is gone; this daemon continues alone: {error}");
        self.supervisor = None;
        // From now on, termination signals reach this process only.
        if let Err(error) = self.blocked.unblock() {
            warn!(event = "signals_stay_blocked"; "termination signals stay blocked: {error}");
        }
        if let Err(error) = self.serve_metrics() {
            warn!(event = "metrics_not_served"; "metrics are no longer served: {error}");
        }
    }

    /// Ends a request with its reply, which the supervisor sends if there is one.
    pub(super) fn conclude(&mut self, reply: Vec<u8>) -> Result<(), Ended> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let answer = Answer { connection: connection.channel.id(), reply };
        let unsent = self.commit_with(Some(&answer))?;
        let Some(connection) = &mut self.connection else { return Ok(()) };
        match unsent {
            Some(unsent) => connection.channel.sent(&answer.reply, unsent),
            None => connection.channel.send(&answer.reply)?,
        }
        Ok(())
    }

    /// Sends the rest of earlier replies. Returns whether all is sent.
    pub(super) fn flush(&mut self) -> Result<bool, Ended> {
        let Some(connection) = &mut self.connection else { return Ok(false) };
        if self.supervisor.is_none() || connection.channel.unsent().is_empty() {
            return Ok(connection.channel.flush()?);
        }
        self.conclude(Vec::new())?;
        Ok(self.connection.as_ref().is_some_and(|connection| connection.channel.unsent().is_empty()))
    }
}
