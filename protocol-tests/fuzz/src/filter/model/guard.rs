//! The guard of the model: who the guest says it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use volt_filter::reason::Reason;

use super::super::ends::GUEST;
use super::super::read::{Bytes, Load, Mac, discovery};
use super::{BROADCAST, Frame, Judged, Model, Packet, Refusal};

/// Returns the link-local address of the guest (RFC 4291, appendix A).
pub(super) fn link_local() -> Ipv6Addr {
    let mac = GUEST;
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, 0, 0, 0];
    octets[13..].copy_from_slice(&mac[3..]);
    octets.into()
}

/// Whether a RARP frame announces the guest after a migration, and says nothing else.
pub(super) fn announces(bytes: &Bytes<'_>) -> bool {
    let zeros = [0; 4];
    let says = [&[0, 1, 8, 0, 6, 4, 0, 3], &GUEST[..], &zeros, &GUEST, &zeros].concat();
    bytes.mac(0) == Ok(BROADCAST)
        && bytes.len <= 60
        && bytes.get(14, 28, bytes.len) == Ok(&says)
        && bytes.bytes[42..].iter().all(|byte| *byte == 0)
}

/// A DHCP message (RFC 2131, 2).
struct Dhcp {
    operation: u8,
    exchange: u32,
    assigned: Ipv4Addr,
    client: Mac,
    is_ack: bool,
    gives_up: bool,
    /// Servers could read another type in it.
    is_ambiguous: bool,
    lease: Option<u32>,
}

/// Reads a DHCP message behind the UDP header.
fn dhcp(packet: &Packet<'_>) -> Judged<Dhcp> {
    let (at, end) = (packet.ip.at + 8, packet.ip.end);
    let message = packet.frame.bytes.get(at, end - at, end).map_err(|_| Reason::Dhcp)?;
    if message.len() < 240 {
        return Err(Reason::Dhcp);
    }
    let long = |bytes: &[u8]| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let (mut types, mut odd, mut lease) = (Vec::new(), false, None);
    let mut options = &message[240..];
    while let [kind, rest @ ..] = options {
        match (kind, rest) {
            (0, _) => options = rest,
            (255, _) => break,
            (_, [len, data @ ..]) if data.len() >= usize::from(*len) => {
                let (data, rest) = data.split_at((*len).into());
                match (kind, data) {
                    (53, [kind]) => types.push(*kind),
                    (52 | 53, _) => odd = true,
                    (51, data) => lease = data.first_chunk::<4>().map(|seconds| long(seconds)),
                    _ => {}
                }
                options = rest;
            }
            _ => break,
        }
    }
    Ok(Dhcp {
        operation: message[0],
        exchange: long(&message[4..]),
        assigned: long(&message[16..]).into(),
        client: message[28..34].try_into().expect("six"),
        is_ack: types.last() == Some(&5),
        gives_up: matches!(types.last(), Some(4 | 7)),
        is_ambiguous: odd || types.len() > 1,
        lease,
    })
}

impl Model {
    /// Judges ARP (RFC 826) of both ways.
    pub(super) fn arp(&mut self, frame: &Frame<'_>) -> Result<(), Refusal> {
        let guard = Err(Refusal::Guard(Reason::Arp));
        let Ok(message) = frame.bytes.get(14, 28, frame.bytes.len) else { return guard };
        if message[..6] != [0, 1, 8, 0, 6, 4] {
            return guard;
        }
        let address = |at: usize| -> Ipv4Addr {
            [message[at], message[at + 1], message[at + 2], message[at + 3]].into()
        };
        let (sender, target) = (address(14), address(24));
        let operation = u16::from_be_bytes([message[6], message[7]]);
        let honest = message[8..14] == frame.from;
        if frame.out {
            let probes = operation == 1 && sender.is_unspecified() && self.is_own(target.into());
            let says = [1, 2].contains(&operation) && self.is_own(sender.into());
            if frame.bytes.len > 60 || !honest || !(probes || says) {
                return guard;
            }
        }
        let Some(policy) = self.policy else { return Ok(()) };
        if !frame.out {
            if honest && self.is_own(target.into()) {
                self.learn_mac(policy, sender.into(), frame.from);
            }
            return Ok(());
        }
        match operation {
            1 => self.may_ask(policy, target.into()).map_err(Refusal::Policy),
            _ => Ok(()),
        }
    }

    /// Whether the guest may use this address, which it may learn by that.
    fn may_use(&mut self, address: IpAddr) -> Judged {
        if self.is_own(address) {
            return Ok(());
        }
        let (IpAddr::V6(v6), Some(_)) = (address, self.learn) else { return Err(Reason::SourceAddress) };
        if v6.segments()[..4] != [0x2001, 0xdb8, 1, 0] {
            return Err(Reason::SourceAddress);
        }
        let used = self.given.len() + self.learnt.len() + usize::from(self.lease.is_some());
        // The host part 0 is the routers' anycast address.
        if used >= 8 || v6.segments()[4..] == [0; 4] {
            return Err(Reason::AddressesFull);
        }
        self.learnt.push(v6);
        Ok(())
    }

