//! The judgement of one frame: first the guard, then the policy.

use std::net::{IpAddr, Ipv4Addr};

use crate::flows::entry::Entry;
use crate::flows::key::Key;
use crate::flows::table::{Locks, Table};
use crate::flows::tcp::{self, Step};
use crate::guard::Guard;
use crate::memory::{NEIGHBOURS, Parts};
use crate::reason::Reason;
use crate::rules::{Mode, Policy, Question};
use crate::wire::arp::{self, Arp};
use crate::wire::dhcp;
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::icmp::{Icmp, Kind};
use crate::wire::ip;
use crate::wire::packet::Packet;
use crate::wire::transport::Transport;
use crate::wire::{Copied, udp};
use crate::{Way, header};

mod icmp;
mod neighbours;

/// Lifetimes in seconds of flows without states. RFC 4787 asks for two minutes at least for UDP.
const UDP_LIFETIME: u32 = 180;
const ECHO_LIFETIME: u32 = 60;
const OTHER_LIFETIME: u32 = 600;
/// A flow shows that its neighbour is there once in 2 to the power of this many seconds.
const REMINDER: u32 = 9;

/// Why a frame is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Objection {
    /// Of the guard, or because the frame cannot be judged: in every mode.
    Guard(Reason),
    /// Of the policy.
    Policy(Reason),
}

/// All that a judgement needs.
pub(crate) struct Judge<'a> {
    pub(crate) guard: Guard<'a>,
    pub(crate) policy: Option<PolicyInForce<'a>>,
    /// The server whose DHCP answers count.
    pub(crate) dhcp: Option<Ipv4Addr>,
    pub(crate) way: Way,
    pub(crate) now: u32,
}

/// A policy, with what it has allowed.
pub(crate) struct PolicyInForce<'a> {
    pub(crate) rules: &'a Policy,
    /// Its number: flows that another one has allowed are judged anew.
    pub(crate) number: u32,
    pub(crate) parts: Parts<'a>,
    /// Those of flows and neighbours.
    pub(crate) locks: [&'a Locks; 2],
    /// Most flows.
    pub(crate) most: usize,
    pub(crate) now: u32,
}

impl<'a> PolicyInForce<'a> {
    #[inline]
    fn flows(&self) -> Table<'a> {
        Table::new(self.parts.flows(), self.locks[0], self.most, self.now)
    }

    fn neighbours(&self) -> Table<'a> {
        Table::new(self.parts.neighbours(), self.locks[1], NEIGHBOURS, self.now)
    }
}

/// An IP packet in its frame.
struct Sight<'a> {
    link: Ethernet<'a>,
    frame: Copied<'a>,
    packet: &'a Packet,
    transport: &'a Transport,
}

impl Sight<'_> {
    /// Returns the MAC address of the other end, or of the gateway.
    #[inline]
    fn peer_mac(&self, way: Way) -> Mac {
        if way == Way::Out { self.link.destination() } else { self.link.source() }
    }

    fn peer(&self, way: Way) -> IpAddr {
        if way == Way::Out { self.packet.destination() } else { self.packet.source() }
    }
}

