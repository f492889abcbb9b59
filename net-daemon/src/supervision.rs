//! A worker's line to its supervisor, which holds the state for the next worker.
//!
//! The supervisor reads the connection's socket for its worker. It keeps the bytes until the worker commits
//! the state that results from them, and then sends the reply. So whenever a worker dies, a request has
//! either not happened, and the next worker receives it, or it has happened and is answered.
//!
//! A worker kills a supervisor that does not answer: otherwise it could start another worker with an outdated
//! state at any later time. The worker then continues, as after any other death of its supervisor.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, getppid};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volt_net::state::transfer;
use volt_net::state::{FdId, hex};
use volt_program::opener::Opener;
use volt_vhost_user::channel::Piece;

use crate::opener::{self, Request};
use crate::state::FinalState;

/// Longest pause of either side within a message, and of the supervisor before an answer. The worker waits
/// twice for an answer, because time also passes while both processes are stopped. A slow systemd delays the
/// answer most.
const LIMIT: Duration = Duration::from_secs(5);
/// Like [`LIMIT`], but for an answer that waits for another daemon to stop.
const START_LIMIT: Duration = Duration::from_secs(15);

/// A worker's report to its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A worker that takes over from another daemon is ready to start.
    Ready,
    /// Asks for the bytes of the connection's next message.
    Read {
        connection: FdId,
        /// The bytes of the message that have already arrived.
        #[serde(with = "hex")]
        begun: Vec<u8>,
    },
    /// The current state, which includes the effect of all bytes read before.
    Commit(Commit),
    /// The worker has stopped and handed its state to another daemon, whose connection comes with this
    /// message.
    HandOver { program: String },
}

/// A state, and the reply to send once the supervisor holds it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Commit {
    pub(crate) state: Box<RawValue>,
    /// All descriptors that the state names.
    pub(crate) all: Vec<FdId>,
    /// The descriptors sent with this message, in this order.
    pub(crate) new: Vec<FdId>,
    /// The bytes of earlier replies that the front-end has not accepted.
    #[serde(with = "hex")]
    pub(crate) unsent: Vec<u8>,
    pub(crate) answer: Option<Answer>,
    pub(crate) observed: Observed,
}

/// The supervisor's sources for metrics.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Observed {
    pub(crate) pairs: usize,
    pub(crate) counters: Option<FdId>,
    /// The listening socket of the metrics server.
    pub(crate) metrics: Option<FdId>,
}

/// The end of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The connection's socket.
    pub(crate) connection: FdId,
    /// The bytes to send, after those left from earlier replies.
    #[serde(with = "hex")]
    pub(crate) reply: Vec<u8>,
}

/// A supervisor's message to its worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// The bytes read, with their descriptors: `None` if there are none yet, no bytes at the connection's
    /// end.
    Piece(Option<Bytes>),
    /// The connection failed with this error number.
    Failed(i32),
    /// The supervisor holds the state, and has sent the reply except for this number of bytes.
    Held { unsent: usize },
    /// The predecessor has stopped: start.
    Start(FinalState),
    /// The successor is gone: continue.
    GoOn,
}

/// Bytes of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bytes {
    #[serde(with = "hex")]
    pub(crate) bytes: Vec<u8>,
    pub(crate) too_many: bool,
}

/// A worker's end of the line.
#[derive(Debug)]
pub(crate) struct Line {
    socket: UnixStream,
    /// The supervisor's process ID.
    pid: Option<Pid>,
    opener: Arc<Opener>,
    /// Descriptors that the supervisor has.
    known: BTreeSet<FdId>,
}

impl Line {
    /// Creates a line: the supervisor's end, and that of a worker to be forked.
    pub(crate) fn pair() -> io::Result<(UnixStream, UnixStream)> {
        let (supervisor, worker) = UnixStream::pair()?;
        for end in [&supervisor, &worker] {
            end.set_read_timeout(Some(LIMIT))?;
            end.set_write_timeout(Some(LIMIT))?;
        }
        Ok((supervisor, worker))
    }

