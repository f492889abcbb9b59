//! How the process that serves a guest is asked for its [`Status`] by who serves its metrics or feeds
//! systemd's watchdog: its supervisor, or a thread of its own.
//!
//! Each asker has a line of its own. It waits for an answer only so long: the next one that comes is then not
//! the one to its next question, which is why both have numbers.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use volt_net::state::transfer;

use crate::status::Status;

/// How long either side may take in the middle of a message.
const LIMIT: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize, Deserialize)]
struct Question(u64);

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    question: u64,
    status: Box<Status>,
}

/// Who asks.
#[derive(Debug)]
pub(crate) struct Asker {
    socket: UnixStream,
    asked: u64,
}

/// Who is asked, which is readable when there is a question.
#[derive(Debug)]
pub(crate) struct Respondent(UnixStream);

/// A line.
pub(crate) fn line() -> io::Result<(Asker, Respondent)> {
    let (asker, respondent) = UnixStream::pair()?;
    for end in [&asker, &respondent] {
        end.set_read_timeout(Some(LIMIT))?;
        end.set_write_timeout(Some(LIMIT))?;
    }
    Ok((Asker { socket: asker, asked: 0 }, Respondent(respondent)))
}

impl Asker {
    /// Asks, and waits for the answer for `limit` at most.
    ///
    /// # Errors
    ///
    /// `TimedOut`, after which it can be asked again; otherwise nobody answers any more.
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

    /// Asks. When this is readable, [`Asker::take`] has the answer.
    ///
    /// # Errors
    ///
    /// When nobody answers any more.
    pub(crate) fn begin(&mut self) -> io::Result<()> {
        self.asked += 1;
        transfer::send(&self.socket, &Question(self.asked), &[])
    }

    /// Takes an answer that has come; `None` for one that was not waited for long enough.
    ///
    /// # Errors
    ///
    /// When nobody answers any more.
    pub(crate) fn take(&mut self) -> io::Result<Option<Status>> {
        let (Answer { question, status }, _) = transfer::receive(&self.socket)?;
        Ok((question == self.asked).then_some(*status))
    }
}

impl Respondent {
    /// Takes a question and answers it with what `status` says.
    ///
    /// # Errors
    ///
    /// When nobody asks any more.
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
