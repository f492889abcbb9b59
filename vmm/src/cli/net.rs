//! Network devices on the command line: `--net KIND=WHERE,option,...` and its shorthands.

use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use volt_net::net::config::{MIN_MTU, Mac, MacError};

use crate::config::{NetDeviceConfig, NetPortConfig, NetSocketConfig, PortKind, VhostNet};
use crate::virtio::vhost_user_net::MAX_PAIRS;

const MTU: RangeInclusive<u16> = MIN_MTU..=u16::MAX;
const QUEUES: RangeInclusive<u16> = 1..=MAX_PAIRS;

/// Why a network device on the command line is wrong.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum NetValueError {
    #[error("'{0}' does not say where frames go: begin with tap=NAME, macvtap=NAME or socket=PATH")]
    Kind(String),
    #[error("no interface or socket is named before '{0}'")]
    NoName(String),
    #[error(
        "unknown option '{0}': a network device knows mac=, mtu= and queues=, with tap= and macvtap= also \
         vhost-net=, and with socket= link-down-after= (a path cannot contain a comma)"
    )]
    Option(String),
    #[error("the option '{0}' is given twice")]
    Twice(String),
    #[error("mtu={0} is no number from {min} to {max}", min = MTU.start(), max = MTU.end())]
    Mtu(String),
    #[error("queues={0} is no number from {min} to {max}", min = QUEUES.start(), max = QUEUES.end())]
    Queues(String),
    #[error("link-down-after={0} is no number of seconds from 0 to {max}", max = u32::MAX)]
    LinkDown(String),
    #[error("vhost-net={0} is none of off, on and require")]
    VhostNet(String),
    #[error("{option}= does not go with {kind}=: {why}")]
    Combination { option: &'static str, kind: &'static str, why: &'static str },
    #[error(transparent)]
    Mac(#[from] MacError),
}

/// A device as `--net` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NetOption(pub(super) NetDeviceConfig);

impl FromStr for NetOption {
    type Err = NetValueError;

    fn from_str(text: &str) -> Result<NetOption, NetValueError> {
        let of_kind = |kind| text.strip_prefix(kind);
        let device = if let Some(rest) = of_kind("tap=") {
            tap(rest)
        } else if let Some(rest) = of_kind("macvtap=") {
            port(PortKind::Macvtap, rest)
        } else if let Some(rest) = of_kind("socket=") {
            socket(rest)
        } else {
            Err(NetValueError::Kind(text.to_owned()))
        };
        device.map(NetOption)
    }
}

/// `--tap`, for `--net tap=`.
pub(super) fn tap(text: &str) -> Result<NetDeviceConfig, NetValueError> {
    port(PortKind::Tap, text)
}

fn port(kind: PortKind, text: &str) -> Result<NetDeviceConfig, NetValueError> {
    let (name, options) = split(text)?;
    let refuse = |option, why| NetValueError::Combination { option, kind: kind.name(), why };
    if options.link_down_after.is_some() {
        return Err(refuse("link-down-after", "the link is down whenever the interface is gone"));
    }
    Ok(NetDeviceConfig::Port(NetPortConfig {
        kind,
        name: name.to_owned(),
        mac: options.mac,
        mtu: options.mtu,
        queues: options.queues.unwrap_or(1),
        vhost_net: options.vhost_net.unwrap_or_default(),
    }))
}

/// `--net-socket`, for `--net socket=`.
pub(super) fn socket(text: &str) -> Result<NetDeviceConfig, NetValueError> {
    let (path, options) = split(text)?;
    if options.vhost_net.is_some() {
        let why = "the back-end moves the frames, wherever it does";
        return Err(NetValueError::Combination { option: "vhost-net", kind: "socket", why });
    }
    Ok(NetDeviceConfig::Socket(NetSocketConfig {
        socket: path.into(),
        mac: options.mac,
        mtu: options.mtu,
        queues: options.queues.unwrap_or(1),
        timeout: None,
        link_down_after: options.link_down_after,
    }))
}

/// What may follow the name.
#[derive(Default)]
struct Options {
    mac: Option<Mac>,
    mtu: Option<u16>,
    queues: Option<u16>,
    link_down_after: Option<Duration>,
    vhost_net: Option<VhostNet>,
}

/// `--vhost-net` and `vhost-net=`.
pub(super) fn vhost_net(text: &str) -> Result<VhostNet, NetValueError> {
    match text {
        "off" => Ok(VhostNet::Off),
        "on" => Ok(VhostNet::On),
        "require" => Ok(VhostNet::Require),
        _ => Err(NetValueError::VhostNet(text.to_owned())),
    }
}

/// Splits "NAME,option,option".
fn split(text: &str) -> Result<(&str, Options), NetValueError> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    if name.is_empty() {
        return Err(NetValueError::NoName(text.to_owned()));
    }
    let mut options = Options::default();
    for part in parts {
        let unknown = || NetValueError::Option(part.to_owned());
        let (key, value) = part.split_once('=').ok_or_else(unknown)?;
        let number = |range: RangeInclusive<u16>| value.parse().ok().filter(|n| range.contains(n));
        let own = || value.to_owned();
        let again = match key {
            "mac" => options.mac.replace(value.parse()?).is_some(),
            "mtu" => options.mtu.replace(number(MTU).ok_or_else(|| NetValueError::Mtu(own()))?).is_some(),
            "queues" => {
                let number = number(QUEUES).ok_or_else(|| NetValueError::Queues(own()))?;
                options.queues.replace(number).is_some()
            }
            "link-down-after" => {
                let seconds: u32 = value.parse().map_err(|_| NetValueError::LinkDown(own()))?;
                options.link_down_after.replace(Duration::from_secs(seconds.into())).is_some()
            }
            "vhost-net" => options.vhost_net.replace(vhost_net(value)?).is_some(),
            _ => return Err(unknown()),
        };
        if again {
            return Err(NetValueError::Twice(key.to_owned()));
        }
    }
    Ok((name, options))
}
