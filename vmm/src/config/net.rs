//! A network device: `--net KIND=WHERE,option,...` and its shorthands, `--tap` and `--net-socket`.

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use volt_net::builder::MAX_PAIRS;
use volt_net::config::{MIN_MTU, Mac, MacError};
use volt_net::filter::is_host;
use volt_net::filter::volt_filter::setup::ADDRESSES;
use volt_net::limiter::{Rate, RateError, RateLimits};
use volt_net::port::peer_options::{PeerOptionError, PeerOptions};

/// Most queue pairs of a device, with an interface or with a back-end.
pub const MAX_QUEUE_PAIRS: u16 = MAX_PAIRS;

const MTU: RangeInclusive<u16> = MIN_MTU..=u16::MAX;
const QUEUES: RangeInclusive<u16> = 1..=MAX_QUEUE_PAIRS;

/// One `--net`, `--tap` or `--net-socket`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetDeviceConfig {
    /// This process moves the frames to and from an interface of the host.
    Port(NetPortConfig),
    /// A vhost-user back-end moves the frames.
    Socket(NetSocketConfig),
}

impl NetDeviceConfig {
    /// Returns the name of the interface, or the path of the socket of the back-end or peer.
    pub fn name(&self) -> String {
        match self {
            NetDeviceConfig::Port(port) => port.name.clone(),
            NetDeviceConfig::Socket(socket) => socket.socket.display().to_string(),
        }
    }

    /// Returns the peer, if there is one.
    pub fn peer(&self) -> Option<&PeerOptions> {
        match self {
            NetDeviceConfig::Port(NetPortConfig { kind: PortKind::Peer(peer), .. }) => Some(peer),
            _ => None,
        }
    }

    /// Parses the value of `tap=` or `--tap`.
    ///
    /// # Errors
    ///
    /// See [`NetOptionError`].
    pub fn tap(text: &str) -> Result<NetDeviceConfig, NetOptionError> {
        port(PortKind::Tap, text)
    }

    /// Parses the value of `socket=` or `--net-socket`.
    ///
    /// # Errors
    ///
    /// See [`NetOptionError`].
    pub fn socket(text: &str) -> Result<NetDeviceConfig, NetOptionError> {
        let (path, options) = split(text)?;
        if options.vhost_net.is_some() {
            let why = "the back-end moves the frames";
            return Err(NetOptionError::Combination { option: "vhost-net", kind: "socket", why });
        }
        if let Some(option) = options.rate() {
            let why = "the back-end limits the rate ('volt-netd --rx-rate' and '--tx-rate')";
            return Err(NetOptionError::Combination { option, kind: "socket", why });
        }
        if let Some(option) = options.guard_option() {
            let why = "the back-end moves the frames: use volt-netd's --guard";
            return Err(NetOptionError::Combination { option, kind: "socket", why });
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
}

/// A kind of interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A TAP interface, created if it does not exist.
    Tap,
    /// An existing macvtap interface.
    Macvtap,
    /// The socket of a peer: another program, without an interface.
    Peer(PeerOptions),
}

impl PortKind {
    /// Returns its name in `--net`.
    pub fn name(&self) -> &'static str {
        match self {
            PortKind::Tap => "tap",
            PortKind::Macvtap => "macvtap",
            PortKind::Peer(PeerOptions::Stream(_)) => "stream",
            PortKind::Peer(PeerOptions::Datagram(_)) => "dgram",
        }
    }
}

/// Whether vhost-net in the kernel moves an interface's frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VhostNet {
    /// This process moves them.
    #[default]
    Off,
    /// The kernel moves them if it can, otherwise this process.
    On,
    /// The kernel moves them. If it cannot, the device is refused.
    Require,
}

/// A network device with an interface of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetPortConfig {
    /// The kind of interface.
    pub kind: PortKind,
    /// The name of the interface, or the path of the peer's socket.
    pub name: String,
    /// The guest's address. By default, the macvtap's own, or a random one.
    pub mac: Option<Mac>,
    /// The MTU that the guest is told. By default, the interface's.
    pub mtu: Option<u16>,
    /// Queue pairs, 1 or more.
    pub queues: u16,
    /// Whether vhost-net moves the frames.
    pub vhost_net: VhostNet,
    /// The rate limits.
    pub limits: RateLimits,
    /// The guest's IP addresses, if frames with which it pretends to be another host are refused.
    pub guard: Option<Vec<IpAddr>>,
}

/// A network device served by a vhost-user back-end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSocketConfig {
    /// The Unix socket on which the back-end listens.
    pub socket: PathBuf,
    /// The guest's address. By default, the back-end's, or a random one.
    pub mac: Option<Mac>,
    /// The MTU that the guest is told. By default, the back-end's.
    pub mtu: Option<u16>,
    /// Queue pairs, 1 or more.
    pub queues: u16,
    /// How long to wait for the back-end at the start. `None` waits forever.
    pub timeout: Option<Duration>,
    /// The guest's link goes down after the back-end has been away for that long. `None` leaves it up.
    pub link_down_after: Option<Duration>,
}

