//! Flows of the model, and ICMP errors about them.

use std::net::IpAddr;

use volt_filter::reason::Reason;

use super::super::read::{self, Load};
use super::super::rules::{Policy, Question};
use super::super::tcp::{self, Connection, Says};
use super::{FLOWS, Flow, Judged, Key, Model, Packet};

/// ICMP errors of the guest in a second.
const ERRORS: u32 = 50;

/// Returns the port that a flow opens.
fn port(key: &Key, out: bool) -> Option<u16> {
    let (fragment, _, _, protocol, guest, peer) = *key;
    (!fragment && [6, 17].contains(&protocol)).then_some(if out { peer } else { guest })
}

fn is_request(v6: bool, kind: u8) -> bool {
    kind == if v6 { 128 } else { 8 }
}

fn key(packet: &Packet<'_>) -> Key {
    let fragment = packet.ip.fragment.is_some();
    let (guest, peer) = match packet.load {
        _ if fragment => (0, 0),
        Load::Tcp((from, to), _) | Load::Udp((from, to)) => match packet.frame.out {
            true => (*from, *to),
            false => (*to, *from),
        },
        // An echo is told apart by its identifier, and by who asks.
        Load::Icmp(kind, id) => {
            let guest_asks = is_request(packet.is_v6(), *kind) == packet.frame.out;
            (*id, u16::from(!guest_asks))
        }
        _ => (0, 0),
    };
    (fragment, packet.guest(), packet.peer(), packet.ip.protocol, guest, peer)
}

impl Model {
    fn alive(&self, key: &Key) -> Option<&Flow> {
        self.flows.get(key).filter(|flow| self.now - flow.seen <= flow.lifetime)
    }

    /// Judges a packet by its flow, or by the rules.
    pub(super) fn flow(&mut self, policy: &Policy, packet: &Packet<'_>) -> Judged {
        let key = key(packet);
        let Some(flow) = self.alive(&key).cloned() else { return self.open(policy, packet, key) };
        let mac = packet.peer_mac();
        if flow.mac != mac || flow.policy != self.number {
            if !self.reaches(policy, key.2, mac) {
                if flow.mac == mac && policy.log {
                    self.flows.get_mut(&key).expect("it").policy = self.number;
                }
                return Err(Reason::FlowMac);
            }
            self.flows.get_mut(&key).expect("it").mac = mac;
        }
        if flow.policy != self.number || packet.ip.options {
            self.anew(policy, &key, packet.ip.options)?;
        }
        if let (Some(connection), Load::Tcp(_, segment)) = (&flow.tcp, packet.load) {
            let from = usize::from(flow.out != packet.frame.out);
            match connection.judge(from, segment) {
                Says::Refuses(reason) => return Err(reason),
                Says::Unsure if self.actual_is(Reason::TcpWindow) => return Err(Reason::TcpWindow),
                Says::Reopens => {
                    self.flows.get_mut(&key).expect("it").seen = self.now;
                    return self.open(policy, packet, key);
                }
                Says::Passes | Says::Unsure => {
                    let flow = self.flows.get_mut(&key).expect("it");
                    let connection = flow.tcp.as_mut().expect("it");
                    connection.note(from, segment);
                    // A repeated SYN leaves an open connection as it was.
                    flow.lifetime = connection.lifetime();
                }
            }
        }
        let flow = self.flows.get_mut(&key).expect("it");
        let reminds = flow.seen / 512 != self.now / 512;
        flow.seen = self.now;
        if reminds {
            self.has_shown(key.2, mac);
        }
        Ok(())
    }

    /// Decides about a flow. A rule that lets the guest send fragments lets the other end answer with some.
    fn decide(&self, policy: &Policy, key: &Key, out: bool, options: bool) -> Judged {
        let question = Question {
            from: !out,
            peer: key.2,
            protocol: key.3,
            port: port(key, out),
            fragment: key.0,
            options,
        };
        let answers = |reason| match key.0 && !out {
            true => policy.decide(&Question { from: false, ..question }).map_err(|_| reason),
            false => Err(reason),
        };
        policy.decide(&question).or_else(answers)
    }

    /// Judges a known flow by the rules.
    fn anew(&mut self, policy: &Policy, key: &Key, options: bool) -> Judged {
        let decided = self.decide(policy, key, self.flows[key].out, options);
        match decided {
            Err(reason) if !policy.log => {
                if !options {
                    self.flows.remove(key);
                }
                Err(reason)
            }
            _ => {
                self.flows.get_mut(key).expect("it").policy = self.number;
                decided
            }
        }
    }

