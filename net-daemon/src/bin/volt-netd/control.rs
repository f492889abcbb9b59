//! The control socket: what a daemon says of itself, and hands over when it is asked.
//!
//! Whoever may connect gets the guest's memory and the interface, so that only the daemon's own user and root may. One
//! request a connection. The main thread answers at once; a client that stops in the middle of a request costs it
//! [`PATIENCE`].

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use volt_net::state::frame;

use crate::handover::Offer;

/// How long a client may take for its request, from its first byte on.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long `volt-netd ctl` waits for an answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What a client asks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Status,
    /// Gives everything to the client, which reads states of these formats.
    TakeOver {
        formats: Vec<u32>,
        program: String,
    },
}

/// What it is answered.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Status(Value),
    Refused(String),
    Offer(Offer),
}

/// Why a client has no answer.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    #[error("no daemon answers at {}: is that the --control socket of one that runs, and of this user?", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    #[error("the daemon refuses: {0}")]
    Refused(String),
    #[error("the daemon's answer makes no sense")]
    Answer,
}

/// Who connected, if it is somebody else than this daemon's user or root.
pub(crate) struct Stranger(u32);

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {} may not control this daemon", self.0)
    }
}

/// Whether the client is the daemon's own user or root.
pub(crate) fn check_user(client: &UnixStream) -> Result<(), Stranger> {
    // Without credentials it is nobody.
    let user = socket_peercred(client).map_or(u32::MAX, |peer| peer.uid.as_raw());
    if user == 0 || user == geteuid().as_raw() { Ok(()) } else { Err(Stranger(user)) }
}

/// Reads the request of a client that has begun to send one.
pub(crate) fn read(client: &UnixStream) -> io::Result<Request> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    Ok(frame::receive_within(client, PATIENCE)?.0)
}

/// Answers a client; one that does not read has no answer.
pub(crate) fn answer(client: &UnixStream, reply: &Reply) {
    let _ = frame::send(client, reply, &[]);
}

/// Sends a request, and takes the daemon's reply with the descriptors that come with it.
pub(crate) fn ask(daemon: &UnixStream, request: &Request) -> io::Result<(Reply, Vec<OwnedFd>)> {
    let sent = frame::send(daemon, request, &[]);
    // A daemon that refuses whoever asks does not read what it is asked, but it says so.
    match (frame::receive(daemon), sent) {
        (Err(_), Err(unsent)) => Err(unsent),
        (reply, _) => reply,
    }
}

/// `volt-netd ctl status`: what the daemon that is controlled at `path` says of itself.
pub(crate) fn status(path: &Path) -> Result<Value, ControlError> {
    let connect = |error| ControlError::Connect(path.to_owned(), error);
    let socket = UnixStream::connect(path).map_err(connect)?;
    socket.set_read_timeout(Some(LIMIT)).map_err(connect)?;
    match ask(&socket, &Request::Status).map_err(connect)?.0 {
        Reply::Status(status) => Ok(status),
        Reply::Refused(why) => Err(ControlError::Refused(why)),
        Reply::Offer(_) => Err(ControlError::Answer),
    }
}
