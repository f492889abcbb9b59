//! The control socket: what a daemon says of itself, and hands over when it is asked.
//!
//! Whoever may connect gets the guest's memory and the interface, so that only the daemon's own user and root
//! may. One request a connection. The main thread answers at once; a client that stops in the middle of a
//! request costs it [`PATIENCE`].
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

/// How long a client may take for its request, from its first byte on.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long `volt-netd ctl` waits for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Status,
    /// Text of the [metrics](crate::metrics).
    Metrics,
    /// Changes the rate limits, at once.
    Limits(LimitsChange),
    /// Captures frames for as long as the client keeps its connection.
    Capture(CaptureOptions),
    /// Gives everything to the client, which reads states of these formats.
    TakeOver {
        formats: Vec<Format>,
        program: String,
    },
}

/// What it is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// A [`Status`](crate::status::Status), perhaps of another version.
    Status(Value),
    /// The [`Limits`](crate::status::Limits) in force now.
    Limits(Value),
    Metrics(String),
    Refused(String),
    Offer(Offer),
    /// The memory with the rings comes with it.
    Capture(Capturing),
}

/// A capture that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capturing {
    pub(crate) interface: String,
    /// Queue pairs that are captured, in the order of their rings.
    pub(crate) pairs: Vec<usize>,
}

/// What the running daemon offers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) pid: i32,
    /// Its supervisor starts it again if it ends before 'go'.
    pub(crate) supervised: bool,
    /// The descriptors that come with the offer, in this order.
    pub(crate) fds: Vec<FdId>,
    pub(crate) state: Box<RawValue>,
}

/// Why a client has no answer.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    #[error(
        "no daemon answers at {}: is that the --control socket of one that runs, and of this user?",
        .0.display()
    )]
    Connect(PathBuf, #[source] ConnectError),
    #[error(
        "who listens at {} closes the connection without an answer: is that the daemon's --socket, where \
         front-ends connect, and not its --control?", .0.display()
    )]
    NoControl(PathBuf),
    #[error("the daemon at {} does not answer", .0.display())]
    Ask(PathBuf, #[source] io::Error),
    #[error("the daemon refuses: {0}")]
    Refused(String),
    #[error("the daemon's answer makes no sense")]
    Answer,
}

/// Reads the request of a client that has begun to send one.
pub(crate) fn read(client: &UnixStream) -> io::Result<Request> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    Ok(transfer::receive_within(client, PATIENCE)?.0)
}

/// Answers a client; one that does not read has no answer.
pub(crate) fn answer(client: &UnixStream, reply: &Reply) {
    let _ = transfer::send(client, reply, &[]);
}

/// Sends a request to the daemon that is controlled at `path`, which may take so long for each step, and
/// takes its reply with the descriptors that come with it.
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
    // A daemon that refuses whoever asks does not read what it is asked, but it says so.
    let (reply, fds) = match (transfer::receive(&daemon), sent) {
        (Err(_), Err(unsent)) => Err(unsent),
        (reply, _) => reply,
    }
    .map_err(failed)?;
    Ok((daemon, reply, fds))
}

/// `volt-netd ctl`: what the daemon that is controlled at `path` answers.
pub(crate) fn ctl(path: &Path, request: &Request) -> Result<Value, ControlError> {
    match ask(path, request, LIMIT)?.1 {
        Reply::Status(answer) | Reply::Limits(answer) => Ok(answer),
        Reply::Refused(why) => Err(ControlError::Refused(why)),
        Reply::Metrics(text) => Ok(text.into()),
        Reply::Offer(_) | Reply::Capture(_) => Err(ControlError::Answer),
    }
}
