//! Hosts on the link: neighbour discovery, multicast listeners, and the MAC addresses that hosts show.

use std::net::{IpAddr, Ipv6Addr};

use volt_filter::reason::Reason;

use super::super::ends::{GUEST, group_mac, solicited};
use super::super::read::{Mac, discovery};
use super::super::rules::Policy;
use super::{Judged, Model, Packet, Shown};

const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

impl Model {
    /// Whether the guest may ask who has this address.
    pub(super) fn may_ask(&self, policy: &Policy, target: IpAddr) -> Judged {
        let known = self.is_own(target)
            || policy.is_gateway(target)
            || self.dhcp() == Some(target)
            || policy.names(target);
        if known { Ok(()) } else { Err(Reason::NotNamed) }
    }

    /// Judges ICMP messages other than echoes.
    pub(super) fn message(&mut self, policy: &Policy, packet: &Packet<'_>, kind: u8) -> Judged {
        let out = packet.frame.out;
        // Multicast listeners send the option Router Alert, and errors are judged with their flows.
        match (packet.is_v6(), kind) {
            (false, 3 | 11 | 12) | (true, 1..=4 | 130..=132 | 143) => {}
            (true, _) if packet.ip.options => return Err(Reason::ExtensionHeader),
            (false, _) if packet.ip.options => return Err(Reason::IpOptions),
            _ => {}
        }
        match (packet.is_v6(), kind) {
            (false, 3 | 11 | 12) | (true, 1..=4) => self.error(policy, packet),
            (false, 5) | (true, 137) => Err(Reason::Redirect),
            (false, 9) => Err(Reason::RouterAdvertisement),
            (true, 134) if out => Err(Reason::RouterAdvertisement),
            (true, 131 | 132 | 143) if out => listener(packet),
            (true, 130) if !out && packet.ip.fragment.is_some() => Err(Reason::Neighbour),
            (true, 130) if !out => Ok(()),
            (true, 133 | 135 | 136) if out => self.discovery_out(policy, packet, kind),
            (true, 134..=136) if !out => self.discovery_in(policy, packet, kind),
            _ => Err(Reason::IcmpType),
        }
    }

    fn discovery_out(&mut self, policy: &Policy, packet: &Packet<'_>, kind: u8) -> Judged {
        let IpAddr::V6(to) = packet.ip.destination else { return Err(Reason::IcmpType) };
        if to.is_multicast() && packet.frame.to != group_mac(to) {
            return Err(Reason::PeerMac);
        }
        let message = discovery(&packet.frame.bytes, packet.ip, kind)?;
        if message.others {
            return Err(Reason::Neighbour);
        }
        let goes_well = match kind {
            133 => to == ALL_ROUTERS,
            135 => to == message.target || to == solicited(message.target),
            _ => to == ALL_NODES || policy.is_on_link(to.into()),
        };
        match kind {
            _ if !goes_well => Err(Reason::NotNamed),
            135 => self.may_ask(policy, message.target.into()),
            _ => Ok(()),
        }
    }

    fn discovery_in(&mut self, policy: &Policy, packet: &Packet<'_>, kind: u8) -> Judged {
        if packet.ip.hop_limit != 255 || packet.ip.fragment.is_some() {
            return Err(Reason::Neighbour);
        }
        let message = discovery(&packet.frame.bytes, packet.ip, kind)?;
        let (source, from) = (packet.ip.source, packet.frame.from);
        // A host that names another MAC address than it sends from is not believed.
        match kind {
            134 if !policy.is_gateway(source) => return Err(Reason::RouterAdvertisement),
            134 if self.is_of_another(policy, source, from) => return Err(Reason::PeerMac),
            134 if message.mac == Some(from) => self.learn_mac(policy, source, from),
            135 if self.is_own(message.target.into()) => self.learn_mac(policy, source, from),
            136 if self.is_own(packet.ip.destination) => {
                self.learn_mac(policy, message.target.into(), from);
            }
            _ => {}
        }
        Ok(())
    }

    /// Notes the MAC address that a host shows. A gateway keeps the first one under a policy.
    pub(super) fn learn_mac(&mut self, policy: &Policy, address: IpAddr, mac: Mac) {
        if mac[0] & 1 > 0 || mac == GUEST || !policy.is_on_link(address) || !policy.names(address) {
            return;
        }
        let is_gateway = policy.is_gateway(address);
        let lifetime = if is_gateway { u32::MAX } else { 3600 };
        let (now, number) = (self.now, self.number);
        let fresh = Shown { mac, policy: number, seen: now, lifetime };
        match self.known(address) {
            Some(shown) if is_gateway && shown.policy == number => shown.seen = now,
            _ => drop(self.shown.insert(address, fresh)),
        }
    }

    fn known(&mut self, address: IpAddr) -> Option<&mut Shown> {
        let now = self.now;
        self.shown.get_mut(&address).filter(|shown| now - shown.seen <= shown.lifetime)
    }

    /// Whether the gateway's MAC address is known and another one.
    fn is_of_another(&mut self, policy: &Policy, gateway: IpAddr, mac: Mac) -> bool {
        match policy.gateway_mac {
            Some(given) => given != mac,
            None => self.known(gateway).is_some() && !self.has_shown(gateway, mac),
        }
    }

    /// Whether a host has shown this MAC address, which is looked at now.
    pub(super) fn has_shown(&mut self, address: IpAddr, mac: Mac) -> bool {
        let now = self.now;
        self.known(address).is_some_and(|shown| {
            shown.seen = now;
            shown.mac == mac
        })
    }

    /// Whether frames for `peer` go to `mac`, and come from it.
    pub(super) fn reaches(&mut self, policy: &Policy, peer: IpAddr, mac: Mac) -> bool {
        if mac[0] & 1 > 0 {
            return false;
        }
        let is = |text: &str| text.parse() == Ok(peer);
        if let Some((_, given)) = policy.neighbours.iter().find(|(address, _)| is(address)) {
            return *given == mac;
        }
        if policy.is_on_link(peer) && !policy.is_gateway(peer) {
            return self.has_shown(peer, mac);
        }
        match policy.gateway_mac {
            Some(given) => given == mac,
            None => policy
                .gateways
                .iter()
                .any(|gateway| self.has_shown(gateway.parse().expect("an address"), mac)),
        }
    }
}

/// Judges a report of a multicast listener: to routers, or to the group of an address.
fn listener(packet: &Packet<'_>) -> Judged {
    let IpAddr::V6(to) = packet.ip.destination else { return Err(Reason::IcmpType) };
    if to.is_multicast() && packet.frame.to != group_mac(to) {
        return Err(Reason::PeerMac);
    }
    if packet.ip.fragment.is_some() {
        return Err(Reason::Neighbour);
    }
    let known = to == ALL_ROUTERS || to == MLD_ROUTERS || to == solicited(to);
    if known { Ok(()) } else { Err(Reason::NotNamed) }
}
