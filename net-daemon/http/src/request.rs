//! A request: its head, its body, and how both are taken from a socket.
//!
//! [`Incoming`] belongs to one connection. Its [`head`](Incoming::head) comes first, then
//! [`body`](Incoming::body) if the head is to anyone's liking; descriptors are collected all the while. Both
//! take bytes in pieces of any size, and neither keeps more of them than its limit.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::str;
use std::time::Duration;

use httparse::Status;
use rustix::event::PollFlags;
use thiserror::Error;

use crate::socket::{Deadline, Received, Woken, receive, send_all, wait};
use crate::{Method, StatusCode, Target};

/// Most bytes of a head.
pub const HEAD_MAX: usize = 16 << 10;
/// Most headers in a head.
pub const HEADERS_MAX: usize = 64;

/// Why a request is refused before anybody has a look at what it is about.
#[derive(Debug, Error)]
pub enum RequestError {
    /// No request line, or no headers.
    #[error("this is no HTTP request: {0}")]
    Malformed(String),
    /// Too many bytes.
    #[error("a request's head has at most {HEAD_MAX} bytes")]
    HeadTooLong,
    /// Too many headers.
    #[error("a request has at most {HEADERS_MAX} headers")]
    TooManyHeaders,
    /// A length that is none, or several that differ.
    #[error("the request's content-length is no number of bytes")]
    Length,
    /// Chunks, whose length nobody knows before they have come.
    #[error("a body that comes in chunks is not taken: give its content-length")]
    Chunked,
    /// Compression, say.
    #[error("a body is taken as it is, without transfer-encoding")]
    Encoded,
    /// Longer than the service takes; what was announced counts.
    #[error("a body has at most {limit} bytes")]
    BodyTooLong {
        /// Bytes.
        limit: usize,
    },
    /// The other side sends no more of it.
    #[error("the request ends in the middle of its head")]
    HeadEnds,
    /// The other side sends no more of it.
    #[error("the request ends in the middle of its body")]
    BodyEnds,
    /// Not there in time.
    #[error("the request's head does not come within {} s", .0.as_secs_f32())]
    HeadLate(Duration),
    /// Not there in time.
    #[error("the request's body does not come within {} s", .0.as_secs_f32())]
    BodyLate(Duration),
    /// More descriptors than the service takes.
    #[error("a request carries at most {limit} descriptors")]
    TooManyDescriptors {
        /// How many may come.
        limit: usize,
    },
    /// More descriptors than may come at all, or than the process has room for.
    #[error("not all of the request's descriptors arrive")]
    DescriptorsLost,
    /// Before it was there, the server ended.
    #[error("the server ends")]
    Ends,
    /// Nobody is there any more.
    #[error("the connection is closed")]
    Closed,
    /// The socket.
    #[error("the connection is broken")]
    Broken(#[from] io::Error),
}

impl RequestError {
    /// The status of an answer; `None` when there is nobody to be answered.
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

/// What a request says before its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    method: Method,
    target: Target,
    minor: u8,
    length: Length,
    expects: bool,
    accepts: String,
}

/// How long the body is going to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Bytes(u64),
    Chunked,
    Encoded,
}

impl Head {
    /// How it is asked.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// What it is asked of.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// The media types that the client wants, as its `accept` headers list them, in lower case. Nothing where
    /// it has none.
    pub fn accepts(&self) -> &str {
        &self.accepts
    }

    /// The minor version of HTTP/1: 0 or 1.
    pub(crate) fn minor(&self) -> u8 {
        self.minor
    }

    /// The head that `bytes` begin with and its length, or `None` when there is only a part of it yet.
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
            // In HTTP/1.0 it means nothing (RFC 9110, section 10.1.1).
            accepts: values(request.headers, "accept").collect::<Vec<_>>().join(","),
            expects: minor > 0 && values(request.headers, "expect").any(|value| value == "100-continue"),
        };
        Ok(Some((head, length)))
    }
}

/// What the headers of this name say, in lower case. What is no text is none of the words that anybody looks
/// for.
pub(crate) fn values<'h>(
    headers: &'h [httparse::Header<'h>],
    name: &'h str,
) -> impl Iterator<Item = String> + 'h {
    let named = headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| str::from_utf8(header.value).unwrap_or("?").trim().to_ascii_lowercase())
}

/// The length of a body by RFC 9112, section 6.3. A request that does not speak of it has none.
fn body_length(headers: &[httparse::Header<'_>]) -> Result<Length, RequestError> {
    if let Some(last) = values(headers, "transfer-encoding").last() {
        let chunked = last.rsplit(',').next().is_some_and(|coding| coding.trim() == "chunked");
        return Ok(if chunked { Length::Chunked } else { Length::Encoded });
    }
    let mut lengths = values(headers, "content-length").map(|value| {
        // A sign would do for a number.
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

/// What comes with a request besides its head.
#[derive(Debug, Default)]
pub struct Body {
    /// As many as were announced.
    pub bytes: Vec<u8>,
    /// Those that came with the head or with the body, in their order. What is not taken out is closed.
    pub descriptors: Vec<OwnedFd>,
}

/// A request that is being read, one of a connection.
#[derive(Debug)]
pub(crate) struct Incoming<'c> {
    socket: BorrowedFd<'c>,
    /// Can be read when nothing is to be waited for any more.
    end: BorrowedFd<'c>,
    /// Most descriptors.
    most: usize,
    bytes: Vec<u8>,
    descriptors: Vec<OwnedFd>,
    /// Whether there is nothing more of it to wait for.
    complete: bool,
}

impl<'c> Incoming<'c> {
    /// From `socket`, with `most` descriptors at most, and until `end` can be read.
    pub(crate) fn new(socket: BorrowedFd<'c>, end: BorrowedFd<'c>, most: usize) -> Incoming<'c> {
        Incoming { socket, end, most, bytes: Vec::new(), descriptors: Vec::new(), complete: false }
    }

    /// Whether there is nothing more of it to wait for: it was read to its end, or has been waited for in
    /// vain.
    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// The head, when it is there.
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

    /// The body, when it is there: of `most` bytes at most.
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
        // What is behind it would be a request that this connection does not answer.
        self.bytes.truncate(length);
        Ok(Body { bytes: self.bytes.split_off(0), descriptors: self.descriptors.split_off(0) })
    }

    /// Waits for more bytes, at most `most`, and takes them. `None` when there are none to come.
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
