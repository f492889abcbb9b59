//! The protocol of the control socket, with requests for status, metrics, limits, captures, policies and
//! hand-overs.
//!
//! Only the daemon's own user and root may connect, because a client can get the guest's memory and the
//! interface. Each connection carries one request. The main thread answers at once; a client that stops in
//! the middle of a request delays it by [`PATIENCE`].
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use thiserror::Error;
use volt_net::capture::CaptureOptions;
use volt_net::limiter::LimitsChange;
use volt_net::state::{FdId, Format, transfer};
use volt_program::unix::{ConnectError, connect_within};

/// Time for a client to send its request, from its first byte on.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long `volt-netd ctl` waits for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// A request of a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Status,
    /// Asks for the text of the [metrics](crate::metrics).
    Metrics,
    /// Changes the rate limits at once.
    Limits(LimitsChange),
    /// Captures frames as long as the client stays connected.
    Capture(CaptureOptions),
    Policy(PolicyRequest),
    /// Hands everything over to the client, which reads states in these formats.
    TakeOver {
        formats: Vec<Format>,
        program: String,
    },
}

/// A request about the filter's policy.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum PolicyRequest {
    /// Puts the policy with this text in force at once.
    Set(String),
    /// Asks for its text.
    Show,
    /// Asks for an explanation of what it says to a [`Question`](volt_filter::rules::Question).
    Test(String),
    /// Asks for the [list](crate::filter::listed::Listed) of refused frames.
    Log,
}

/// A reply to a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// A [`Status`](crate::status::Status), perhaps of another version.
    Status(Value),
    /// The [`Limits`](crate::status::Limits) in force now.
    Limits(Value),
    /// The answer to a [`PolicyRequest`].
    Policy(Value),
    Metrics(String),
    Refused(String),
    Offer(Offer),
    /// Comes with the descriptor of the rings' memory.
    Capture(Capturing),
}

/// A capture that has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capturing {
    pub(crate) interface: String,
    /// The captured queue pairs, in the order of their rings.
    pub(crate) pairs: Vec<usize>,
}

/// The running daemon's offer to a successor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) pid: i32,
    /// Whether a supervisor restarts the daemon if it dies before 'go'.
    pub(crate) supervised: bool,
    /// The descriptors sent with the offer, in this order.
    pub(crate) fds: Vec<FdId>,
    pub(crate) state: Box<RawValue>,
}

/// Why a client's request failed.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    #[error(
        "no daemon answers at {}: give the --control socket of a running daemon of this user", .0.display()
    )]
    Connect(PathBuf, #[source] ConnectError),
    #[error(
        "the program at {} closed the connection without an answer: give the daemon's --control socket, not \
         its --socket for front-ends", .0.display()
    )]
    NoControl(PathBuf),
    #[error("the daemon at {} does not answer", .0.display())]
    Ask(PathBuf, #[source] io::Error),
    #[error("the daemon refuses: {0}")]
    Refused(String),
    #[error("the daemon sent an unexpected answer")]
    Answer,
}

/// Reads the request of a client that has begun to send one.
pub(crate) fn read(client: &UnixStream) -> io::Result<Request> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    Ok(transfer::receive_within(client, PATIENCE)?.0)
}

/// Answers a client. Ignores an error: a client that does not read gets no answer.
pub(crate) fn answer(client: &UnixStream, reply: &Reply) {
    let _ = transfer::send(client, reply, &[]);
}

/// Sends a request to the daemon with control socket `path`, and receives the reply and its descriptors.
/// `limit` applies to each step.
pub(crate) fn ask(
    path: &Path,
    request: &Request,
    limit: Duration,
) -> Result<(UnixStream, Reply, Vec<OwnedFd>), ControlError> {
    let daemon =
        connect_within(path, limit).map_err(|error| ControlError::Connect(path.to_owned(), error))?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            ControlError::NoControl(path.to_owned())
        }
        _ => ControlError::Ask(path.to_owned(), error),
    };
    daemon.set_read_timeout(Some(limit)).map_err(failed)?;
    let sent = transfer::send(&daemon, request, &[]);
    // A daemon that refuses the user answers without reading the request, so sending may fail.
    let (reply, fds) = match (transfer::receive(&daemon), sent) {
        (Err(_), Err(unsent)) => Err(unsent),
        (reply, _) => reply,
    }
    .map_err(failed)?;
    Ok((daemon, reply, fds))
}

/// Sends a request of `volt-netd ctl` to the daemon with control socket `path`, and returns the answer.
pub(crate) fn ctl(path: &Path, request: &Request) -> Result<Value, ControlError> {
    match ask(path, request, LIMIT)?.1 {
        Reply::Status(answer) | Reply::Limits(answer) | Reply::Policy(answer) => Ok(answer),
        Reply::Refused(why) => Err(ControlError::Refused(why)),
        Reply::Metrics(text) => Ok(text.into()),
        Reply::Offer(_) | Reply::Capture(_) => Err(ControlError::Answer),
    }
}