    pub(super) fn guard_out(&mut self, packet: &Packet<'_>) -> Judged {
        let ip = packet.ip;
        let mut gives_up = false;
        match packet.load {
            Load::Udp(ports) => gives_up = self.guard_datagram(packet, *ports)?,
            Load::Icmp(kind, _) if packet.is_v6() => return self.guard_icmpv6(packet, *kind),
            Load::Icmp(5, _) => return Err(Reason::Redirect),
            Load::Icmp(9, _) => return Err(Reason::RouterAdvertisement),
            // Nobody knows what the rest of a message belongs to.
            Load::Later if ip.protocol == 58 => return Err(Reason::Fragment),
            _ => {}
        }
        let asks = ip.source == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
            && ip.destination == IpAddr::V4(Ipv4Addr::BROADCAST)
            && matches!(packet.load, Load::Udp((68, 67)));
        if !asks {
            self.may_use(ip.source)?;
        }
        if gives_up {
            self.lease = None;
        }
        Ok(())
    }

    fn guard_datagram(&mut self, packet: &Packet<'_>, ports: (u16, u16)) -> Judged<bool> {
        match (packet.is_v6(), ports) {
            (true, (547, _) | (_, 546)) => Err(Reason::DhcpServer),
            (false, (from, 67)) if from != 67 => {
                let message = dhcp(packet)?;
                if message.operation != 1 || packet.ip.fragment.is_some() {
                    return Err(Reason::DhcpServer);
                }
                if message.client != GUEST || from != 68 || message.is_ambiguous {
                    return Err(Reason::Dhcp);
                }
                if self.asked.is_none_or(|(_, exchange)| exchange != message.exchange) {
                    self.asked = Some((self.now.max(1), message.exchange));
                }
                Ok(message.gives_up)
            }
            (false, (67, _) | (_, 68)) => Err(Reason::DhcpServer),
            _ => Ok(false),
        }
    }

    fn guard_icmpv6(&mut self, packet: &Packet<'_>, kind: u8) -> Judged {
        let source = packet.ip.source;
        let unspecified = source.is_unspecified();
        match kind {
            134 => return Err(Reason::RouterAdvertisement),
            137 => return Err(Reason::Redirect),
            // Messages of routers.
            130 | 138 | 141 | 142 | 144..=149 | 151..=154 => return Err(Reason::Neighbour),
            131 | 132 | 143 if unspecified => return Ok(()),
            133 | 135 | 136 => {}
            _ => return self.may_use(source),
        }
        if packet.ip.hop_limit != 255 || packet.ip.fragment.is_some() {
            return Err(Reason::Neighbour);
        }
        let message = discovery(&packet.frame.bytes, packet.ip, kind)?;
        if message.mac.is_some_and(|mac| unspecified || mac != GUEST) {
            return Err(Reason::Neighbour);
        }
        let about = match kind {
            133 if unspecified => return Ok(()),
            136 => message.target.into(),
            135 if unspecified => message.target.into(),
            _ => source,
        };
        self.may_use(about).map_err(|reason| match reason {
            Reason::SourceAddress => Reason::Neighbour,
            other => other,
        })?;
        if unspecified { Ok(()) } else { self.may_use(source) }
    }

    pub(super) fn guard_in(&mut self, packet: &Packet<'_>) -> Judged {
        let (Some(server), Load::Udp((from, to))) = (self.dhcp(), packet.load) else { return Ok(()) };
        if packet.is_v6() || (*from != 67 && *to != 68) {
            return Ok(());
        }
        if packet.ip.source != server || (*from, *to) != (67, 68) || packet.ip.fragment.is_some() {
            return Err(Reason::Dhcp);
        }
        let message = dhcp(packet)?;
        let asked = self.asked.filter(|(_, exchange)| *exchange == message.exchange);
        let Some((asked, _)) = asked.filter(|_| message.operation != 1 && message.client == GUEST) else {
            return Err(Reason::Dhcp);
        };
        if message.is_ack && !message.assigned.is_unspecified() && self.learn.is_some() {
            let end = message.lease.map_or(u32::MAX, |seconds| asked.saturating_add(seconds));
            self.lease = Some((message.assigned, end));
        }
        Ok(())
    }

    /// Whether it is DHCP with the server, which needs no rule.
    pub(super) fn is_dhcp(&mut self, packet: &Packet<'_>, ports: (u16, u16)) -> bool {
        let (Some(server), Some(policy)) = (self.dhcp(), self.policy) else { return false };
        if packet.is_v6() {
            return false;
        }
        let to = packet.ip.destination;
        match (packet.frame.out, ports) {
            (true, (68, 67)) if to == IpAddr::V4(Ipv4Addr::BROADCAST) => packet.frame.to == BROADCAST,
            (true, (68, 67)) => to == server && self.reaches(policy, server, packet.frame.to),
            (false, (67, 68)) => packet.ip.source == server,
            _ => false,
        }
    }
}
