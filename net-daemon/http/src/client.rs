//! The client: [`ask`] sends one request over a connection of the caller, and returns the response. For
//! command lines that control a daemon.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use httparse::Status;
use rustix::event::PollFlags;
use thiserror::Error;

use crate::request::{HEAD_MAX, HEADERS_MAX, values};
use crate::socket::{Deadline, Received, Woken, receive, send_with, wait};
use crate::{Method, StatusCode};

/// The reason why there is no response.
#[derive(Debug, Error)]
pub enum AskError {
    /// The path is not percent-encoded, does not begin with a slash, or is longer than any server accepts.
    #[error("'{0}' is not a valid path for a request")]
    Path(String),
    /// The response did not arrive in time.
    #[error("no response within {} s", .0.as_secs_f32())]
    Late(Duration),
    /// The connection was closed before the first byte of a response.
    #[error("the connection was closed without a response")]
    Closed,
    /// The connection was closed within the response.
    #[error("the connection was closed in the middle of the response")]
    Cut,
    /// The received bytes are not a valid response.
    #[error("this is not an HTTP response: {0}")]
    Malformed(String),
    /// The response is longer than the caller accepts.
    #[error("the response has more than {limit} bytes")]
    TooLong {
        /// Maximum length of a body in bytes.
        limit: usize,
    },
    /// The socket failed.
    #[error("the connection is broken")]
    Broken(#[from] io::Error),
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: StatusCode,
    /// The body.
    pub body: Vec<u8>,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request<'r> {
    /// The method.
    pub method: &'r Method,
    /// The path: it begins with a slash, is percent-encoded where necessary, and may contain a query.
    pub path: &'r str,
    /// The body; empty for none.
    pub body: &'r [u8],
    /// Descriptors to send with the first byte.
    pub descriptors: &'r [BorrowedFd<'r>],
}

/// Limits for a response.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Time from the first byte of the request to the last one of the response.
    pub time: Duration,
    /// Maximum length of the body in bytes.
    pub body: usize,
}

/// Sends a request over `socket`, a stream that carries no other, and returns the response. Accepts a
/// response that arrives before the request is sent: a server refuses a body that is too long in this way.
///
/// # Errors
///
/// See [`AskError`].
pub fn ask(socket: &impl AsFd, request: &Request<'_>, limits: &Limits) -> Result<Answer, AskError> {
    let bytes = encode(request).ok_or_else(|| AskError::Path(request.path.to_owned()))?;
    let descriptors = request.descriptors;
    let mut exchange =
        Exchange { socket: socket.as_fd(), limits, unsent: &bytes, descriptors, received: Vec::new() };
    let deadline = Deadline::after(limits.time);
    loop {
        if let Some(answer) = exchange.step(deadline)? {
            return Ok(answer);
        }
    }
}

/// Encodes a request. Returns `None` if the path is invalid.
fn encode(request: &Request<'_>) -> Option<Vec<u8>> {
    let Request { method, path, body, .. } = request;
    // Fragments are not sent to servers.
    let printable = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    let good = printable && path.starts_with('/') && head.len() <= HEAD_MAX;
    good.then(|| [head.as_bytes(), body].concat())
}

/// The progress of a request and its response.
struct Exchange<'c> {
    socket: BorrowedFd<'c>,
    limits: &'c Limits,
    unsent: &'c [u8],
    descriptors: &'c [BorrowedFd<'c>],
    received: Vec<u8>,
}

impl Exchange<'_> {
    /// Waits until there is something to do, does it, and returns the response if it is complete.
    fn step(&mut self, deadline: Deadline) -> Result<Option<Answer>, AskError> {
        let sends = if self.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        if wait(self.socket, PollFlags::IN | sends, None, Some(deadline))? != Woken::Ready {
            return Err(AskError::Late(self.limits.time));
        }
        if !self.unsent.is_empty() {
            // A server that does not read any more may have responded.
            let sent = send_with(self.socket, self.unsent, self.descriptors).unwrap_or(self.unsent.len());
            if sent > 0 {
                self.descriptors = &[];
            }
            self.unsent = &self.unsent[sent..];
        }
        // A longer response is refused.
        let most = HEAD_MAX + self.limits.body + 1 - self.received.len();
        // Descriptors are not expected in a response.
        let mut unwanted = Vec::<OwnedFd>::new();
        match receive(self.socket, &mut self.received, most, &mut unwanted) {
            Ok(Received::Nothing) => Ok(None),
            Ok(Received::Bytes(_) | Received::Truncated) => self.answer(false),
            Ok(Received::End) => self.answer(true)?.ok_or(self.end()).map(Some),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(self.end()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the error for the end of the connection.
    fn end(&self) -> AskError {
        if self.received.is_empty() { AskError::Closed } else { AskError::Cut }
    }

    /// Returns the response if it is complete. A response without a length is complete at the connection's
    /// end.
    fn answer(&mut self, at_end: bool) -> Result<Option<Answer>, AskError> {
        loop {
            let Some(head) = AnswerHead::parse(&self.received)? else { return Ok(None) };
            if head.status < StatusCode::OK {
                // The final response is still to come.
                self.received.drain(..head.bytes);
                continue;
            }
            let body = &self.received[head.bytes..];
            let limit = self.limits.body;
            let length = match head.length {
                Some(length) => usize::try_from(length).unwrap_or(usize::MAX),
                None => body.len(),
            };
            if length > limit {
                return Err(AskError::TooLong { limit });
            }
            let whole = if head.length.is_some() { body.len() >= length } else { at_end };
            return Ok(whole.then(|| Answer { status: head.status, body: body[..length].to_vec() }));
        }
    }
}

/// The head of a response.
struct AnswerHead {
    status: StatusCode,
    /// Length of the body, if known.
    length: Option<u64>,
    /// Length of the head.
    bytes: usize,
}

impl AnswerHead {
    /// Parses the head at the start of `received`. Returns `None` if it is incomplete.
    fn parse(received: &[u8]) -> Result<Option<AnswerHead>, AskError> {
        let malformed = |why: &str| AskError::Malformed(why.to_owned());
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut response = httparse::Response::new(&mut headers);
        let bytes = match response.parse(received) {
            Ok(Status::Complete(bytes)) => bytes,
            Ok(Status::Partial) if received.len() < HEAD_MAX => return Ok(None),
            Ok(Status::Partial) => return Err(malformed("its head has no end")),
            Err(error) => return Err(AskError::Malformed(error.to_string())),
        };
        if values(response.headers, "transfer-encoding").next().is_some() {
            return Err(malformed("its body is chunked"));
        }
        let status = StatusCode(response.code.unwrap_or_default());
        let length = match values(response.headers, "content-length").next() {
            Some(length) => Some(length.parse().map_err(|_| malformed("its length is not a number"))?),
            // Responses that have no body by definition (RFC 9112, section 6.3).
            None if matches!(status.0, 100..200 | 204 | 304) => Some(0),
            None => None,
        };
        Ok(Some(AnswerHead { status, length, bytes }))
    }
}

#[cfg(test)]
mod tests;
