//! A response of a service, and its encoding.

use std::time::{SystemTime, UNIX_EPOCH};

use httpdate::fmt_http_date;

use crate::{Method, StatusCode};

/// The content type of JSON.
pub const JSON: &str = "application/json";
/// The content type of plain text.
pub const TEXT: &str = "text/plain; charset=utf-8";

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: StatusCode,
    content_type: &'static str,
    allow: Option<String>,
    body: Vec<u8>,
}

impl Response {
    /// Creates a response with a body of this content type, such as [`JSON`] or [`TEXT`].
    pub fn new(status: StatusCode, content_type: &'static str, body: impl Into<Vec<u8>>) -> Response {
        Response { status, content_type, allow: None, body: body.into() }
    }

    /// Adds the methods that its path supports (`Allow`, for status 405).
    #[must_use]
    pub fn allow<'m>(mut self, methods: impl IntoIterator<Item = &'m Method>) -> Response {
        let names: Vec<_> = methods.into_iter().map(Method::as_str).collect();
        self.allow = Some(names.join(", "));
        self
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Encodes it for a request of this minor version of HTTP/1. The connection is closed after it.
    pub(crate) fn encode(&self, minor: u8, with_body: bool, now: SystemTime) -> Vec<u8> {
        let mut head = format!("HTTP/1.{minor} {} {}\r\n", self.status.as_u16(), self.status.reason());
        let mut header = |name, value: &str| {
            head.extend([name, ": ", value, "\r\n"]);
        };
        header("content-type", self.content_type);
        if let Some(methods) = &self.allow {
            header("allow", methods);
        }
        if minor > 0 {
            // The default in HTTP/1.0.
            header("connection", "close");
        }
        header("content-length", &self.body.len().to_string());
        // HTTP dates begin in 1970. A clock may be set to an earlier date.
        header("date", &fmt_http_date(now.max(UNIX_EPOCH)));
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        if with_body {
            bytes.extend(&self.body);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn bytes_of_an_answer() {
        let answer = Response::new(StatusCode::METHOD_NOT_ALLOWED, JSON, "{}\n");
        let answer = answer.allow(&[Method::GET, Method::PUT]);
        let head = "HTTP/1.1 405 Method Not Allowed\r\ncontent-type: application/json\r\nallow: GET, PUT\r\n\
                    connection: close\r\ncontent-length: 3\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n";
        assert_eq!(answer.encode(1, true, UNIX_EPOCH), format!("{head}{{}}\n").into_bytes());
        assert_eq!(answer.encode(1, false, UNIX_EPOCH), head.as_bytes());
        assert_eq!(answer.encode(1, false, UNIX_EPOCH - Duration::from_secs(1)), head.as_bytes());
        let old = head.replace("HTTP/1.1", "HTTP/1.0").replace("connection: close\r\n", "");
        assert_eq!(answer.encode(0, false, UNIX_EPOCH), old.as_bytes());
    }
}
