//! The client: [`ask`] sends one request over a connection of the caller's and returns its answer, for
//! command lines that ask a daemon.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use httparse::Status;
use rustix::event::PollFlags;
use thiserror::Error;

use crate::request::{HEAD_MAX, HEADERS_MAX, values};
use crate::socket::{Deadline, Received, Woken, receive, send_with, wait};
use crate::{Method, StatusCode};

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum AskError {
    /// Not percent-encoded, without a slash at its beginning, or longer than any server takes.
    #[error("'{0}' is no path that can be asked for")]
    Path(String),
    /// Not in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Late(Duration),
    /// Without a byte of an answer.
    #[error("the connection is closed before an answer")]
    Closed,
    /// The connection is.
    #[error("the connection is closed in the middle of the answer")]
    Cut,
    /// What came is none.
    #[error("this is no HTTP answer: {0}")]
    Malformed(String),
    /// Longer than the caller takes.
    #[error("the answer has more than {limit} bytes")]
    TooLong {
        /// Bytes of a body.
        limit: usize,
    },
    /// The socket.
    #[error("the connection is broken")]
    Broken(#[from] io::Error),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What came of the request.
    pub status: StatusCode,
    /// The body.
    pub body: Vec<u8>,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request<'r> {
    /// How.
    pub method: &'r Method,
    /// What is asked for: with a slash at its beginning, percent-encoded where that is needed, perhaps with a
    /// query.
    pub path: &'r str,
    /// What goes with it; empty for none.
    pub body: &'r [u8],
    /// Descriptors that go with its first byte.
    pub descriptors: &'r [BorrowedFd<'r>],
}

/// What an answer may take.
#[derive(Clone, Debug)]
pub struct Limits {
    /// From the first byte of the request to the last one of the answer.
    pub time: Duration,
    /// Most bytes of its body.
    pub body: usize,
}

/// Sends a request over `socket`, a stream that carries no other, and returns the answer. One that comes
/// before the request is sent counts: that is how a server refuses a body that is too long.
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

/// The bytes of a request; none when the path is none.
fn encode(request: &Request<'_>) -> Option<Vec<u8>> {
    let Request { method, path, body, .. } = request;
    // Servers do not hear of a fragment.
    let printable = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n"
    );
    let good = printable && path.starts_with('/') && head.len() <= HEAD_MAX;
    good.then(|| [head.as_bytes(), body].concat())
}

/// A request on its way, and an answer on its own.
struct Exchange<'c> {
    socket: BorrowedFd<'c>,
    limits: &'c Limits,
    unsent: &'c [u8],
    descriptors: &'c [BorrowedFd<'c>],
    received: Vec<u8>,
}

impl Exchange<'_> {
    /// Waits until there is something to do, does it, and returns the answer if that is all of it.
    fn step(&mut self, deadline: Deadline) -> Result<Option<Answer>, AskError> {
        let sends = if self.unsent.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        if wait(self.socket, PollFlags::IN | sends, None, Some(deadline))? != Woken::Ready {
            return Err(AskError::Late(self.limits.time));
        }
        if !self.unsent.is_empty() {
            // Whoever does not read any more may have answered.
            let sent = send_with(self.socket, self.unsent, self.descriptors).unwrap_or(self.unsent.len());
            if sent > 0 {
                self.descriptors = &[];
            }
            self.unsent = &self.unsent[sent..];
        }
        // A longer answer is refused.
        let most = HEAD_MAX + self.limits.body + 1 - self.received.len();
        // Nobody has asked for descriptors.
        let mut unwanted = Vec::<OwnedFd>::new();
        match receive(self.socket, &mut self.received, most, &mut unwanted) {
            Ok(Received::Nothing) => Ok(None),
            Ok(Received::Bytes(_) | Received::Truncated) => self.answer(false),
            Ok(Received::End) => self.answer(true)?.ok_or(self.end()).map(Some),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Err(self.end()),
            Err(error) => Err(error.into()),
        }
    }

    /// What it means that there is no more.
    fn end(&self) -> AskError {
        if self.received.is_empty() { AskError::Closed } else { AskError::Cut }
    }

    /// The answer, if it is whole, which an answer without a length is at the connection's end.
    fn answer(&mut self, at_end: bool) -> Result<Option<Answer>, AskError> {
        loop {
            let Some(head) = AnswerHead::parse(&self.received)? else { return Ok(None) };
            if head.status < StatusCode::OK {
                // The answer itself is still to come.
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

/// What an answer says before its body.
struct AnswerHead {
    status: StatusCode,
    /// Of the body, if it is said.
    length: Option<u64>,
    /// Its own length.
    bytes: usize,
}

impl AnswerHead {
    /// The head that `received` begins with; none when there is only a part of it yet.
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
            return Err(malformed("it comes in chunks"));
        }
        let status = StatusCode(response.code.unwrap_or_default());
        let length = match values(response.headers, "content-length").next() {
            Some(length) => Some(length.parse().map_err(|_| malformed("its length is no number"))?),
            // What has no body by definition (RFC 9112, section 6.3).
            None if matches!(status.0, 100..200 | 204 | 304) => Some(0),
            None => None,
        };
        Ok(Some(AnswerHead { status, length, bytes }))
    }
}

#[cfg(test)]
mod tests;
