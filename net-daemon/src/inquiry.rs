//! Status queries of the metrics server or systemd's watchdog to the process that serves a guest. They come
//! from its supervisor, or from one of its own threads.
//!
//! Each [`Asker`] has its own line. It waits for an answer for a limited time. A late answer could be
//! mistaken for that to the next question, so both have numbers.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use volt_net::state::transfer;

use crate::status::Status;

/// Longest pause of either side within a message.
const LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Question(u64);

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    question: u64,
    status: Box<Status>,
}

/// The end of a line that asks.
#[derive(Debug)]
pub(crate) struct Asker {
    socket: UnixStream,
    asked: u64,
}

/// The end of a line that answers. It is readable when a question has arrived.
#[derive(Debug)]
pub(crate) struct Respondent(UnixStream);

/// Creates a line.
pub(crate) fn line() -> io::Result<(Asker, Respondent)> {
    let (asker, respondent) = UnixStream::pair()?;
    for end in [&asker, &respondent] {
        end.set_read_timeout(Some(LIMIT))?;
        end.set_write_timeout(Some(LIMIT))?;
    }
    Ok((Asker { socket: asker, asked: 0 }, Respondent(respondent)))
}

impl Asker {
    /// Asks, and waits at most `limit` for the answer.
    ///
    /// # Errors
    ///
    /// `TimedOut`: the line stays usable. Other errors: the other end is gone.
    pub(crate) fn ask(&mut self, limit: Duration) -> io::Result<Status> {
        self.begin()?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left))? == 0 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if let Some(status) = self.take()? {
                return Ok(status);
            }
        }
    }

    /// Asks without waiting. When the line is readable, [`Asker::take`] returns the answer.
    ///
    /// # Errors
    ///
    /// The other end is gone.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        self.asked += 1;
        transfer::send(&self.socket, &Question(self.asked), &[])
    }

    /// Takes an answer that has arrived; `None` for a late answer to an earlier question.
    ///
    /// # Errors
    ///
    /// The other end is gone.
    pub(crate) fn take(&mut self) -> io::Result<Option<Status>> {
        let (Answer { question, status }, _) = transfer::receive(&self.socket)?;
        Ok((question == self.asked).then_some(*status))
    }
}

impl Respondent {
    /// Takes a question and answers it with the result of `status`.
    ///
    /// # Errors
    ///
    /// The other end is gone.
    pub(crate) fn answer(&self, status: impl FnOnce() -> Status) -> io::Result<()> {
        let (Question(question), _) = transfer::receive(&self.0)?;
        transfer::send(&self.0, &Answer { question, status: Box::new(status()) }, &[])
    }
}

impl AsFd for Asker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsFd for Respondent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
