//! Hosts on the link: what ARP and neighbour discovery show, and which MAC address an address is reached at.

use std::net::{IpAddr, Ipv6Addr};

use super::{Judge, PolicyInForce, Sight};
use crate::Way;
use crate::flows::key::Key;
use crate::reason::Reason;
use crate::wire::arp::{self, Arp};
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::icmp::{Icmp, Kind};
use crate::wire::neighbour::{Neighbour, group_mac, solicited};

/// How long a neighbour's address is known without use, in seconds.
const LIFETIME: u32 = 3600;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
const MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

impl Judge<'_> {
    /// Judges ARP by the policy: a guest asks for hosts that it may reach only.
    pub(super) fn arp_by_policy(
        &self,
        policy: &PolicyInForce<'_>,
        link: Ethernet<'_>,
        message: Arp<'_>,
    ) -> Result<(), Reason> {
        let target = IpAddr::V4(message.target());
        match self.way {
            Way::Out if message.operation() == arp::REPLY => Ok(()),
            Way::Out => self.may_ask(policy, target),
            Way::In => {
                let plain = message.sender_mac() == link.source();
                if plain && self.guard.is_own(target) {
                    self.learn(policy, message.sender().into(), message.sender_mac());
                }
                Ok(())
            }
        }
    }

    /// Whether the guest may ask for the MAC address of `target`.
    fn may_ask(&self, policy: &PolicyInForce<'_>, target: IpAddr) -> Result<(), Reason> {
        let known = self.guard.is_own(target)
            || policy.rules.network().gateways.contains(&target)
            || self.dhcp.map(IpAddr::V4) == Some(target)
            || policy.rules.names(target);
        if known { Ok(()) } else { Err(Reason::NotNamed) }
    }

    /// Judges neighbour discovery and multicast listeners of the guest, which the guard has let pass.
    pub(super) fn discovery_out(
        &self,
        policy: &PolicyInForce<'_>,
        sight: &Sight<'_>,
        icmp: Icmp,
    ) -> Result<(), Reason> {
        let IpAddr::V6(destination) = sight.packet.destination() else { return Err(Reason::IcmpType) };
        if destination.is_multicast() && sight.link.destination() != group_mac(destination) {
            return Err(Reason::PeerMac);
        }
        let multicast_only = |known: bool| if known { Ok(()) } else { Err(Reason::NotNamed) };
        match icmp.kind {
            // A report of the first version goes to the group itself.
            Kind::ListenerReport => {
                whole(sight)?;
                multicast_only(
                    matches!(destination, ALL_ROUTERS | MLD_ROUTERS) || destination == solicited(destination),
                )
            }
            _ => {
                let message = Neighbour::new(sight.frame, sight.packet, icmp.kind)?;
                if message.others {
                    return Err(Reason::Neighbour);
                }
                if icmp.kind == Kind::RouterSolicitation {
                    return multicast_only(destination == ALL_ROUTERS);
                }
                if icmp.kind == Kind::NeighbourAdvertisement {
                    return multicast_only(
                        destination == ALL_NODES || self.is_on_link(policy, destination.into()),
                    );
                }
                multicast_only(destination == solicited(message.target) || destination == message.target)?;
                self.may_ask(policy, message.target.into())
            }
        }
    }

    /// Judges neighbour discovery for the guest, and learns from it.
    pub(super) fn discovery_in(
        &self,
        policy: &PolicyInForce<'_>,
        sight: &Sight<'_>,
        icmp: Icmp,
    ) -> Result<(), Reason> {
        let source = sight.packet.source();
        if icmp.kind == Kind::ListenerQuery {
            return whole(sight);
        }
        let message = Neighbour::new(sight.frame, sight.packet, icmp.kind)?;
        let shown = message.mac.filter(|mac| *mac == sight.link.source());
        match icmp.kind {
            Kind::RouterAdvertisement => {
                let network = policy.rules.network();
                if !network.gateways.contains(&source) {
                    return Err(Reason::RouterAdvertisement);
                }
                // Another host that claims to be the gateway.
                let known = network.gateway_mac.or_else(|| self.shown(policy, source));
                if known.is_some_and(|mac| mac != sight.link.source()) {
                    return Err(Reason::PeerMac);
                }
                if let Some(mac) = shown {
                    self.learn(policy, source, mac);
                }
            }
            Kind::NeighbourSolicitation if self.guard.is_own(message.target.into()) => {
                // Without the option, hosts take the frame's source.
                self.learn(policy, source, shown.unwrap_or(sight.link.source()));
            }
            Kind::NeighbourAdvertisement if self.guard.is_own(sight.packet.destination()) => {
                self.learn(policy, message.target.into(), shown.unwrap_or(sight.link.source()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether `address` is reached without a gateway.
    fn is_on_link(&self, policy: &PolicyInForce<'_>, address: IpAddr) -> bool {
        let network = policy.rules.network();
        matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
            || network.on_link.iter().any(|prefix| prefix.contains(address))
            || network.gateways.contains(&address)
    }

    /// Whether frames for `peer` go to `mac`, and come from it.
    pub(super) fn reaches(&self, policy: &PolicyInForce<'_>, peer: IpAddr, mac: Mac) -> bool {
        let network = policy.rules.network();
        if ethernet::is_group(mac) {
            return false;
        }
        if let Some((_, given)) = network.neighbours.iter().find(|(address, _)| *address == peer) {
            return *given == mac;
        }
        let is_gateway = network.gateways.contains(&peer);
        if self.is_on_link(policy, peer) && !is_gateway {
            return self.shown(policy, peer) == Some(mac);
        }
        match network.gateway_mac {
            Some(given) => given == mac,
            None => network.gateways.iter().any(|gateway| self.shown(policy, *gateway) == Some(mac)),
        }
    }

    /// Returns the MAC address that a host on the link has shown.
    pub(super) fn shown(&self, policy: &PolicyInForce<'_>, address: IpAddr) -> Option<Mac> {
        let entry = policy.neighbours().find(&Key::neighbour(address))?;
        entry.seen(self.now);
        Some(entry.mac())
    }

    /// Notes the MAC address that a host on the link shows. A gateway keeps its first one under a policy, so
    /// that nobody on the link can take its place.
    fn learn(&self, policy: &PolicyInForce<'_>, address: IpAddr, mac: Mac) {
        let network = policy.rules.network();
        if ethernet::is_group(mac) || mac == self.guard.mac() || !self.is_on_link(policy, address) {
            return;
        }
        let is_gateway = network.gateways.contains(&address);
        if !is_gateway && !policy.rules.names(address) {
            return;
        }
        let lifetime = if is_gateway { u32::MAX } else { LIFETIME };
        // Without room, the host cannot be reached, which is said when the guest tries.
        let Ok((entry, _)) = policy.neighbours().insert(&Key::neighbour(address), |entry| {
            entry.set_mac(mac);
            entry.set_policy(policy.number);
            entry.set_lifetime(lifetime);
        }) else {
            return;
        };
        if !is_gateway || entry.policy() != policy.number {
            entry.set_mac(mac);
            entry.set_policy(policy.number);
            // A neighbour may be a gateway under this policy.
            entry.set_lifetime(lifetime);
        }
        entry.seen(self.now);
    }
}

/// Refuses messages of multicast listeners in fragments: they are short.
fn whole(sight: &Sight<'_>) -> Result<(), Reason> {
    if sight.packet.fragment.is_some() { Err(Reason::Neighbour) } else { Ok(()) }
}
