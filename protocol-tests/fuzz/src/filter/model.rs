//! The model: what a filter must say about each frame, by `docs/reference/policy.md`, the descriptions of
//! volt-filter's modules and the RFCs. It keeps everything in plain lists and maps. Speed does not matter.
//!
//! Two things it leaves to the filter, within bounds: TCP sequence numbers inside of a window, and the moment
//! at which expired entries make room in a full table.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use volt_filter::reason::Reason;
use volt_filter::verdict::Verdict;

use super::ends::GUEST;
use super::read::{self, Bytes, Ip, Load, Mac};
use super::rules::Policy;
use super::tcp::Connection;

mod flows;
mod guard;
mod header;
mod link;

/// Flows in the table.
pub(super) const FLOWS: usize = 64;
const BROADCAST: Mac = [255; 6];

/// Who is to blame for a refusal: the guard's are refusals in log mode too.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    Guard(Reason),
    Policy(Reason),
}

type Judged<T = ()> = Result<T, Reason>;

/// What tells flows apart: fragment, guest, peer, protocol, the guest's port, the peer's.
type Key = (bool, IpAddr, IpAddr, u8, u16, u16);

#[derive(Clone, Debug)]
struct Flow {
    /// Whether the guest has opened it.
    out: bool,
    mac: Mac,
    policy: u32,
    seen: u32,
    lifetime: u32,
    tcp: Option<Connection>,
}

#[derive(Clone, Debug)]
struct Shown {
    mac: Mac,
    policy: u32,
    seen: u32,
    lifetime: u32,
}

/// The state of the model.
pub(super) struct Model {
    /// Whether addresses are learnt, and the DHCP server of the settings.
    pub(super) learn: Option<Option<Ipv4Addr>>,
    pub(super) given: Vec<IpAddr>,
    pub(super) policy: Option<&'static Policy>,
    /// Counts changes of the policy.
    pub(super) number: u32,
    pub(super) now: u32,
    flows: HashMap<Key, Flow>,
    shown: HashMap<IpAddr, Shown>,
    asked: Option<(u32, u32)>,
    /// The leased address, and its last second.
    lease: Option<(Ipv4Addr, u32)>,
    learnt: Vec<Ipv6Addr>,
    /// ICMP errors of the guest: a second, and their number in it.
    errors: (u32, u32),
    /// What the filter has said, for the cases that are left to it.
    actual: Verdict,
}

/// A frame that is judged.
struct Frame<'a> {
    out: bool,
    bytes: Bytes<'a>,
    to: Mac,
    from: Mac,
}

/// An IP packet in a frame.
struct Packet<'a> {
    frame: &'a Frame<'a>,
    ip: &'a Ip,
    load: &'a Load,
}

impl Packet<'_> {
    fn peer(&self) -> IpAddr {
        if self.frame.out { self.ip.destination } else { self.ip.source }
    }

    fn guest(&self) -> IpAddr {
        if self.frame.out { self.ip.source } else { self.ip.destination }
    }

    fn peer_mac(&self) -> Mac {
        if self.frame.out { self.frame.to } else { self.frame.from }
    }

    fn is_v6(&self) -> bool {
        self.ip.source.is_ipv6()
    }
}

/// What must come out of a filter.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) verdict: Verdict,
    pub(super) header: [u8; 12],
    /// From where on the frame is padding, which is cleared.
    pub(super) padding: usize,
}

impl Model {
    pub(super) fn new(learn: Option<Option<Ipv4Addr>>, policy: Option<&'static Policy>) -> Model {
        let given = ["192.0.2.10", "2001:db8:1::10"].map(|text| text.parse().expect("an address"));
        Model {
            learn,
            given: given.to_vec(),
            policy,
            number: 1,
            now: 0,
            flows: HashMap::new(),
            shown: HashMap::new(),
            asked: None,
            lease: None,
            learnt: Vec::new(),
            errors: (0, 0),
            actual: Verdict::Pass,
        }
    }

    /// Judges a frame of `len` bytes, header first, about which the filter has said `actual`.
    pub(super) fn judge(&mut self, out: bool, frame: &[u8], len: usize, actual: Verdict) -> Expected {
        self.actual = actual;
        let mut expected = Expected { verdict: Verdict::Pass, header: [0; 12], padding: usize::MAX };
        let log = self.policy.is_some_and(|policy| policy.log);
        if let Err(refusal) = self.frame(out, frame, len, &mut expected) {
            expected.verdict = match refusal {
                Refusal::Policy(reason) if log => Verdict::Note(reason),
                Refusal::Policy(reason) | Refusal::Guard(reason) => Verdict::Refuse(reason),
            };
        }
        expected
    }

