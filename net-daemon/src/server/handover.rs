//! The running daemon's side of a hand-over. `crate::handover` has a diagram.
//!
//! The daemon serves up to the last step. If the new process fails before that, the daemon continues.

use std::os::unix::net::UnixStream;

use log::{error, info, warn};
use rustix::process::getpid;
use volt_net::state::Format;
use volt_program::logging;

use super::{Server, ServerError};
use crate::control::{Offer, Reply, answer};
use crate::handover;
use crate::state::FinalState;

impl Server {
    /// Hands everything over to the process behind `client`. Returns whether it did.
    pub(super) fn hand_over(
        &mut self,
        client: &UnixStream,
        formats: &[Format],
        program: &str,
    ) -> Result<bool, ServerError> {
        let refuse = |why: String| {
            warn!(event = "hand_over_refused", program; "not handed over to {program}: {why}");
            answer(client, &Reply::Refused(why));
            Ok(false)
        };
        let theirs = || formats.iter().map(Format::to_string).collect::<Vec<_>>().join(", ");
        let Some(format) = Format::in_common(formats) else {
            return refuse(format!(
                "this daemon writes the state formats 1 to {}, the new program reads {}",
                Format::NEWEST,
                theirs()
            ));
        };
        if self.device.filter().is_some() && !format.has_filter() {
            return refuse(format!(
                "this daemon filters its guest's frames, and the new program cannot: it reads the state \
                 formats {}, and only later ones have a filter",
                theirs()
            ));
        }
        let offered = {
            let (state, fds) = match self.export(format) {
                Ok(exported) => exported,
                Err(why) => return refuse(why),
            };
            let offer = Offer {
                pid: getpid().as_raw_nonzero().get(),
                supervised: self.supervisor.is_some(),
                fds: fds.iter().map(|(id, _)| *id).collect(),
                state,
            };
            let fds: Vec<_> = fds.into_iter().map(|(_, fd)| fd).collect();
            handover::offer(client, offer, &fds, &self.signals)
        };
        if let Err(why) = offered {
            warn!(event = "hand_over_refused", program; "not handed over to {program}: {why}");
            return Ok(false);
        }
        let gone = self.stop_and_go(client, format, program).unwrap_or_else(|error| {
            // The new process may own everything: clean up nothing.
            error!(
                target: logging::END, event = "hand_over_failed";
                "the hand-over failed: {}", volt_virtio::error_chain(&error)
            );
            logging::exit(1)
        });
        if gone {
            info!(target: logging::END, event = "handed_over", program; "handed over to {program}");
        } else {
            warn!(
                event = "hand_over_undone", program;
                "{program} disappeared in the last step: this daemon continues"
            );
            self.resume_after_refusal()?;
        }
        Ok(gone)
    }

    /// Carries out the last steps. Returns whether the new process has been told to start.
    fn stop_and_go(
        &mut self,
        client: &UnixStream,
        format: Format,
        program: &str,
    ) -> Result<bool, ServerError> {
        let mut broken = Vec::new();
        if let Some(connection) = &mut self.connection {
            connection.session.pause(&mut self.device)?;
            broken = connection.session.broken();
        }
        let last = FinalState { run_state: self.device.run_state(format), broken };
        if handover::send_last(client, &last).is_err() {
            return Ok(false);
        }
        match self.supervisor.as_ref().map(|supervisor| supervisor.hand_over(client, program)) {
            Some(Ok(())) => return Ok(false),
            Some(Err(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                self.lose_supervisor(&error);
            }
            Some(Err(error)) => {
                // The supervisor may have told the new process to start. This one must not touch anything.
                warn!(
                    target: logging::END, event = "supervisor_gone";
                    "the supervisor ended during the hand-over: {error}"
                );
                return Ok(true);
            }
            None => {}
        }
        Ok(handover::send_go(client).is_ok())
    }

    fn resume_after_refusal(&mut self) -> Result<(), ServerError> {
        if let Some(connection) = &mut self.connection {
            connection.session.resume(&mut self.device);
            self.pending.messages = true;
        }
        Ok(())
    }
}
