//! `volt-vmm ctl`: sends requests to the API of a running machine.

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;
use volt_http::Method;
use volt_http::client::{AskError, Limits, Request};
use volt_program::unix::{ConnectError, connect_within};

use crate::api::status::MachineStatus;
use crate::virtio::blk::image::ImageError;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(20);
/// Most bytes of an answer. A status has some hundred bytes for each vring of a device.
const ANSWER_MAX: usize = 16 << 20;

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum CtlError {
    /// Nobody listens.
    #[error("no machine answers at {}: is that the --api-socket of a running machine?", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    /// This user has no access to the socket.
    #[error("the API socket {} is for its owner and root: run this command as that user", .0.display())]
    Foreign(PathBuf, #[source] io::Error),
    /// The answer did not come in time.
    #[error("the machine does not answer within {} s", LIMIT.as_secs())]
    Late,
    /// The machine has ended, or another program listens.
    #[error("{} closes the connection without an answer: is that a machine's --api-socket?", .0.display())]
    Closed(PathBuf, #[source] AskError),
    /// The answer is not HTTP.
    #[error("{} sends no valid HTTP answer: is that a machine's --api-socket?", .0.display())]
    Http(PathBuf, #[source] AskError),
    /// The answer is not the expected JSON.
    #[error("the machine's answer cannot be read")]
    Json(#[from] serde_json::Error),
    /// The path is not encoded, or longer than any path of the API.
    #[error("'{0}' is not a path of the API")]
    Path(String),
    /// The machine refuses the request.
    #[error("the machine refuses: {0}")]
    Refused(String),
    /// The machine refuses to open a disk, and the caller cannot open it either.
    #[error("the machine refuses: {0}; and 'volt-vmm ctl' cannot open it either")]
    Unopened(String, #[source] ImageError),
    /// The system refuses.
    #[error("the request cannot be sent")]
    System(#[source] io::Error),
}

/// Sends one request to the API at `socket`, with `body` if there is one, and returns the answer.
///
/// # Errors
///
/// See [`CtlError`].
pub fn ask(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> Result<Value, CtlError> {
    ask_with(socket, method, path, body, &[])
}

/// Requests the machine's status from the API at `socket`.
///
/// # Errors
///
/// See [`CtlError`].
pub fn status(socket: &Path) -> Result<MachineStatus, CtlError> {
    Ok(serde_json::from_value(ask(socket, Method::GET, "/v1/status", None)?)?)
}

/// Like [`ask`], but passes file descriptors.
///
/// # Errors
///
/// See [`CtlError`].
pub fn ask_with(
    socket: &Path,
    method: Method,
    path: &str,
    body: Option<&Value>,
    descriptors: &[BorrowedFd<'_>],
) -> Result<Value, CtlError> {
    let end = Instant::now() + LIMIT;
    let stream = connect(socket)?;
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = Request { method: &method, path, body: body.as_bytes(), descriptors };
    let limits = Limits { time: end.saturating_duration_since(Instant::now()), body: ANSWER_MAX };
    let answer = volt_http::client::ask(&stream, &request, &limits);
    let answer = answer.map_err(|error| no_answer(socket, error))?;
    let (good, answer): (_, Value) = (answer.status.is_success(), serde_json::from_slice(&answer.body)?);
    match good {
        true => Ok(answer),
        false => Err(CtlError::Refused(answer["error"].as_str().unwrap_or("without a reason").to_owned())),
    }
}

fn connect(socket: &Path) -> Result<UnixStream, CtlError> {
    connect_within(socket, LIMIT).map_err(|error| match error {
        ConnectError::System(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            CtlError::Foreign(socket.to_owned(), error)
        }
        ConnectError::System(error) => CtlError::Connect(socket.to_owned(), error),
        other => CtlError::Connect(socket.to_owned(), io::Error::other(other)),
    })
}

fn no_answer(socket: &Path, error: AskError) -> CtlError {
    match error {
        AskError::Late(_) => CtlError::Late,
        AskError::Path(path) => CtlError::Path(path),
        AskError::Closed | AskError::Cut => CtlError::Closed(socket.to_owned(), error),
        AskError::Malformed(_) | AskError::TooLong { .. } => CtlError::Http(socket.to_owned(), error),
        AskError::Broken(error) => CtlError::System(error),
    }
}