    fn frame(&mut self, out: bool, frame: &[u8], len: usize, expected: &mut Expected) -> Result<(), Refusal> {
        let guard = Refusal::Guard;
        let Some((header, bytes)) = frame.split_first_chunk::<12>() else {
            return Err(guard(Reason::Malformed));
        };
        if len < frame.len() {
            return Err(guard(Reason::Malformed));
        }
        let bytes = Bytes { bytes, len: len - 12 };
        let head = bytes.get(0, 14, bytes.len).map_err(guard)?;
        let (to, from) = (bytes.mac(0).map_err(guard)?, bytes.mac(6).map_err(guard)?);
        let frame = Frame { out, bytes, to, from };
        if out && from != GUEST {
            return Err(guard(Reason::SourceMac));
        }
        if !out && to != GUEST && to[0] & 1 == 0 {
            return Err(guard(Reason::DestinationMac));
        }
        match u16::from_be_bytes([head[12], head[13]]) {
            kind @ (0x0800 | 0x86dd) => {
                let ip = read::ip(&bytes, 14, kind == 0x86dd, false).map_err(guard)?;
                let load = read::load(&bytes, &ip).map_err(guard)?;
                expected.header = header::of_packet(out, header, &ip, &load).map_err(guard)?;
                if out && bytes.len > ip.end {
                    if bytes.len > 60 {
                        return Err(guard(Reason::Malformed));
                    }
                    expected.padding = 12 + ip.end;
                }
                self.packet(&Packet { frame: &frame, ip: &ip, load: &load })
            }
            kind => {
                expected.header = header::of_others(out, header).map_err(guard)?;
                expected.padding = 12 + 14 + 28;
                match kind {
                    0x0806 => self.arp(&frame),
                    0x8035 if out && guard::announces(&bytes) => Ok(()),
                    0..0x0600 => Err(guard(Reason::Length8023)),
                    0x8100 | 0x88a8 | 0x9100 | 0x9200 => Err(guard(Reason::Vlan)),
                    _ => Err(guard(Reason::EtherType)),
                }
            }
        }
    }

    fn packet(&mut self, packet: &Packet<'_>) -> Result<(), Refusal> {
        match packet.frame.out {
            true => self.guard_out(packet),
            false => self.guard_in(packet),
        }
        .map_err(Refusal::Guard)?;
        match self.policy {
            Some(policy) => self.by_policy(policy, packet).map_err(Refusal::Policy),
            None => Ok(()),
        }
    }

    fn by_policy(&mut self, policy: &Policy, packet: &Packet<'_>) -> Judged {
        if packet.ip.rerouted {
            return Err(if packet.is_v6() { Reason::ExtensionHeader } else { Reason::IpOptions });
        }
        match packet.load {
            Load::Icmp(kind, _) if !is_echo(packet.is_v6(), *kind) => self.message(policy, packet, *kind),
            Load::Udp(ports) if !packet.ip.options && self.is_dhcp(packet, *ports) => Ok(()),
            _ => self.flow(policy, packet),
        }
    }

    /// The server whose DHCP answers count.
    fn dhcp(&self) -> Option<IpAddr> {
        let of_policy = || self.policy?.dhcp.map(|text| text.parse().expect("an address"));
        self.learn.flatten().or_else(of_policy).map(IpAddr::V4)
    }

    /// Whether `address` is one of the guest's.
    fn is_own(&self, address: IpAddr) -> bool {
        let learnt = match address {
            IpAddr::V4(v4) => self.lease.is_some_and(|(lease, end)| lease == v4 && self.now <= end),
            // The guest has an IPv6 address, so it has the link-local one too.
            IpAddr::V6(v6) => self.learnt.contains(&v6) || v6 == guard::link_local(),
        };
        learnt || self.given.contains(&address)
    }

    /// Whether the filter should be believed about a choice that is its own.
    fn actual_is(&self, reason: Reason) -> bool {
        matches!(self.actual, Verdict::Refuse(actual) | Verdict::Note(actual) if actual == reason)
    }
}

fn is_echo(v6: bool, kind: u8) -> bool {
    if v6 { kind == 128 || kind == 129 } else { kind == 8 || kind == 0 }
}