    /// Opens a flow.
    fn open(&mut self, policy: &Policy, packet: &Packet<'_>, key: Key) -> Judged {
        let out = packet.frame.out;
        let (tcp, lifetime) = match packet.load {
            Load::Tcp(_, segment) if !key.0 => {
                tcp::opens(segment)?;
                let connection = Connection::new(segment);
                let lifetime = connection.lifetime();
                (Some(connection), lifetime)
            }
            Load::Icmp(kind, _) if !key.0 && !is_request(packet.is_v6(), *kind) => {
                return Err(Reason::NoFlow);
            }
            Load::Udp(_) => (None, 180),
            Load::Icmp(..) => (None, 60),
            _ => (None, 600),
        };
        let decided = match out || self.is_own(packet.ip.destination) {
            true => self.decide(policy, &key, out, packet.ip.options),
            false => Err(Reason::NotAllowed),
        };
        if !policy.log {
            decided?;
        }
        if !self.reaches(policy, key.2, packet.peer_mac()) {
            return Err(Reason::PeerMac);
        }
        if self.alive(&key).is_none() {
            self.find_room()?;
        }
        let (mac, policy, seen) = (packet.peer_mac(), self.number, self.now);
        self.flows.insert(key, Flow { out, mac, policy, seen, lifetime, tcp });
        decided
    }

    /// Whether there is room for another flow. Expired ones may still take some.
    fn find_room(&mut self) -> Judged {
        let alive = self.flows.keys().filter(|key| self.alive(key).is_some()).count();
        match self.flows.len() {
            _ if alive >= FLOWS => Err(Reason::TableFull),
            FLOWS.. if self.actual_is(Reason::TableFull) => Err(Reason::TableFull),
            _ => Ok(()),
        }
    }

    /// Judges an ICMP error: it must quote a packet of a flow that went the other way.
    pub(super) fn error(&mut self, policy: &Policy, packet: &Packet<'_>) -> Judged {
        let (key, to, sequence) = quoted(packet).ok_or(Reason::IcmpError)?;
        let flow = self.alive(&key).cloned().ok_or(Reason::IcmpError)?;
        if packet.ip.destination != to || packet.ip.fragment.is_some() {
            return Err(Reason::IcmpError);
        }
        if let (Some(connection), Some(sequence)) = (&flow.tcp, sequence) {
            // The quoted segment went the other way than the error.
            let from = usize::from(flow.out == packet.frame.out);
            match connection.quoted(from, sequence) {
                Says::Refuses(reason) => return Err(reason),
                Says::Unsure if self.actual_is(Reason::IcmpError) => return Err(Reason::IcmpError),
                _ => {}
            }
        }
        let mac = packet.peer_mac();
        let is_next_hop = flow.policy == self.number || self.reaches(policy, key.2, mac);
        if flow.mac != mac || !is_next_hop {
            return Err(Reason::FlowMac);
        }
        if flow.policy != self.number || packet.ip.options {
            self.anew(policy, &key, packet.ip.options)?;
        }
        if packet.frame.out {
            let (second, count) = self.errors;
            self.errors = (self.now, if second == self.now { count + 1 } else { 1 });
            if self.errors.1 > ERRORS {
                return Err(Reason::IcmpRate);
            }
        }
        Ok(())
    }
}

/// Returns the flow of the packet that an error quotes, its source, and the sequence number of a segment.
fn quoted(packet: &Packet<'_>) -> Option<(Key, IpAddr, Option<u32>)> {
    let whole = packet.frame.bytes;
    let end = packet.ip.end;
    let frame = read::Bytes { bytes: &whole.bytes[..end.min(whole.bytes.len())], len: end };
    let ip = read::ip(&frame, packet.ip.at + 8, packet.is_v6(), true).ok()?;
    let first = frame.get(ip.at, 8, end).ok().filter(|_| ip.fragment.is_none())?;
    let number = |at: usize| u16::from_be_bytes([first[at], first[at + 1]]);
    // A packet to the guest is quoted by an error of the guest.
    let to_guest = packet.frame.out;
    let (guest, peer) = if to_guest { (ip.destination, ip.source) } else { (ip.source, ip.destination) };
    let sequence = u32::from(number(4)) << 16 | u32::from(number(6));
    let (guest_port, peer_port, sequence) = match ip.protocol {
        6 | 17 => {
            let (from, to) = (number(0), number(2));
            let (guest, peer) = if to_guest { (to, from) } else { (from, to) };
            (guest, peer, (ip.protocol == 6).then_some(sequence))
        }
        1 | 58 => {
            let asks = match first[0] {
                8 | 128 => true,
                0 | 129 => false,
                _ => return None,
            };
            (number(4), u16::from(asks == to_guest), None)
        }
        _ => (0, 0, None),
    };
    Some(((false, guest, peer, ip.protocol, guest_port, peer_port), ip.source, sequence))
}
