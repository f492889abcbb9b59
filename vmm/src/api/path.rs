//! The API's paths, their methods, and the names in them.
//!
//! A name may have any character. The client encodes each byte that is not a letter or a digit as `%` and two
//! hexadecimal digits ([`encode`]); here it is decoded. The path of a file may also appear unencoded, with
//! its slashes.

use std::fmt;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use volt_http::Method;
use volt_program::metrics::Format;

use crate::virtio::handle::DeviceKind;

/// The action that a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Status,
    /// Metrics in a format that the client accepts.
    Metrics(Format),
    Pause,
    Resume,
    PowerButton,
    Shutdown,
    Add(DeviceKind),
    /// Limits of the network device with this name.
    Limits(String),
    Remove(DeviceKind, String),
}

impl Route {
    /// Returns the outcome of a request that takes too long.
    pub(super) fn when_late(&self) -> &'static str {
        match self {
            Route::Add(_) => "nothing is added",
            Route::Pause => "the machine is not paused",
            Route::Remove(..) => "the guest may still release it; see the status",
            _ => "it may still be done; see the status and the log",
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Route::Status => write!(f, "the status"),
            Route::Metrics(_) => write!(f, "the metrics"),
            Route::Pause => write!(f, "the pause"),
            Route::Resume => write!(f, "the resume"),
            Route::PowerButton => write!(f, "the power button"),
            Route::Shutdown => write!(f, "the shutdown"),
            Route::Add(kind) => write!(f, "adding a {}", kind.name()),
            Route::Limits(name) => write!(f, "changing the limits of {name}"),
            Route::Remove(kind, name) => write!(f, "removing the {} {name}", kind.name()),
        }
    }
}

/// Why a path is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PathError {
    /// No route has this path.
    Unknown,
    /// A name is not UTF-8.
    NotUtf8,
}

/// Encodes a name as a part of a path.
pub(crate) fn encode(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

/// Returns the routes of `path`, each with its method.
pub(super) fn routes(path: &str) -> Result<Vec<(Method, Route)>, PathError> {
    let segments: Vec<_> = path.strip_prefix('/').ok_or(PathError::Unknown)?.split('/').collect();
    let put = |route| vec![(Method::PUT, route)];
    Ok(match segments[..] {
        ["metrics"] => vec![(Method::GET, Route::Metrics(Format::Text))],
        ["v1", "status"] => vec![(Method::GET, Route::Status)],
        ["v1", "pause"] => put(Route::Pause),
        ["v1", "resume"] => put(Route::Resume),
        ["v1", "power-button"] => put(Route::PowerButton),
        ["v1", "shutdown"] => put(Route::Shutdown),
        ["v1", "net"] => vec![(Method::POST, Route::Add(DeviceKind::Net))],
        ["v1", "disk"] => vec![(Method::POST, Route::Add(DeviceKind::Disk))],
        ["v1", "net", ref name @ ..] => {
            let mut routes = vec![(Method::DELETE, Route::Remove(DeviceKind::Net, decode(name)?))];
            if let [net @ .., "limits"] = name
                && !net.is_empty()
            {
                routes.push((Method::PUT, Route::Limits(decode(net)?)));
            }
            routes
        }
        ["v1", "disk", ref name @ ..] => {
            vec![(Method::DELETE, Route::Remove(DeviceKind::Disk, decode(name)?))]
        }
        _ => return Err(PathError::Unknown),
    })
}

/// Decodes the name in `segments`. Unencoded slashes of the name have split it.
fn decode(segments: &[&str]) -> Result<String, PathError> {
    let name = segments.join("/");
    let name = percent_decode_str(&name).decode_utf8().map_err(|_| PathError::NotUtf8)?;
    Ok(name.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(method: Method, path: &str) -> Option<Route> {
        let routes = routes(path).ok()?;
        routes.into_iter().find(|(by, _)| *by == method).map(|(_, route)| route)
    }

    /// Encoding and decoding restores each character by itself, and names that look like something else.
    #[test]
    fn names_come_through_whole() {
        let each = (0..=0x2fff).chain([0xffff, 0x1_0000, 0x10_ffff]).filter_map(char::from_u32);
        let names = each.map(|character| format!("/x/a{character}b")).chain(
            [
                "",
                ".",
                "..",
                "../..",
                "/",
                "//",
                "limits",
                "a/limits",
                "%2F",
                "%",
                "100%25",
                "/x/data#1?a=b c",
                "é",
            ]
            .map(str::to_owned),
        );
        for name in names {
            let path = encode(&name);
            assert!(path.bytes().all(|byte| byte == b'%' || byte.is_ascii_alphanumeric()), "{path}");
            for (kind, word) in [(DeviceKind::Net, "net"), (DeviceKind::Disk, "disk")] {
                let removed = route(Method::DELETE, &format!("/v1/{word}/{path}"));
                assert_eq!(removed, Some(Route::Remove(kind, name.clone())));
            }
            let limits = route(Method::PUT, &format!("/v1/net/{path}/limits"));
            assert_eq!(limits, Some(Route::Limits(name)));
        }
    }

    #[test]
    fn paths_of_files_may_stand_as_they_are() {
        let disk = |name: &str| Some(Route::Remove(DeviceKind::Disk, name.to_owned()));
        assert_eq!(route(Method::DELETE, "/v1/disk//srv/a.img"), disk("/srv/a.img"));
        assert_eq!(route(Method::DELETE, "/v1/disk/50%/limits"), disk("50%/limits"));
        let net = "/v1/net//run/a.sock/limits";
        assert_eq!(route(Method::PUT, net), Some(Route::Limits("/run/a.sock".to_owned())));
        let named = Route::Remove(DeviceKind::Net, "/run/a.sock/limits".to_owned());
        assert_eq!(route(Method::DELETE, net), Some(named));
        assert_eq!(route(Method::PUT, "/v1/net/limits"), None);
    }

    #[test]
    fn what_is_no_path_is_none() {
        for path in ["*", "", "/", "/v1", "/v1/", "/v1/status/", "/v2/status", "//v1/status"] {
            assert_eq!(routes(path), Err(PathError::Unknown), "{path}");
        }
        assert_eq!(routes("/v1/disk/%ff"), Err(PathError::NotUtf8));
    }
}