    /// Wraps the worker's end of a line, in the worker. The supervisor has the descriptors `known`.
    pub(crate) fn new(socket: UnixStream, opener: Arc<Opener>, known: BTreeSet<FdId>) -> Line {
        Line { socket, pid: getppid(), opener, known }
    }

    /// Returns the supervisor's process ID.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.pid.map(|pid| pid.as_raw_nonzero().get())
    }

    /// Reads the available bytes of the connection's next message, like
    /// [`volt_vhost_user::channel::read_message`].
    pub(crate) fn read(
        &self,
        socket: impl AsFd,
        connection: FdId,
        begun: &[u8],
    ) -> io::Result<Option<Piece>> {
        // Do not ask the supervisor if there is nothing to read.
        if let Err(Errno::AGAIN) = recv(socket, &mut [0], RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            return Ok(None);
        }
        match self.ask(&Report::Read { connection, begun: begun.to_vec() }, &[], LIMIT)? {
            (Order::Piece(None), _) => Ok(None),
            (Order::Piece(Some(Bytes { bytes, too_many })), fds) => Ok(Some(Piece { bytes, fds, too_many })),
            (Order::Failed(code), _) => Err(io::Error::from_raw_os_error(code)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Sends `state` to the supervisor. Returns the number of bytes of replies that the front-end has not
    /// accepted.
    pub(crate) fn commit(
        &mut self,
        state: Box<RawValue>,
        fds: &[(FdId, BorrowedFd<'_>)],
        unsent: &[u8],
        answer: Option<&Answer>,
        observed: Observed,
    ) -> io::Result<usize> {
        let new: Vec<_> = fds.iter().filter(|(id, _)| !self.known.contains(id)).collect();
        let commit = Commit {
            state,
            all: fds.iter().map(|(id, _)| *id).collect(),
            new: new.iter().map(|(id, _)| *id).collect(),
            unsent: unsent.to_vec(),
            answer: answer.cloned(),
            observed,
        };
        let all = commit.all.iter().copied().collect();
        let descriptors: Vec<_> = new.iter().map(|(_, fd)| *fd).collect();
        let answer = self.ask(&Report::Commit(commit), &descriptors, LIMIT);
        self.known = all;
        match answer?.0 {
            Order::Held { unsent } => Ok(unsent),
            other => Err(unexpected(&other)),
        }
    }

    /// Reports that this worker is ready, and waits for the order to start.
    pub(crate) fn wait_for_start(&self) -> io::Result<FinalState> {
        match self.ask(&Report::Ready, &[], START_LIMIT)?.0 {
            Order::Start(last) => Ok(last),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes the supervisor tell the daemon behind `successor` to start. Returns `Ok` only if that daemon is
    /// already gone; otherwise the supervisor kills this process.
    ///
    /// # Errors
    ///
    /// `BrokenPipe`: the supervisor is gone, and the successor was not told.
    pub(crate) fn hand_over(&self, successor: &UnixStream, program: &str) -> io::Result<()> {
        let report = Report::HandOver { program: program.to_owned() };
        match self.ask(&report, &[successor.as_fd()], LIMIT)?.0 {
            Order::GoOn => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a report and receives the supervisor's answer.
    ///
    /// # Errors
    ///
    /// `TimedOut`: the supervisor did not answer, and was killed.
    fn ask(
        &self,
        report: &Report,
        fds: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> io::Result<(Order, Vec<OwnedFd>)> {
        let answer = transfer::send(&self.socket, report, fds).and_then(|()| {
            let limit = Timespec::try_from(limit).ok();
            let comes = || poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], limit.as_ref());
            (0..2).find(|_| !matches!(comes(), Ok(0))).ok_or(io::ErrorKind::WouldBlock)?;
            transfer::receive(&self.socket)
        });
        answer.map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                opener::ask_and_wait(&self.opener, &Request::EndSupervisor);
                io::Error::new(io::ErrorKind::TimedOut, "it did not answer, and was killed")
            }
            _ => error,
        })
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn unexpected(order: &Order) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer of the supervisor: {order:?}"))
}
