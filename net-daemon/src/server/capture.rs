//! The client of the control socket that captures frames.
//!
//! The daemon gives it the memory that frames are copied to, and expects no further messages. The capture
//! lasts as long as the connection. Only one client captures at a time.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use volt_net::capture::{Capture, CaptureOptions};
use volt_net::state::transfer;
use volt_program::unix::peer_process;
use volt_virtio::error_chain;
use volt_virtio::poller::EventFlags;

use super::{Server, ServerError, Token};
use crate::control::{Capturing, Reply, answer};
use crate::status;

impl Server {
    /// Captures frames for `client`, or sends it the reason for a refusal.
    pub(super) fn capture(&mut self, client: UnixStream, options: CaptureOptions) -> Result<(), ServerError> {
        // The event for the old client's end may come after the new client's request.
        if self.capture_client.as_ref().is_some_and(is_gone) {
            self.end_capture()?;
        }
        let capture = match self.new_capture(options) {
            Ok(capture) => capture,
            Err(why) => {
                answer(&client, &Reply::Refused(why));
                return Ok(());
            }
        };
        let begun = Capturing { interface: self.device.port_name().to_owned(), pairs: capture.pairs() };
        self.change_device(|device| device.set_capture(Some(capture.clone())))?;
        info!(
            event = "capture_begun", interface:% = begun.interface;
            "{}: capturing frames of queue pairs {:?}{}", begun.interface, begun.pairs, by(&client)
        );
        self.poller.add(&client, EventFlags::RDHUP, Token::Capture)?;
        let file = capture.file().map(AsFd::as_fd);
        // If the client has disconnected meanwhile, the next event ends the capture.
        let _ = transfer::send(&client, &Reply::Capture(begun), file.as_slice());
        self.capture_client = Some(client);
        Ok(())
    }

    fn new_capture(&self, options: CaptureOptions) -> Result<Capture, String> {
        if let Some(capture_client) = &self.capture_client {
            return Err(format!("a capture is already running{}: end it first", by(capture_client)));
        }
        let pairs = self.device.pairs();
        if let Some(pair) = options.pair.filter(|pair| *pair >= pairs) {
            return Err(format!(
                "there is no queue pair {pair}: this daemon has queue pairs 0 to {}",
                pairs - 1
            ));
        }
        Capture::new(options, pairs).map_err(|error| {
            let why = error_chain(&error);
            warn!(event = "capture_failed"; "cannot capture frames: {why}");
            why
        })
    }

    /// Ends the capture after its client has disconnected.
    pub(super) fn end_capture(&mut self) -> Result<(), ServerError> {
        let Some(capture_client) = self.capture_client.take() else { return Ok(()) };
        self.poller.remove(&capture_client)?;
        if let Some(capture) = self.device.capture() {
            let (frames, lost) = (capture.frames(), capture.lost());
            let interface = self.device.port_name();
            info!(
                event = "capture_ended", interface, frames, lost;
                "{interface}: captured {frames} frames, lost {lost}"
            );
        }
        self.change_device(|device| device.set_capture(None))
    }

    /// Returns the capture's part of the status.
    pub(super) fn capture_status(&self) -> Option<status::Capture> {
        let capture = self.device.capture()?;
        let (pair, frames, lost) = (capture.options().pair, capture.frames(), capture.lost());
        Some(status::Capture { pair, frames, lost })
    }
}

/// Names the client's process, if its number is known.
fn by(client: &UnixStream) -> String {
    peer_process(client).map_or(String::new(), |pid| format!(" by process {pid}"))
}

fn is_gone(client: &UnixStream) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut [PollFd::new(client, PollFlags::RDHUP)], Some(&now)), Ok(1))
}
