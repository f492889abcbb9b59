//! The guard: a guest is who it says it is.
//!
//! It judges the source of each frame, and the messages by which hosts and routers tell others who they are:
//! ARP, neighbour discovery and DHCP. Learnt addresses lie in the filter's memory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::Way;
use crate::learnt::Learnt;
use crate::memory::Parts;
use crate::reason::Reason;
use crate::setup::Setup;
use crate::wire::Copied;
use crate::wire::arp::{self, Arp};
use crate::wire::dhcp::{self, Dhcp};
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::icmp::{Icmp, Kind};
use crate::wire::neighbour::{Neighbour, link_local};
use crate::wire::packet::{Packet, Words};
use crate::wire::transport::Transport;
use crate::wire::udp::Udp;

/// Ports of DHCPv6.
const DHCPV6_SERVER: u16 = 547;
const DHCPV6_CLIENT: u16 = 546;

/// An identity, with the memory of learnt addresses.
#[derive(Clone, Copy)]
pub(crate) struct Guard<'a> {
    setup: &'a Setup,
    /// The given addresses.
    own: &'a [(Words, bool)],
    parts: Parts<'a>,
    now: u32,
}

impl<'a> Guard<'a> {
    /// Creates a guard.
    #[inline]
    pub(crate) fn new(setup: &'a Setup, own: &'a [(Words, bool)], parts: Parts<'a>, now: u32) -> Guard<'a> {
        Guard { setup, own, parts, now }
    }

    fn learnt(&self) -> Learnt<'a> {
        Learnt::new(self.parts.learnt())
    }

    /// Judges the addresses of the link.
    #[inline]
    pub(crate) fn link(&self, way: Way, header: Ethernet<'_>) -> Result<(), Reason> {
        let destination = header.destination();
        match way {
            Way::Out if header.source() != self.setup.mac => Err(Reason::SourceMac),
            Way::In if destination != self.setup.mac && !ethernet::is_group(destination) => {
                Err(Reason::DestinationMac)
            }
            _ => Ok(()),
        }
    }

    /// Whether `address` is one of the guest's.
    #[inline]
    pub(crate) fn is_own(&self, address: IpAddr) -> bool {
        self.setup.addresses.contains(&address) || self.is_derived(address)
    }