impl Judge<'_> {
    /// Judges a frame, and rebuilds its virtio-net header.
    #[inline]
    pub(crate) fn frame(&self, frame: &mut [u8], len: usize) -> Result<(), Objection> {
        let (padding, judged) = self.headers(frame, len)?;
        // Also in log mode, in which a frame passes that the policy would refuse.
        if let Some(padding) = frame.get_mut(padding..) {
            // The guest could say anything there.
            padding.fill(0);
        }
        judged.map_err(Objection::Policy)
    }

    /// Judges a frame. Returns where padding to be cleared begins, and what the policy says.
    #[inline]
    fn headers(&self, frame: &mut [u8], len: usize) -> Result<(usize, Result<(), Reason>), Objection> {
        let guard = Objection::Guard;
        let (header, bytes) = header::split(frame, len).ok_or(guard(Reason::Malformed))?;
        let link = Ethernet::new(bytes).map_err(guard)?;
        self.guard.link(self.way, link).map_err(guard)?;
        match link.ether_type() {
            ethernet::IPV4 | ethernet::IPV6 => {
                let packet = ip::read(bytes, link.ether_type()).map_err(guard)?;
                let transport = Transport::new(bytes, &packet).map_err(guard)?;
                header::rebuild(self.way, header, &packet, &transport).map_err(guard)?;
                let sight = Sight { link, frame: bytes, packet: &packet, transport: &transport };
                let padding = self.padding(&sight).map_err(guard)?;
                Ok((padding, self.packet(&sight).map_err(guard)?))
            }
            other => {
                header::rebuild_plain(self.way, header).map_err(guard)?;
                let judged = match other {
                    ethernet::ARP => self.arp(link, bytes).map_err(guard)?,
                    _ if self.way == Way::Out && arp::announces(bytes, self.guard.mac()) => Ok(()),
                    other => return Err(guard(ethernet::unjudged(other))),
                };
                Ok((header::LEN + ethernet::LEN + arp::LEN, judged))
            }
        }
    }

    /// Returns where padding begins. A guest pads frames to the least length only.
    #[inline]
    fn padding(&self, sight: &Sight<'_>) -> Result<usize, Reason> {
        match sight.frame.len {
            len if len == sight.packet.end || self.way == Way::In => Ok(usize::MAX),
            len if len <= ethernet::MIN_LEN => Ok(header::LEN + sight.packet.end),
            _ => Err(Reason::Malformed),
        }
    }

    /// Judges ARP: the guard's reason to refuse it, or what the policy says.
    #[cold]
    fn arp(&self, link: Ethernet<'_>, bytes: Copied<'_>) -> Result<Result<(), Reason>, Reason> {
        let message = Arp::new(bytes)?;
        if self.way == Way::Out {
            if bytes.len > ethernet::MIN_LEN {
                return Err(Reason::Arp);
            }
            self.guard.arp(link, message)?;
        }
        Ok(self.policy.as_ref().map_or(Ok(()), |policy| self.arp_by_policy(policy, link, message)))
    }

    /// Judges an IP packet: the guard's reason to refuse it, or what the policy says.
    #[inline]
    fn packet(&self, sight: &Sight<'_>) -> Result<Result<(), Reason>, Reason> {
        let Sight { frame, packet, transport, .. } = sight;
        match self.way {
            Way::Out => self.guard.packet(*frame, packet, transport),
            Way::In => self.guard.arriving(*frame, packet, transport, self.dhcp),
        }?;
        Ok(self.policy.as_ref().map_or(Ok(()), |policy| self.by_policy(policy, sight)))
    }

    #[inline]
    fn by_policy(&self, policy: &PolicyInForce<'_>, sight: &Sight<'_>) -> Result<(), Reason> {
        if sight.packet.rerouted {
            return Err(options_reason(sight.packet));
        }
        match sight.transport {
            Transport::Icmp(icmp) if !is_echo(*icmp) => return self.message(policy, sight, *icmp),
            Transport::Udp(udp) if !sight.packet.options && self.is_dhcp(sight, *udp) => return Ok(()),
            _ => {}
        }
        let key = Key::of(self.way, sight.packet, sight.transport);
        match policy.flows().find(&key) {
            Some(entry) => match self.known(policy, sight, &key, entry)? {
                Step::Fits => Ok(()),
                Step::Reopens => self.unknown(policy, sight, &key),
            },
            None => self.unknown(policy, sight, &key),
        }
    }

    /// Whether it is DHCP that the guard has judged, between the guest and the server of the policy.
    fn is_dhcp(&self, sight: &Sight<'_>, udp: udp::Udp) -> bool {
        let Some(server) = self.dhcp.map(IpAddr::V4) else { return false };
        match self.way {
            Way::Out => {
                let broadcast = sight.packet.destination() == IpAddr::V4(Ipv4Addr::BROADCAST)
                    && sight.link.destination() == ethernet::BROADCAST;
                // A lease is renewed with its server directly.
                let direct = sight.packet.destination() == server
                    && self
                        .policy
                        .as_ref()
                        .is_some_and(|policy| self.reaches(policy, server, sight.link.destination()));
                sight.packet.is_ipv4 && dhcp::is_to_server(udp) && (broadcast || direct)
            }
            Way::In => {
                let ports = (udp.source, udp.destination);
                sight.packet.source() == server && ports == (dhcp::SERVER, dhcp::CLIENT)
            }
        }
    }

    /// Judges a packet of a flow that was allowed.
    #[inline]
    fn known(
        &self,
        policy: &PolicyInForce<'_>,
        sight: &Sight<'_>,
        key: &Key,
        entry: Entry<'_>,
    ) -> Result<Step, Reason> {
        let mac = sight.peer_mac(self.way);
        if entry.mac() != mac || entry.policy() != policy.number {
            // Its host or gateway may have another one by now, or another policy says so.
            if !self.reaches(policy, key.peer(), mac) {
                if entry.mac() == mac && policy.rules.mode() == Mode::Log {
                    // Noted once, as a new flow.
                    entry.set_policy(policy.number);
                }
                return Err(Reason::FlowMac);
            }
            entry.set_mac(mac);
        }
        if entry.policy() != policy.number || sight.packet.options {
            self.anew(policy, key, entry, sight.packet.options)?;
        }
        let step = match sight.transport {
            Transport::Tcp(segment) if sight.packet.fragment.is_none() => {
                tcp::follow(entry, self.way, segment)?
            }
            _ => Step::Fits,
        };
        if entry.last_seen() >> REMINDER != self.now >> REMINDER {
            // A host that talks is still there, although nobody asks for it.
            self.shown(policy, key.peer());
        }
        entry.seen(self.now);
        Ok(step)
    }

    /// Judges a known flow by the rules: the policy has changed since, or the packet has options.
    #[cold]
    fn anew(
        &self,
        policy: &PolicyInForce<'_>,
        key: &Key,
        entry: Entry<'_>,
        options: bool,
    ) -> Result<(), Reason> {
        let way = entry.opened();
        let question = Question {
            way,
            peer: key.peer(),
            protocol: key.protocol(),
            port: key.port(way),
            fragment: key.is_fragment(),
            options,
        };
        match by_rules(policy, &question) {
            Err(reason) if policy.rules.mode() == Mode::Enforce => {
                if !options {
                    policy.flows().remove(key);
                }
                Err(reason)
            }
            decided => {
                entry.set_policy(policy.number);
                decided
            }
        }
    }

    /// Judges a packet that belongs to no flow. It may begin one.
    #[cold]
    fn unknown(&self, policy: &PolicyInForce<'_>, sight: &Sight<'_>, key: &Key) -> Result<(), Reason> {
        let Sight { packet, transport, .. } = sight;
        match transport {
            _ if packet.fragment.is_some() => {}
            Transport::Tcp(segment) => tcp::opens(segment)?,
            Transport::Icmp(icmp) if icmp.kind != Kind::EchoRequest => return Err(Reason::NoFlow),
            _ => {}
        }
        let question = Question {
            way: self.way,
            peer: sight.peer(self.way),
            protocol: packet.protocol,
            port: key.port(self.way),
            fragment: packet.fragment.is_some(),
            options: packet.options,
        };
        let decided = self.decide(policy, packet, &question);
        // In log mode, the flow goes on like one that is allowed: it is noted once.
        let decided = match decided {
            Err(reason) if policy.rules.mode() == Mode::Enforce => return Err(reason),
            decided => decided,
        };
        let mac = sight.peer_mac(self.way);
        if !self.reaches(policy, question.peer, mac) {
            return Err(Reason::PeerMac);
        }
        let begin = |entry: Entry<'_>| {
            entry.set_mac(mac);
            entry.set_opened(self.way);
            entry.set_policy(policy.number);
            match transport {
                Transport::Tcp(segment) if packet.fragment.is_none() => tcp::open(entry, self.way, segment),
                Transport::Udp(_) => entry.set_lifetime(UDP_LIFETIME),
                Transport::Icmp(_) => entry.set_lifetime(ECHO_LIFETIME),
                _ => entry.set_lifetime(OTHER_LIFETIME),
            }
        };
        let (entry, is_new) = policy.flows().insert(key, begin).map_err(|_| Reason::TableFull)?;
        if !is_new {
            // One that is over begins again.
            begin(entry);
        }
        entry.seen(self.now);
        decided
    }

    fn decide(&self, policy: &PolicyInForce<'_>, packet: &Packet, question: &Question) -> Result<(), Reason> {
        if self.way == Way::In && !self.guard.is_own(packet.destination()) {
            return Err(Reason::NotAllowed);
        }
        by_rules(policy, question)
    }
}

/// Decides about a flow by the rules.
fn by_rules(policy: &PolicyInForce<'_>, question: &Question) -> Result<(), Reason> {
    policy.rules.decide(question).or_else(|reason| match question {
        // A rule that lets the guest send fragments to a peer lets the peer answer with some.
        Question { way: Way::In, fragment: true, .. } => {
            policy.rules.decide(&Question { way: Way::Out, ..*question }).map_err(|_| reason)
        }
        _ => Err(reason),
    })
}

#[inline]
fn is_echo(icmp: Icmp) -> bool {
    matches!(icmp.kind, Kind::EchoRequest | Kind::EchoReply)
}

pub(super) fn options_reason(packet: &Packet) -> Reason {
    if packet.is_ipv4 { Reason::IpOptions } else { Reason::ExtensionHeader }
}
