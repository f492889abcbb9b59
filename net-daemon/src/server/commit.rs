//! Below a supervisor: the state is left there with the end of each request, which is the supervisor's to
//! answer.
//!
//! ```text
//! front-end        supervisor                      this process
//!    |--- request ---->|                                |
//!    |                 |<-- read ---- what comes -----> |  it is kept, for the next process
//!    |                 |                                |  carries it out
//!    |                 |<-- commit: state, reply -------|
//!    |<-- reply -------|--- held -------------------->  |
//! ```
//!
//! Whenever this process dies, the request has either not happened, and the next process gets it, or it has
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
    /// Leaves the state with the supervisor, if there is one.
    pub(super) fn commit(&mut self) {
        // Without an answer nothing can come of it.
        let _ = self.commit_with(None);
    }

    /// The same with the end of a request. Returns the bytes that the front-end has not taken; `None` where
    /// the request is this process's to end.
    fn commit_with(&mut self, answer: Option<&Answer>) -> Result<Option<usize>, ChannelError> {
        let is_answer = answer.is_some();
        let Some(mut supervisor) = self.supervisor.take() else { return Ok(None) };
        let (state, fds) = match self.export(Format::NEWEST) {
            Ok(exported) => exported,
            Err(why) => {
                warn!(event = "state_not_kept"; "this daemon is not left with its supervisor: {why}");
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
                    // Nobody has read it.
                    io::ErrorKind::BrokenPipe => Ok(None),
                    // Whether the request is answered is not known: better none than two.
                    _ if is_answer => Err(error.into()),
                    _ => Ok(None),
                }
            }
        }
    }

    pub(super) fn lose_supervisor(&mut self, error: &io::Error) {
        warn!(event = "supervisor_gone"; "the supervisor is gone, this daemon goes on without one: {error}");
        self.supervisor = None;
        // From here on whoever wants to end this daemon has to tell it directly.
        if let Err(error) = self.blocked.unblock() {
            warn!(event = "signals_stay_blocked"; "signals stay blocked: {error}");
        }
        if let Err(error) = self.serve_metrics() {
            warn!(event = "metrics_not_served"; "metrics are not served any more: {error}");
        }
    }

    /// Ends a request with its reply: by the supervisor where there is one.
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

    /// Sends what is left of replies; whether all has gone.
    pub(super) fn flush(&mut self) -> Result<bool, Ended> {
        let Some(connection) = &mut self.connection else { return Ok(false) };
        if self.supervisor.is_none() || connection.channel.unsent().is_empty() {
            return Ok(connection.channel.flush()?);
        }
        self.conclude(Vec::new())?;
        Ok(self.connection.as_ref().is_some_and(|connection| connection.channel.unsent().is_empty()))
    }
}