    /// Whether `address` was learnt, or follows from the MAC address.
    fn is_derived(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.lease() == Some(v4),
            IpAddr::V6(v6) => {
                self.has_ipv6() && v6 == link_local(self.setup.mac)
                    || self.may_configure(address) && self.learnt().has(v6)
            }
        }
    }

    /// Returns the leased address, if leases count.
    fn lease(&self) -> Option<Ipv4Addr> {
        self.setup.learn.as_ref()?.dhcp?;
        self.learnt().lease(self.now)
    }

    /// Whether the guest may configure `address` by itself.
    fn may_configure(&self, address: IpAddr) -> bool {
        let learn = self.setup.learn.as_ref();
        learn.is_some_and(|learn| learn.prefixes.iter().any(|prefix| prefix.contains(address)))
    }

    fn has_ipv6(&self) -> bool {
        let learns = self.setup.learn.as_ref().is_some_and(|learn| !learn.prefixes.is_empty());
        learns || self.setup.addresses.iter().any(IpAddr::is_ipv6)
    }

    /// Whether the guest may send as the source of `packet`.
    #[inline]
    fn may_speak(&self, packet: &Packet) -> Result<(), Reason> {
        let given = self.own.contains(&(packet.source_words, packet.is_ipv4));
        if given { Ok(()) } else { self.may_use(packet.source()) }
    }

    /// Whether the guest may use `address` as its own. One that it configures by itself is its own from then
    /// on.
    fn may_use(&self, address: IpAddr) -> Result<(), Reason> {
        if self.is_own(address) {
            return Ok(());
        }
        let IpAddr::V6(v6) = address else { return Err(Reason::SourceAddress) };
        if v6.is_multicast() || !self.may_configure(address) {
            return Err(Reason::SourceAddress);
        }
        match self.learnt().add(v6, self.setup.addresses.len()) {
            true => Ok(()),
            false => Err(Reason::AddressesFull),
        }
    }

    /// Judges ARP of the guest.
    pub(crate) fn arp(&self, header: Ethernet<'_>, message: Arp<'_>) -> Result<(), Reason> {
        let (sender, target) = (message.sender(), message.target());
        let operation = message.operation();
        // Before it uses an address, a host asks whether another does, without one (RFC 5227).
        let probes = sender.is_unspecified() && operation == arp::REQUEST && self.is_own(target.into());
        let says = self.is_own(sender.into()) && matches!(operation, arp::REQUEST | arp::REPLY);
        match message.sender_mac() == header.source() && (probes || says) {
            true => Ok(()),
            false => Err(Reason::Arp),
        }
    }

    /// Judges an IP packet of the guest.
    #[inline]
    pub(crate) fn packet(
        &self,
        frame: Copied<'_>,
        packet: &Packet,
        transport: &Transport,
    ) -> Result<(), Reason> {
        let mut gives_up = false;
        match transport {
            Transport::Udp(udp) => gives_up = self.datagram(frame, packet, *udp)?,
            Transport::Icmp(icmp) if !packet.is_ipv4 => {
                return self.icmpv6(frame, packet, *icmp);
            }
            Transport::Icmp(icmp) => match icmp.kind {
                Kind::Redirect => return Err(Reason::Redirect),
                Kind::RouterAdvertisement => return Err(Reason::RouterAdvertisement),
                _ => {}
            },
            // The first fragment would say which message it is (RFC 6980).
            Transport::Continuation if packet.protocol == crate::wire::icmp::V6 => {
                return Err(Reason::Fragment);
            }
            _ => {}
        }
        let judged = if is_dhcp_request(packet, transport) { Ok(()) } else { self.may_speak(packet) };
        if gives_up && judged.is_ok() {
            self.learnt().release();
        }
        judged
    }

    /// Judges DHCP of the guest, and remembers its question. Returns whether the guest gives its lease up.
    #[inline]
    fn datagram(&self, frame: Copied<'_>, packet: &Packet, udp: Udp) -> Result<bool, Reason> {
        let answers = dhcp::is_to_client(udp) && !dhcp::is_to_server(udp);
        if packet.is_ipv4 && answers
            || !packet.is_ipv4 && (udp.source == DHCPV6_SERVER || udp.destination == DHCPV6_CLIENT)
        {
            return Err(Reason::DhcpServer);
        }
        // Servers do not look at the client's port.
        if packet.is_ipv4 && udp.destination == dhcp::SERVER {
            let message = Dhcp::new(frame, packet)?;
            if !message.is_request || packet.fragment.is_some() {
                return Err(Reason::DhcpServer);
            }
            let is_plain = dhcp::is_to_server(udp) && !message.is_ambiguous;
            if message.client != self.setup.mac || !is_plain {
                return Err(Reason::Dhcp);
            }
            self.learnt().asked(message.exchange, self.now);
            return Ok(message.gives_up);
        }
        Ok(false)
    }

    /// Judges ICMPv6 of the guest.
    fn icmpv6(&self, frame: Copied<'_>, packet: &Packet, icmp: Icmp) -> Result<(), Reason> {
        let source = packet.source();
        let unspecified = source == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        match icmp.kind {
            Kind::RouterAdvertisement => return Err(Reason::RouterAdvertisement),
            Kind::Redirect => return Err(Reason::Redirect),
            // A host that is no router has no use for it.
            Kind::ListenerQuery => return Err(Reason::Neighbour),
            // Renumbering, inverse discovery, mobility, secure and multicast routers: all from routers.
            Kind::Other if matches!(icmp.message, 138 | 141 | 142 | 144..=149 | 151..=154) => {
                return Err(Reason::Neighbour);
            }
            Kind::ListenerReport if unspecified => return Ok(()),
            Kind::RouterSolicitation | Kind::NeighbourSolicitation | Kind::NeighbourAdvertisement => {}
            _ => return self.may_use(source),
        }
        let message = Neighbour::new(frame, packet, icmp.kind)?;
        if message.mac.is_some_and(|mac| mac != self.setup.mac) || (unspecified && message.mac.is_some()) {
            return Err(Reason::Neighbour);
        }
        // Whose address is it about?
        let about = match icmp.kind {
            Kind::NeighbourAdvertisement => IpAddr::V6(message.target),
            Kind::NeighbourSolicitation if unspecified => IpAddr::V6(message.target),
            _ if unspecified => return Ok(()),
            _ => source,
        };
        let refused = |reason| if reason == Reason::SourceAddress { Reason::Neighbour } else { reason };
        self.may_use(about).map_err(refused)?;
        if unspecified { Ok(()) } else { self.may_use(source) }
    }

    /// Judges DHCP to the guest, and learns the address that its server assigns.
    #[inline]
    pub(crate) fn arriving(
        &self,
        frame: Copied<'_>,
        packet: &Packet,
        transport: &Transport,
        server: Option<Ipv4Addr>,
    ) -> Result<(), Reason> {
        let Transport::Udp(udp) = transport else { return Ok(()) };
        let Some(server) = server else { return Ok(()) };
        if !packet.is_ipv4 || !dhcp::is_to_client(*udp) {
            return Ok(());
        }
        if packet.source() != IpAddr::V4(server)
            || (udp.source, udp.destination) != (dhcp::SERVER, dhcp::CLIENT)
            || packet.fragment.is_some()
        {
            return Err(Reason::Dhcp);
        }
        let message = Dhcp::new(frame, packet)?;
        let is_ours = message.client == self.setup.mac && self.learnt().has_asked(message.exchange);
        if message.is_request || !is_ours {
            return Err(Reason::Dhcp);
        }
        if message.is_ack && !message.assigned.is_unspecified() && self.setup.learn.is_some() {
            self.learnt().leased(message.assigned, message.lease);
        }
        Ok(())
    }

    /// Returns the guest's addresses, learnt ones included.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let lease = self.lease().map(IpAddr::V4);
        let own = self.learnt().all().map(IpAddr::V6).filter(|address| self.may_configure(*address));
        let learnt = lease.into_iter().chain(own);
        self.setup.addresses.iter().copied().chain(learnt).collect()
    }

    /// Returns the guest's MAC address.
    pub(crate) fn mac(&self) -> Mac {
        self.setup.mac
    }
}

/// Whether a guest without an address asks for one.
fn is_dhcp_request(packet: &Packet, transport: &Transport) -> bool {
    packet.source() == IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        && packet.destination() == IpAddr::V4(Ipv4Addr::BROADCAST)
        && matches!(transport, Transport::Udp(udp) if dhcp::is_to_server(*udp))
}
