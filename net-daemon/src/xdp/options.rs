//! The options for AF_XDP: values of `--xdp` and `--xsk-fd`, and the options of the helper.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::str::FromStr;

use clap::Args;
use thiserror::Error;
use volt_net::builder::MAX_PAIRS;
use volt_net::port::xdp::{XdpMode, XdpOptions};

/// Why a value of `--xdp` or `--xsk-fd` is wrong.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum XdpArgError {
    #[error("no interface is named before '{0}'")]
    NoName(String),
    #[error("unknown option '{0}': after the interface, only queue= and mode= are possible")]
    Option(String),
    #[error("queue={0} is not the number of a queue, from 0")]
    Queue(String),
    #[error("mode={0} is not one of auto, zero-copy, copy and generic")]
    Mode(String),
    #[error("'{0}' is not SOCKET:UMEM:LINK, three numbers of inherited descriptors")]
    Descriptors(String),
    #[error("all queues have the same link: {0} differs from {1}")]
    Links(RawFd, RawFd),
}

/// A value of `--xdp`: `IFACE[,queue=N][,mode=MODE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct XdpArg {
    pub(crate) name: String,
    pub(crate) queue: u32,
    pub(crate) mode: XdpMode,
}

impl XdpArg {
    /// Returns how to open the interface with so many queue pairs.
    pub(crate) fn options(&self, pairs: u16) -> XdpOptions {
        let XdpArg { name, queue, mode } = self.clone();
        XdpOptions { name, queue, pairs: pairs.into(), mode }
    }
}

impl FromStr for XdpArg {
    type Err = XdpArgError;

    fn from_str(text: &str) -> Result<XdpArg, XdpArgError> {
        let mut parts = text.split(',');
        let name = parts.next().filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| XdpArgError::NoName(text.to_owned()))?.to_owned();
        let mut arg = XdpArg { name, queue: 0, mode: XdpMode::Auto };
        for part in parts {
            match part.split_once('=') {
                Some(("queue", value)) => {
                    arg.queue = value.parse().map_err(|_| XdpArgError::Queue(value.to_owned()))?;
                }
                Some(("mode", value)) => arg.mode = mode(value)?,
                _ => return Err(XdpArgError::Option(part.to_owned())),
            }
        }
        Ok(arg)
    }
}

fn mode(text: &str) -> Result<XdpMode, XdpArgError> {
    match text {
        "auto" => Ok(XdpMode::Auto),
        "zero-copy" => Ok(XdpMode::ZeroCopy),
        "copy" => Ok(XdpMode::Copy),
        "generic" => Ok(XdpMode::Generic),
        _ => Err(XdpArgError::Mode(text.to_owned())),
    }
}

/// One queue's value of `--xsk-fd`: `SOCKET:UMEM:LINK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct XskFd {
    pub(crate) socket: RawFd,
    pub(crate) umem: RawFd,
    pub(crate) link: RawFd,
}

impl FromStr for XskFd {
    type Err = XdpArgError;

    fn from_str(text: &str) -> Result<XskFd, XdpArgError> {
        let numbers: Option<Vec<RawFd>> = text.split(':').map(|number| number.parse().ok()).collect();
        match numbers.as_deref() {
            Some([socket, umem, link]) => Ok(XskFd { socket: *socket, umem: *umem, link: *link }),
            _ => Err(XdpArgError::Descriptors(text.to_owned())),
        }
    }
}

/// Options of `volt-netd xdp-helper`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Helper {
    /// The interface, as for --xdp
    #[arg(value_name = "IFACE[,queue=N][,mode=MODE]")]
    pub(crate) interface: XdpArg,

    /// Number of queue pairs
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_PAIRS)))]
    pub(crate) queues: u16,

    /// Start the program as this user; requires root
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,

    /// The program and its options: it is given the descriptors by --xsk-fd
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub(crate) program: Vec<OsString>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_has_a_queue_and_a_mode() {
        let parse = |text: &str| text.parse::<XdpArg>();
        let arg = XdpArg { name: "eth1".into(), queue: 0, mode: XdpMode::Auto };
        assert_eq!(parse("eth1"), Ok(arg.clone()));
        let other = XdpArg { queue: 3, mode: XdpMode::ZeroCopy, ..arg };
        assert_eq!(parse("eth1,queue=3,mode=zero-copy"), Ok(other));
        assert!(matches!(parse(",queue=3"), Err(XdpArgError::NoName(_))));
        assert!(matches!(parse("eth1,queue=x"), Err(XdpArgError::Queue(_))));
        assert!(matches!(parse("eth1,mode=native"), Err(XdpArgError::Mode(_))));
        assert!(matches!(parse("eth1,mtu=9000"), Err(XdpArgError::Option(_))));
    }

    #[test]
    fn descriptors_are_three() {
        assert_eq!("3:4:5".parse(), Ok(XskFd { socket: 3, umem: 4, link: 5 }));
        for wrong in ["", "3", "3:4", "3:4:5:6", "a:b:c"] {
            assert!(matches!(wrong.parse::<XskFd>(), Err(XdpArgError::Descriptors(_))), "{wrong}");
        }
    }
}
