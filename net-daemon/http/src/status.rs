//! Status codes.

use std::fmt;

/// A response's status code (RFC 9110, section 15): three digits. It is printed with its reason, as in `404
/// Not Found`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StatusCode(pub(crate) u16);

/// Declares the constants, each with its number and its reason on the wire.
macro_rules! status_codes {
    ($($name:ident = $code:literal $reason:literal,)*) => {
        impl StatusCode {
            $(
                #[doc = concat!("`", $code, " ", $reason, "`")]
                pub const $name: StatusCode = StatusCode($code);
            )*

            /// Returns the reason on the wire; empty for a code without a constant here.
            pub fn reason(self) -> &'static str {
                match self.0 {
                    $($code => $reason,)*
                    _ => "",
                }
            }
        }
    };
}

status_codes! {
    CONTINUE = 100 "Continue",
    OK = 200 "OK",
    CREATED = 201 "Created",
    BAD_REQUEST = 400 "Bad Request",
    FORBIDDEN = 403 "Forbidden",
    NOT_FOUND = 404 "Not Found",
    METHOD_NOT_ALLOWED = 405 "Method Not Allowed",
    REQUEST_TIMEOUT = 408 "Request Timeout",
    CONFLICT = 409 "Conflict",
    LENGTH_REQUIRED = 411 "Length Required",
    PAYLOAD_TOO_LARGE = 413 "Payload Too Large",
    REQUEST_HEADER_FIELDS_TOO_LARGE = 431 "Request Header Fields Too Large",
    INTERNAL_SERVER_ERROR = 500 "Internal Server Error",
    NOT_IMPLEMENTED = 501 "Not Implemented",
    SERVICE_UNAVAILABLE = 503 "Service Unavailable",
    GATEWAY_TIMEOUT = 504 "Gateway Timeout",
}

impl StatusCode {
    /// Returns the number, from 100 to 999.
    pub fn as_u16(self) -> u16 {
        self.0
    }

    /// Whether it is a success, one of the 2xx.
    pub fn is_success(self) -> bool {
        (200..300).contains(&self.0)
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reason() {
            "" => write!(f, "{}", self.0),
            reason => write!(f, "{} {reason}", self.0),
        }
    }
}
