//! Clients of the control socket.
//!
//! One request a connection, which is answered at once; only who captures frames keeps its connection. The
//! main thread waits for none: a client is read when it has begun to send, and the oldest of too many that
//! say nothing has to go.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use volt_program::unix::check_user;
use volt_virtio::poller::EventFlags;

use super::{End, Server, ServerError, Token};
use crate::control::{Reply, Request, answer, read};

/// Most clients that have not said what they want.
const CLIENTS: usize = 8;

impl Server {
    /// Takes a client of the control socket.
    pub(super) fn accept_client(&mut self) -> io::Result<()> {
        let Some(control) = &self.control else { return Ok(()) };
        let client = match control.accept() {
            Ok(client) => client,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                warn!(
                    event = "control_accept_failed";
                    "accepting a client of the control socket failed: {error}"
                );
                std::thread::sleep(Duration::from_millis(10));
                return Ok(());
            }
        };
        if let Err(stranger) = check_user(&client) {
            let why = format!("{stranger} may not control this daemon");
            warn!(event = "control_refused"; "{why}");
            answer(&client, &Reply::Refused(why));
            return Ok(());
        }
        // The oldest has had its time.
        if self.clients.len() >= CLIENTS
            && let Some(oldest) = self.clients.pop_front()
        {
            self.poller.remove(&oldest)?;
        }
        self.poller.add(&client, EventFlags::IN | EventFlags::RDHUP, Token::Client)?;
        self.clients.push_back(client);
        Ok(())
    }

    /// Answers the clients that have said something.
    pub(super) fn serve_clients(&mut self) -> Result<Option<End>, ServerError> {
        for _ in 0..self.clients.len() {
            let Some(client) = self.clients.pop_front() else { break };
            if !is_readable(&client) {
                self.clients.push_back(client);
                continue;
            }
            self.poller.remove(&client)?;
            match read(&client) {
                Ok(Request::Status) => answer(&client, &Reply::Status(json!(self.status()))),
                Ok(Request::Metrics) => answer(&client, &Reply::Metrics(self.metrics_text())),
                Ok(Request::Limits(change)) => {
                    self.change_limits(change)?;
                    answer(&client, &Reply::Limits(json!(self.limits())));
                }
                Ok(Request::Capture(options)) => self.capture(client, options)?,
                Ok(Request::TakeOver { formats, program }) => {
                    if self.hand_over(&client, &formats, &program)? {
                        return Ok(Some(End::GivenAway));
                    }
                }
                // It went away, or speaks something else.
                Err(_) => {}
            }
        }
        Ok(None)
    }
}

fn is_readable(client: &UnixStream) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(client, PollFlags::IN)], Some(&now)), Ok(1))
}
