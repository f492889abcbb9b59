//! `volt-vmm ctl`: asks the API of a machine that runs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum CtlError {
    /// Nobody listens.
    #[error("no machine answers at {}: is that the --api-socket of one that runs?", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    /// Somebody may listen, but not to this user.
    #[error("the API socket {} is for its owner and root: ask as that user", .0.display())]
    Foreign(PathBuf, #[source] io::Error),
    /// It answers in time, or not at all.
    #[error("the machine does not answer within {} s", LIMIT.as_secs())]
    Late,
    /// It has ended, or what listens is no API.
    #[error("{} closes the connection without an answer: is that a machine's --api-socket?", .0.display())]
    Closed(PathBuf, #[source] hyper::Error),
    /// What came is no answer.
    #[error("what comes from {} is no answer: is that a machine's --api-socket?", .0.display())]
    Http(PathBuf, #[source] hyper::Error),
    /// What came is no JSON.
    #[error("the machine's answer makes no sense")]
    Json(#[from] serde_json::Error),
    /// Not encoded, or longer than any path.
    #[error("'{0}' is no path of the API")]
    Path(String),
    /// It refuses.
    #[error("the machine refuses: {0}")]
    Refused(String),
    /// The system.
    #[error("the machine cannot be asked")]
    System(#[source] io::Error),
}

/// Sends one request to the API at `socket`, with `body` if there is one, and returns its answer.
///
/// # Errors
///
/// See [`CtlError`].
pub fn ask(socket: &Path, method: Method, path: &str, body: Option<&Value>) -> Result<Value, CtlError> {
    let request = request(method, path, body)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(CtlError::System)?;
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, exchange(socket, request)).await.map_err(|_| CtlError::Late)?
    })
}

fn request(method: Method, path: &str, body: Option<&Value>) -> Result<Request<Full<Bytes>>, CtlError> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder().method(method).uri(path).header(hyper::header::HOST, "localhost");
    request.body(Full::new(Bytes::from(body))).map_err(|_| CtlError::Path(path.to_owned()))
}

async fn exchange(socket: &Path, request: Request<Full<Bytes>>) -> Result<Value, CtlError> {
    let path = || socket.to_owned();
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => CtlError::Foreign(path(), error),
        _ => CtlError::Connect(path(), error),
    })?;
    let http = |error: hyper::Error| match error.is_closed() || error.is_incomplete_message() {
        true => CtlError::Closed(path(), error),
        false => CtlError::Http(path(), error),
    };
    let connected = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = connected.map_err(http)?;
    tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(http)?;
    let good = response.status().is_success();
    let body = response.into_body().collect().await.map_err(http)?.to_bytes();
    let answer: Value = serde_json::from_slice(&body)?;
    match good {
        true => Ok(answer),
        false => Err(CtlError::Refused(answer["error"].as_str().unwrap_or("without a reason").to_owned())),
    }
}
