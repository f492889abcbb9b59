//! The address of the metrics server: `unix:PATH` or `tcp:ADDRESS:PORT`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

/// An address of the metrics server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// A text that is not an address.
#[derive(Debug, Error)]
#[error(
    "'{0}' is not an address for metrics: give unix:PATH, or tcp:ADDRESS:PORT with a numeric address, for \
     example tcp:127.0.0.1:9101 or tcp:[::1]:9101"
)]
pub(crate) struct AddressError(String);

impl Address {
    /// Returns whether other hosts may be able to connect.
    pub(crate) fn is_public(&self) -> bool {
        matches!(self, Address::Tcp(address) if !address.ip().is_loopback())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let address = match text.split_once(':') {
            Some(("unix", path)) if !path.is_empty() => Some(Address::Unix(path.into())),
            Some(("tcp", address)) => address.parse().ok().map(Address::Tcp),
            _ => None,
        };
        address.ok_or_else(|| AddressError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let parse = |text: &str| text.parse::<Address>().map_err(|error| error.to_string());
        assert_eq!(parse("unix:/run/a:b"), Ok(Address::Unix("/run/a:b".into())));
        for (text, public) in [
            ("tcp:127.0.0.1:9101", false),
            ("tcp:[::1]:9101", false),
            ("tcp:127.9.9.9:1", false),
            ("tcp:0.0.0.0:9101", true),
            ("tcp:[::]:9101", true),
            ("tcp:192.0.2.1:9101", true),
        ] {
            assert_eq!(parse(text).unwrap().is_public(), public, "{text}");
        }
        for wrong in ["", "unix:", "tcp:9101", "tcp:localhost:9101", "tcp:127.0.0.1", "udp:1", "/run/a"] {
            assert!(
                parse(wrong).unwrap_err().starts_with(&format!("'{wrong}' is not an address")),
                "{wrong}"
            );
        }
    }
}
