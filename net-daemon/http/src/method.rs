//! Methods of requests.

use std::borrow::Cow;
use std::fmt;

/// A request's method (RFC 9110, section 9): one of the constants below or any other token. Case matters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method(Cow<'static, str>);

impl Method {
    /// Remove.
    pub const DELETE: Method = Method(Cow::Borrowed("DELETE"));
    /// Read.
    pub const GET: Method = Method(Cow::Borrowed("GET"));
    /// Read, and respond with the head only.
    pub const HEAD: Method = Method(Cow::Borrowed("HEAD"));
    /// Add.
    pub const POST: Method = Method(Cow::Borrowed("POST"));
    /// Set.
    pub const PUT: Method = Method(Cow::Borrowed("PUT"));

    /// Returns the method of this name, which the parser has checked to be a token.
    pub(crate) fn named(name: &str) -> Method {
        let known = [Method::DELETE, Method::GET, Method::HEAD, Method::POST, Method::PUT];
        let known = known.into_iter().find(|method| method.as_str() == name);
        known.unwrap_or_else(|| Method(Cow::Owned(name.to_owned())))
    }

    /// Returns its name on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
