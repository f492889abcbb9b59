//! `volt-vmm ctl`: asks the API of a machine that runs.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use thiserror::Error;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum CtlError {
    /// Nobody listens, or not for this user.
    #[error(
        "no machine answers at {}: is that the --api-socket of one that runs, and of this user?", .0.display()
    )]
    Connect(PathBuf, #[source] io::Error),
    /// It answers in time, or not at all.
    #[error("the machine does not answer within {} s", LIMIT.as_secs())]
    Late,
    /// What came is no answer.
    #[error("the machine's answer makes no sense")]
    Http(#[from] hyper::Error),
    /// What came is no JSON.
    #[error("the machine's answer makes no sense")]
    Json(#[from] serde_json::Error),
    /// It refuses.
    #[error("the machine refuses: {0}")]
    Refused(String),
    /// The system.
    #[error("the machine cannot be asked")]
    System(#[source] io::Error),
}

/// Sends one request to the API at `socket`, and returns its answer.
///
/// # Errors
///
/// See [`CtlError`].
pub fn ask(socket: &Path, method: Method, path: &str) -> Result<Value, CtlError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(CtlError::System)?;
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, exchange(socket, method, path)).await.map_err(|_| CtlError::Late)?
    })
}

async fn exchange(socket: &Path, method: Method, path: &str) -> Result<Value, CtlError> {
    let connect = |error| CtlError::Connect(socket.to_owned(), error);
    let stream = tokio::net::UnixStream::connect(socket).await.map_err(connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_default();
    request.headers_mut().insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("localhost"));
    let response = sender.send_request(request).await?;
    let good = response.status().is_success();
    let body = response.into_body().collect().await?.to_bytes();
    let answer: Value = serde_json::from_slice(&body)?;
    match good {
        true => Ok(answer),
        false => Err(CtlError::Refused(answer["error"].as_str().unwrap_or("without a reason").to_owned())),
    }
}
