//! A worker's line to its supervisor, which holds the state for the next worker.
//!
//! The supervisor reads the connection's socket for its worker, keeps what it has read until it is given the
//! state that came of it, and sends the reply with taking that state. So whenever a worker dies, a request
//! has either not happened, and the next worker gets it, or it has happened and is answered.
//!
//! A supervisor that does not answer is ended: it could start another worker, with what has become an old
//! state, at any time later. Its worker goes on as after any other death of its supervisor.
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
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use volt_net::state::transfer;
use volt_net::state::{FdId, hex};
use volt_program::opener::Opener;
use volt_vhost_user::channel::Piece;

use crate::opener::{self, Request};
use crate::state::FinalState;

/// How long each side may take in the middle of a message, and a supervisor for an answer. The latter twice,
/// as time also passes while both processes are stopped; what takes longest is a systemd that is slow.
const LIMIT: Duration = Duration::from_secs(5);
/// The same where it waits for another daemon to stop.
const START_LIMIT: Duration = Duration::from_secs(15);

/// What a worker tells its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// A worker that takes over from another daemon can start.
    Ready,
    /// What has come of the connection's next message is wanted.
    Read {
        connection: FdId,
        /// What has come of the message already.
        #[serde(with = "hex")]
        begun: Vec<u8>,
    },
    /// The state as it is now; all that was read before is part of it.
    Commit(Commit),
    /// The state has gone to another daemon, whose connection comes with this; the worker has stopped.
    HandOver { program: String },
}

/// A state, and what to do with the connection once it is held.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Commit {
    pub(crate) state: Box<RawValue>,
    /// All descriptors that the state names.
    pub(crate) all: Vec<FdId>,
    /// Those that come with this message, in this order.
    pub(crate) new: Vec<FdId>,
    /// What the front-end has not taken of earlier replies.
    #[serde(with = "hex")]
    pub(crate) unsent: Vec<u8>,
    pub(crate) answer: Option<Answer>,
    pub(crate) observed: Observed,
}

/// Where a supervisor finds what it serves metrics of.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Observed {
    pub(crate) pairs: usize,
    pub(crate) counters: Option<FdId>,
    /// The socket to serve them at.
    pub(crate) metrics: Option<FdId>,
}

/// The end of a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The connection's socket.
    pub(crate) connection: FdId,
    /// What to send, after what could not be sent before.
    #[serde(with = "hex")]
    pub(crate) reply: Vec<u8>,
}

/// What a supervisor tells its worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// What has come, with its descriptors: `None` for nothing, no bytes for the end.
    Piece(Option<Bytes>),
    /// The connection failed.
    Failed(i32),
    /// The state is held, the request is answered but for so many bytes.
    Held { unsent: usize },
    /// The daemon that ran before has stopped: start.
    Start(FinalState),
    /// The other daemon has gone away: go on.
    GoOn,
}

/// Bytes of a connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Bytes {
    #[serde(with = "hex")]
    pub(crate) bytes: Vec<u8>,
    pub(crate) too_many: bool,
}

/// The line.
#[derive(Debug)]
pub(crate) struct Line {
    socket: UnixStream,
    opener: Arc<Opener>,
    /// Descriptors that the supervisor has.
    known: BTreeSet<FdId>,
}

impl Line {
    /// A line: the supervisor's end, and that of a worker that it will fork.
    pub(crate) fn pair() -> io::Result<(UnixStream, UnixStream)> {
        let (supervisor, worker) = UnixStream::pair()?;
        for end in [&supervisor, &worker] {
            end.set_read_timeout(Some(LIMIT))?;
            end.set_write_timeout(Some(LIMIT))?;
        }
        Ok((supervisor, worker))
    }

    /// Over the worker's end; the supervisor has the descriptors `known`.
    pub(crate) fn new(socket: UnixStream, opener: Arc<Opener>, known: BTreeSet<FdId>) -> Line {
        Line { socket, opener, known }
    }

    /// Reads what has come of the connection's next message: see [`volt_vhost_user::channel::read_message`].
    pub(crate) fn read(
        &self,
        socket: impl AsFd,
        connection: FdId,
        begun: &[u8],
    ) -> io::Result<Option<Piece>> {
        // Nobody is asked for what has not come.
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

    /// Leaves `state` with the supervisor. Returns how many bytes of replies the front-end has not taken.
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

    /// Says that this worker can start, and waits until it may.
    pub(crate) fn wait_for_start(&self) -> io::Result<FinalState> {
        match self.ask(&Report::Ready, &[], START_LIMIT)?.0 {
            Order::Start(last) => Ok(last),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets the supervisor tell the daemon behind `successor` to go. Returns only if that daemon went away
    /// before; otherwise the supervisor ends this process. `BrokenPipe`: there is no supervisor any more, and
    /// nothing was told.
    pub(crate) fn hand_over(&self, successor: &UnixStream, program: &str) -> io::Result<()> {
        let report = Report::HandOver { program: program.to_owned() };
        match self.ask(&report, &[successor.as_fd()], LIMIT)?.0 {
            Order::GoOn => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a report and takes what the supervisor says to it. `TimedOut`: it did not, and is ended.
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
                io::Error::new(io::ErrorKind::TimedOut, "it did not answer, and was ended")
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
    io::Error::new(io::ErrorKind::InvalidData, format!("the supervisor said {order:?}"))
}