/// Why a network device's options are wrong.
#[derive(Debug, Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each text says what its variant and fields mean")]
pub enum NetOptionError {
    #[error(
        "'{0}' does not name an interface or socket: begin with tap=NAME, macvtap=NAME, stream=PATH, \
         dgram=PATH or socket=PATH"
    )]
    Kind(String),
    #[error("no interface or socket is named before '{0}'")]
    NoName(String),
    #[error(
        "unknown option '{0}': a network device has mac=, mtu= and queues=; except with socket= also \
         rx-rate=, tx-rate=, guard= and guest-ip=; with tap= and macvtap= also vhost-net=; with stream= also \
         listen; with dgram= also local= and vfkit; with socket= also link-down-after= (a path cannot \
         contain a comma)"
    )]
    Option(String),
    #[error("the option '{0}' is given twice")]
    Twice(String),
    #[error("mtu={0} is not a number from {min} to {max}", min = MTU.start(), max = MTU.end())]
    Mtu(String),
    #[error("queues={0} is not a number from {min} to {max}", min = QUEUES.start(), max = QUEUES.end())]
    Queues(String),
    #[error("link-down-after={0} is not a number of seconds from 0 to {max}", max = u32::MAX)]
    LinkDown(String),
    #[error("vhost-net={0} is not one of off, on and require")]
    VhostNet(String),
    #[error("guard={0} is not one of off and on")]
    Guard(String),
    #[error("guest-ip={0} is not 1 to {ADDRESSES} addresses of hosts, like 192.0.2.10+2001:db8::10")]
    GuestIp(String),
    #[error("guard=on needs the guest's addresses: add guest-ip=ADDRESS+ADDRESS...")]
    NoGuestIp,
    #[error("guest-ip= has no effect without guard=on")]
    NoGuard,
    #[error("{option}= cannot be combined with {kind}=: {why}")]
    Combination { option: &'static str, kind: &'static str, why: &'static str },
    #[error("{0}= {1}")]
    Peer(&'static str, #[source] PeerOptionError),
    #[error(transparent)]
    Mac(#[from] MacError),
    #[error(transparent)]
    Rate(#[from] RateError),
}

impl FromStr for NetDeviceConfig {
    type Err = NetOptionError;

    /// Reads "KIND=WHERE,option,option".
    fn from_str(text: &str) -> Result<NetDeviceConfig, NetOptionError> {
        let of_kind = |kind| text.strip_prefix(kind);
        if let Some(rest) = of_kind("tap=") {
            NetDeviceConfig::tap(rest)
        } else if let Some(rest) = of_kind("macvtap=") {
            port(PortKind::Macvtap, rest)
        } else if let Some(rest) = of_kind("stream=") {
            let (own, rest) = apart(rest, |word| word == "listen");
            let stream = own.parse().map_err(|error| NetOptionError::Peer("stream", error))?;
            port(PortKind::Peer(PeerOptions::Stream(stream)), &rest)
        } else if let Some(rest) = of_kind("dgram=") {
            let (own, rest) = apart(rest, |word| word == "vfkit" || word.starts_with("local="));
            let datagram = own.parse().map_err(|error| NetOptionError::Peer("dgram", error))?;
            port(PortKind::Peer(PeerOptions::Datagram(datagram)), &rest)
        } else if let Some(rest) = of_kind("socket=") {
            NetDeviceConfig::socket(rest)
        } else {
            Err(NetOptionError::Kind(text.to_owned()))
        }
    }
}

impl FromStr for VhostNet {
    type Err = NetOptionError;

    fn from_str(text: &str) -> Result<VhostNet, NetOptionError> {
        match text {
            "off" => Ok(VhostNet::Off),
            "on" => Ok(VhostNet::On),
            "require" => Ok(VhostNet::Require),
            _ => Err(NetOptionError::VhostNet(text.to_owned())),
        }
    }
}

/// Sorts the words after the path: those that are a peer's, and those of every device.
fn apart(text: &str, is_own: impl Fn(&str) -> bool) -> (String, String) {
    let (path, words) = text.split_once(',').map_or((text, None), |(path, words)| (path, Some(words)));
    let words = words.into_iter().flat_map(|words| words.split(','));
    let (own, rest): (Vec<_>, Vec<_>) = words.partition(|word| is_own(word));
    ([&[path], &own[..]].concat().join(","), [&[path], &rest[..]].concat().join(","))
}

fn port(kind: PortKind, text: &str) -> Result<NetDeviceConfig, NetOptionError> {
    let (name, options) = split(text)?;
    let refuse = |option, why| NetOptionError::Combination { option, kind: kind.name(), why };
    if options.link_down_after.is_some() {
        return Err(refuse("link-down-after", "the link is always down while the interface does not exist"));
    }
    if let PortKind::Peer(_) = kind {
        if options.queues.is_some_and(|queues| queues > 1) {
            return Err(refuse("queues", "a peer has one queue pair"));
        }
        if options.vhost_net.is_some_and(|vhost_net| vhost_net != VhostNet::Off) {
            return Err(refuse("vhost-net", "the kernel moves no frames between a guest and a peer"));
        }
    }
    let vhost_net = options.vhost_net.unwrap_or_default();
    if let Some(option) = options.rate().filter(|_| vhost_net != VhostNet::Off) {
        let why = "the kernel moves the frames and applies no limit: use 'tc' on the interface";
        return Err(NetOptionError::Combination { option, kind: "vhost-net", why });
    }
    if let Some(option) = options.guard_option().filter(|_| vhost_net != VhostNet::Off) {
        let why = "the kernel moves the frames and judges none";
        return Err(NetOptionError::Combination { option, kind: "vhost-net", why });
    }
    let guard = options.guard()?;
    Ok(NetDeviceConfig::Port(NetPortConfig {
        kind,
        name: name.to_owned(),
        mac: options.mac,
        mtu: options.mtu,
        queues: options.queues.unwrap_or(1),
        vhost_net,
        limits: RateLimits {
            rx: options.rx_rate.unwrap_or_default(),
            tx: options.tx_rate.unwrap_or_default(),
        },
        guard,
    }))
}

/// The options after the name.
#[derive(Default)]
struct Options {
    mac: Option<Mac>,
    mtu: Option<u16>,
    queues: Option<u16>,
    link_down_after: Option<Duration>,
    vhost_net: Option<VhostNet>,
    rx_rate: Option<Rate>,
    tx_rate: Option<Rate>,
    guard: Option<bool>,
    guest_ip: Option<Vec<IpAddr>>,
}

impl Options {
    /// Returns the name of an option of the guard that is given, if any.
    fn guard_option(&self) -> Option<&'static str> {
        let guard = self.guard.filter(|on| *on).map(|_| "guard");
        guard.or(self.guest_ip.as_ref().map(|_| "guest-ip"))
    }

    /// Returns the guest's addresses, if it is guarded.
    fn guard(&self) -> Result<Option<Vec<IpAddr>>, NetOptionError> {
        match (self.guard.unwrap_or(false), &self.guest_ip) {
            (true, Some(addresses)) => Ok(Some(addresses.clone())),
            (true, None) => Err(NetOptionError::NoGuestIp),
            (false, Some(_)) => Err(NetOptionError::NoGuard),
            (false, None) => Ok(None),
        }
    }

    /// Returns the name of a rate option that is given, if any.
    fn rate(&self) -> Option<&'static str> {
        let rx = self.rx_rate.map(|_| "rx-rate");
        rx.or(self.tx_rate.map(|_| "tx-rate"))
    }
}

/// Reads "ADDRESS+ADDRESS".
fn addresses(text: &str) -> Option<Vec<IpAddr>> {
    let address = |text: &str| text.parse().ok().filter(|address| is_host(*address));
    let addresses: Option<Vec<_>> = text.split('+').map(address).collect();
    addresses.filter(|addresses| addresses.len() <= ADDRESSES)
}

/// Splits "NAME,option,option".
fn split(text: &str) -> Result<(&str, Options), NetOptionError> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    if name.is_empty() {
        return Err(NetOptionError::NoName(text.to_owned()));
    }
    let mut options = Options::default();
    for part in parts {
        let unknown = || NetOptionError::Option(part.to_owned());
        let (key, value) = part.split_once('=').ok_or_else(unknown)?;
        let number = |range: RangeInclusive<u16>| value.parse().ok().filter(|n| range.contains(n));
        let own = || value.to_owned();
        let again = match key {
            "mac" => options.mac.replace(value.parse()?).is_some(),
            "mtu" => options.mtu.replace(number(MTU).ok_or_else(|| NetOptionError::Mtu(own()))?).is_some(),
            "queues" => {
                let number = number(QUEUES).ok_or_else(|| NetOptionError::Queues(own()))?;
                options.queues.replace(number).is_some()
            }
            "link-down-after" => {
                let seconds: u32 = value.parse().map_err(|_| NetOptionError::LinkDown(own()))?;
                options.link_down_after.replace(Duration::from_secs(seconds.into())).is_some()
            }
            "vhost-net" => options.vhost_net.replace(value.parse()?).is_some(),
            "rx-rate" => options.rx_rate.replace(value.parse()?).is_some(),
            "tx-rate" => options.tx_rate.replace(value.parse()?).is_some(),
            "guard" => {
                let on = [("off", false), ("on", true)].into_iter().find(|(word, _)| *word == value);
                let (_, on) = on.ok_or_else(|| NetOptionError::Guard(own()))?;
                options.guard.replace(on).is_some()
            }
            "guest-ip" => {
                let addresses = addresses(value).ok_or_else(|| NetOptionError::GuestIp(own()))?;
                options.guest_ip.replace(addresses).is_some()
            }
            _ => return Err(unknown()),
        };
        if again {
            return Err(NetOptionError::Twice(key.to_owned()));
        }
    }
    Ok((name, options))
}
