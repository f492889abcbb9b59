//! A request: its head, its body, and reading both from a socket.
//!
//! [`Incoming`] belongs to one connection. First it reads the [`head`](Incoming::head), then, if the head is
//! accepted, the [`body`](Incoming::body). It collects descriptors with both. It accepts bytes in pieces of
//! any size, and never keeps more of them than a limit.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::str;
use std::time::Duration;

use httparse::Status;
use rustix::event::PollFlags;
use thiserror::Error;

use crate::socket::{Deadline, Received, Woken, receive, send_all, wait};
use crate::{Method, StatusCode, Target};

/// Maximum length of a head in bytes.
pub const HEAD_MAX: usize = 16 << 10;
/// Maximum number of headers in a head.
pub const HEADERS_MAX: usize = 64;

/// The reason why a request is refused before the service gets it.
#[derive(Debug, Error)]
pub enum RequestError {
    /// There is no valid request line, or no valid headers.
    #[error("this is not an HTTP request: {0}")]
    Malformed(String),
    /// The head is too long.
    #[error("a request's head has at most {HEAD_MAX} bytes")]
    HeadTooLong,
    /// There are too many headers.
    #[error("a request has at most {HEADERS_MAX} headers")]
    TooManyHeaders,
    /// The length is invalid, or there are several different ones.
    #[error("the request's content-length is not a number of bytes")]
    Length,
    /// The body is chunked, so that its length is unknown.
    #[error("chunked bodies are not supported: send a content-length")]
    Chunked,
    /// The body has another encoding, such as compression.
    #[error("a body must not have a transfer-encoding")]
    Encoded,
    /// The body is longer than the service accepts, by its announced length.
    #[error("a body has at most {limit} bytes")]
    BodyTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// The client ended it within the head.
    #[error("the request ends in the middle of its head")]
    HeadEnds,
    /// The client ended it within the body.
    #[error("the request ends in the middle of its body")]
    BodyEnds,
    /// The head did not arrive in time.
    #[error("the request's head does not come within {} s", .0.as_secs_f32())]
    HeadLate(Duration),
    /// The body did not arrive in time.
    #[error("the request's body does not come within {} s", .0.as_secs_f32())]
    BodyLate(Duration),
    /// There are more descriptors than the service accepts.
    #[error("a request carries at most {limit} descriptors")]
    TooManyDescriptors {
        /// The limit.
        limit: usize,
    },
    /// There are more descriptors than one message can have, or than the process has room for.
    #[error("not all of the request's descriptors arrive")]
    DescriptorsLost,
    /// The server ended before the request was complete.
    #[error("the server ends")]
    Ends,
    /// The client has closed the connection.
    #[error("the connection is closed")]
    Closed,
    /// The socket failed.
    #[error("the connection is broken")]
    Broken(#[from] io::Error),
}

impl RequestError {
    /// Returns the status of the response; `None` if there is no client to respond to.
    pub fn status(&self) -> Option<StatusCode> {
        Some(match self {
            RequestError::HeadTooLong | RequestError::TooManyHeaders => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            RequestError::Chunked => StatusCode::LENGTH_REQUIRED,
            RequestError::Encoded => StatusCode::NOT_IMPLEMENTED,
            RequestError::BodyTooLong { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            RequestError::HeadLate(_) | RequestError::BodyLate(_) => StatusCode::REQUEST_TIMEOUT,
            RequestError::Ends => StatusCode::SERVICE_UNAVAILABLE,
            RequestError::Closed | RequestError::Broken(_) => return None,
            RequestError::Malformed(_)
            | RequestError::Length
            | RequestError::HeadEnds
            | RequestError::BodyEnds
            | RequestError::TooManyDescriptors { .. }
            | RequestError::DescriptorsLost => StatusCode::BAD_REQUEST,
        })
    }
}

/// The head of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    method: Method,
    target: Target,
    minor: u8,
    length: Length,
    expects: bool,
    accepts: String,
}

/// The length of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Bytes(u64),
    Chunked,
    Encoded,
}

impl Head {
    /// Returns the method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Returns the target.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Returns the media types in the client's `accept` headers, in lower case. Empty without such headers.
    pub fn accepts(&self) -> &str {
        &self.accepts
    }

    /// Returns the minor version of HTTP/1: 0 or 1.
    pub(crate) fn minor(&self) -> u8 {
        self.minor
    }

    /// Parses the head at the start of `bytes`. Returns it with its length, or `None` if it is incomplete.
    fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, RequestError> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        let length = match request.parse(bytes) {
            Ok(Status::Complete(length)) if length <= HEAD_MAX => length,
            Ok(Status::Partial) if bytes.len() < HEAD_MAX => return Ok(None),
            Ok(_) => return Err(RequestError::HeadTooLong),
            Err(httparse::Error::TooManyHeaders) => return Err(RequestError::TooManyHeaders),
            Err(error) => return Err(RequestError::Malformed(error.to_string())),
        };
        let Some(target) = Target::parse(request.path.unwrap_or_default()) else {
            return Err(RequestError::Malformed("invalid byte in the path".to_owned()));
        };
        let minor = request.version.unwrap_or_default();
        let head = Head {
            method: Method::named(request.method.unwrap_or_default()),
            target,
            minor,
            length: body_length(request.headers)?,
            // HTTP/1.0 does not have `expect` (RFC 9110, section 10.1.1).
            accepts: values(request.headers, "accept").collect::<Vec<_>>().join(","),
            expects: minor > 0 && values(request.headers, "expect").any(|value| value == "100-continue"),
        };
        Ok(Some((head, length)))
    }
}

