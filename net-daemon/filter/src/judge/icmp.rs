//! ICMP messages other than echoes.

use super::{Judge, PolicyInForce, Sight, options_reason};
use crate::Way;
use crate::flows::key::Key;
use crate::flows::tcp;
use crate::rate;
use crate::reason::Reason;
use crate::wire::icmp::{self, Icmp, Kind};
use crate::wire::ip;
use crate::wire::packet::Packet;
use crate::wire::tcp::PROTOCOL as TCP;
use crate::wire::udp::PROTOCOL as UDP;

/// ICMP errors of the guest in a second.
const ERRORS: u32 = 50;

/// What an ICMP error quotes.
struct Quotation {
    packet: Packet,
    /// Source and destination, as in [`Key`].
    ports: (u16, u16),
    /// The sequence number of TCP.
    sequence: Option<u32>,
}

impl Judge<'_> {
    /// Judges a message by the policy.
    #[cold]
    pub(super) fn message(
        &self,
        policy: &PolicyInForce<'_>,
        sight: &Sight<'_>,
        icmp: Icmp,
    ) -> Result<(), Reason> {
        // Queries and reports of multicast listeners have the option Router Alert (RFC 3810, 5).
        let may_have_options = matches!(icmp.kind, Kind::Error | Kind::ListenerQuery | Kind::ListenerReport);
        if sight.packet.options && !may_have_options {
            return Err(options_reason(sight.packet));
        }
        match (icmp.kind, self.way) {
            (Kind::Error, _) => self.error(policy, sight),
            (Kind::Redirect, _) => Err(Reason::Redirect),
            (Kind::RouterAdvertisement, Way::In) if !sight.packet.is_ipv4 => {
                self.discovery_in(policy, sight, icmp)
            }
            (Kind::RouterAdvertisement, _) => Err(Reason::RouterAdvertisement),
            (Kind::NeighbourSolicitation | Kind::NeighbourAdvertisement, Way::In)
            | (Kind::ListenerQuery, Way::In) => self.discovery_in(policy, sight, icmp),
            (
                Kind::NeighbourSolicitation
                | Kind::NeighbourAdvertisement
                | Kind::RouterSolicitation
                | Kind::ListenerReport,
                Way::Out,
            ) => self.discovery_out(policy, sight, icmp),
            _ => Err(Reason::IcmpType),
        }
    }

    /// Judges an error: it must quote a packet of a flow, and come from where the flow's answers come from.
    fn error(&self, policy: &PolicyInForce<'_>, sight: &Sight<'_>) -> Result<(), Reason> {
        if sight.packet.fragment.is_some() {
            return Err(Reason::IcmpError);
        }
        let quotation = quotation(sight, self.way).map_err(|_| Reason::IcmpError)?;
        let to_sender = sight.packet.destination() == quotation.packet.source();
        let key = Key::quoted(self.way, &quotation.packet, Some(quotation.ports));
        let entry = policy.flows().find(&key).filter(|_| to_sender).ok_or(Reason::IcmpError)?;
        if let Some(sequence) = quotation.sequence
            && !tcp::may_be_quoted(entry, self.way.back(), sequence)
        {
            return Err(Reason::IcmpError);
        }
        let mac = sight.peer_mac(self.way);
        let is_known = entry.policy() == policy.number || self.reaches(policy, key.peer(), mac);
        if entry.mac() != mac || !is_known {
            return Err(Reason::FlowMac);
        }
        if entry.policy() != policy.number || sight.packet.options {
            self.anew(policy, &key, entry, sight.packet.options)?;
        }
        if self.way == Way::Out {
            let errors = policy.parts.errors();
            if !rate::has_room(errors, self.now, ERRORS) {
                return Err(Reason::IcmpRate);
            }
            rate::count(errors, self.now);
        }
        Ok(())
    }
}

/// Reads the packet that an error quotes. The error goes `way`, so the packet went the other.
fn quotation(sight: &Sight<'_>, way: Way) -> Result<Quotation, Reason> {
    let at = sight.packet.transport + icmp::LEN;
    let frame = sight.frame.until(sight.packet.end);
    let packet = ip::quoted(frame, at, sight.packet.is_ipv4)?;
    if packet.fragment.is_some() {
        return Err(Reason::IcmpError);
    }
    // All errors quote this much of what a packet carries.
    let first: [u8; 8] = *frame.array(packet.transport)?;
    let [a, b, c, d, e, f, g, h] = first;
    let (ports, sequence) = match packet.protocol {
        TCP => {
            ((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])), Some(u32::from_be_bytes([e, f, g, h])))
        }
        UDP => ((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])), None),
        icmp::V4 | icmp::V6 => (echo_ports(a, u16::from_be_bytes([e, f]), way)?, None),
        _ => ((0, 0), None),
    };
    Ok(Quotation { packet, ports, sequence })
}

/// Returns the ports by which [`Key::of`] knows a quoted echo message.
fn echo_ports(message: u8, identifier: u16, way: Way) -> Result<(u16, u16), Reason> {
    let is_request = match message {
        8 | 128 => true,
        0 | 129 => false,
        _ => return Err(Reason::IcmpError),
    };
    // The quoted packet went the other way.
    let opened_by_peer = u16::from(is_request == (way == Way::Out));
    Ok(match way {
        Way::In => (identifier, opened_by_peer),
        Way::Out => (opened_by_peer, identifier),
    })
}
