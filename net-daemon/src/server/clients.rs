//! Clients of the control socket.
//!
//! Each connection carries one request, which is answered at once. Only a capture client stays connected. The
//! main thread waits for no client: it reads from a client that has begun to send. If too many clients are
//! silent, it disconnects the oldest.

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

/// Highest number of clients without a request.
const CLIENTS: usize = 8;

impl Server {
    /// Accepts a client of the control socket.
    pub(super) fn accept_client(&mut self) -> io::Result<()> {
        let Some(control) = &self.control else { return Ok(()) };
        let client = match control.accept() {
            Ok(client) => client,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                warn!(
                    event = "control_accept_failed";
                    "cannot accept a client of the control socket: {error}"
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
        // The oldest client had long enough to send its request.
        if self.clients.len() >= CLIENTS
            && let Some(oldest) = self.clients.pop_front()
        {
            self.poller.remove(&oldest)?;
        }
        self.poller.add(&client, EventFlags::IN | EventFlags::RDHUP, Token::Client)?;
        self.clients.push_back(client);
        Ok(())
    }

    /// Answers the clients that have sent something.
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
                Ok(Request::Policy(request)) => {
                    answer(&client, &self.policy(request)?.map_or_else(Reply::Refused, Reply::Policy));
                }
                Ok(Request::Capture(options)) => self.capture(client, options)?,
                Ok(Request::TakeOver { formats, program }) => {
                    if self.hand_over(&client, &formats, &program)? {
                        return Ok(Some(End::GivenAway));
                    }
                }
                // The client disconnected, or speaks another protocol.
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