/// Returns the values of the headers of this name, in lower case. A value that is not text becomes `?`, which
/// matches nothing.
pub(crate) fn values<'h>(
    headers: &'h [httparse::Header<'h>],
    name: &'h str,
) -> impl Iterator<Item = String> + 'h {
    let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| str::from_utf8(header.value).unwrap_or("?").trim().to_ascii_lowercase())
}

/// Returns the length of a body by RFC 9112, section 6.3. Without a length there is no body.
fn body_length(headers: &[httparse::Header<'_>]) -> Result<Length, RequestError> {
    if let Some(last) = values(headers, "transfer-encoding").last() {
        let chunked = last.rsplit(',').next().is_some_and(|coding| coding.trim() == "chunked");
        return Ok(if chunked { Length::Chunked } else { Length::Encoded });
    }
    let mut lengths = values(headers, "content-length").map(|value| {
        // `parse` would accept a sign.
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| value.parse().ok()).flatten().ok_or(RequestError::Length)
    });
    let length = lengths.next().unwrap_or(Ok(0))?;
    for other in lengths {
        if other? != length {
            return Err(RequestError::Length);
        }
    }
    Ok(Length::Bytes(length))
}

/// The parts of a request besides its head.
#[derive(Debug, Default)]
pub struct Body {
    /// The bytes, as many as announced.
    pub bytes: Vec<u8>,
    /// The descriptors that came with head or body, in order. Those that are not taken out are closed.
    pub descriptors: Vec<OwnedFd>,
}

/// The incoming request of a connection.
#[derive(Debug)]
pub(crate) struct Incoming<'c> {
    socket: BorrowedFd<'c>,
    /// Becomes readable when the server ends.
    end: BorrowedFd<'c>,
    /// Maximum number of descriptors.
    most: usize,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Whether no further bytes are expected.
    complete: bool,
}

impl<'c> Incoming<'c> {
    /// Creates it for `socket`, with up to `most` descriptors. It reads until `end` becomes readable.
    pub(crate) fn new(socket: BorrowedFd<'c>, end: BorrowedFd<'c>, most: usize) -> Incoming<'c> {
        Incoming { socket, end, most, bytes: Vec::new(), descriptors: Vec::new(), complete: false }
    }

    /// Whether no further bytes are expected: it was read to its end, or waiting for it failed.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Reads the head.
    pub(crate) fn head(&mut self, limit: Duration) -> Result<Head, RequestError> {
        let deadline = Deadline::after(limit);
        loop {
            if let Some((head, length)) = Head::parse(&self.bytes)? {
                self.bytes.drain(..length);
                self.complete = head.length == Length::Bytes(0);
                return Ok(head);
            }
            match self.read(HEAD_MAX - self.bytes.len(), deadline)? {
                Some(Woken::Ready) => {}
                Some(Woken::Ends) => return Err(RequestError::Ends),
                Some(Woken::Late) => return Err(RequestError::HeadLate(limit)),
                None if self.bytes.is_empty() => return Err(RequestError::Closed),
                None => return Err(RequestError::HeadEnds),
            }
        }
    }

    /// Reads the body, of up to `most` bytes.
    pub(crate) fn body(&mut self, head: &Head, most: usize, limit: Duration) -> Result<Body, RequestError> {
        let length = match head.length {
            Length::Bytes(length) => usize::try_from(length).ok().filter(|length| *length <= most),
            Length::Chunked => return Err(RequestError::Chunked),
            Length::Encoded => return Err(RequestError::Encoded),
        };
        let length = length.ok_or(RequestError::BodyTooLong { limit: most })?;
        let deadline = Deadline::after(limit);
        if head.expects && length > 0 {
            send_all(self.socket, b"HTTP/1.1 100 Continue\r\n\r\n", self.end, deadline)?;
        }
        while self.bytes.len() < length {
            match self.read(length - self.bytes.len(), deadline)? {
                Some(Woken::Ready) => {}
                Some(Woken::Ends) => return Err(RequestError::Ends),
                Some(Woken::Late) => return Err(RequestError::BodyLate(limit)),
                None => return Err(RequestError::BodyEnds),
            }
        }
        self.complete = true;
        // Bytes after it would be a request that this connection does not serve.
        self.bytes.truncate(length);
        Ok(Body { bytes: self.bytes.split_off(0), descriptors: self.descriptors.split_off(0) })
    }

    /// Waits for more bytes and reads up to `most` of them. Returns `None` if there are no more.
    fn read(&mut self, most: usize, deadline: Deadline) -> Result<Option<Woken>, RequestError> {
        let woken = wait(self.socket, PollFlags::IN, Some(self.end), Some(deadline))?;
        if woken != Woken::Ready {
            self.complete = true;
            return Ok(Some(woken));
        }
        let received = receive(self.socket, &mut self.bytes, most, &mut self.descriptors)?;
        if self.descriptors.len() > self.most {
            return Err(RequestError::TooManyDescriptors { limit: self.most });
        }
        match received {
            Received::Bytes(_) | Received::Nothing => Ok(Some(Woken::Ready)),
            Received::Truncated => Err(RequestError::DescriptorsLost),
            Received::End => {
                self.complete = true;
                Ok(None)
            }
        }
    }
}
