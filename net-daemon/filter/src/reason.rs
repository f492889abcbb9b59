//! Why a frame is refused. The names are stable: metrics, logs and captures show them.

/// Declares the reasons: variant, name, and description for people.
macro_rules! reasons {
    ($($variant:ident $name:literal $text:literal;)*) => {
        /// Why a frame is refused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $text] $variant,)*
        }

        impl Reason {
            /// All reasons. A new one must be the last: programs of other versions know reasons by their
            /// positions.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// Returns the name in metrics, logs and captures.
            pub fn name(self) -> &'static str {
                match self {
                    $(Reason::$variant => $name,)*
                }
            }

            /// Describes the reason in a few words.
            pub fn text(self) -> &'static str {
                match self {
                    $(Reason::$variant => $text,)*
                }
            }
        }
    };
}

reasons! {
    Header "header" "the virtio-net header asks for other than what the frame needs";
    Malformed "malformed" "a header contradicts itself or the frame's length";
    BeyondCopy "beyond_copy" "headers reach beyond the bytes that are judged";
    SourceMac "source_mac" "the source MAC address is not the guest's";
    DestinationMac "destination_mac" "the destination MAC address is not the guest's";
    PeerMac "peer_mac" "not the MAC address of the gateway, or of the neighbour with this address";
    EtherType "ethertype" "an EtherType other than IPv4, IPv6 and ARP";
    Vlan "vlan" "a VLAN tag";
    Length8023 "length_802_3" "an 802.3 length instead of an EtherType";
    SourceAddress "source_address" "the source IP address is not the guest's";
    AddressesFull "addresses_full" "a further address, after as many as a guest may have";
    Arp "arp" "ARP for an address that is not the guest's, or malformed ARP";
    Neighbour "neighbour" "neighbour discovery for an address that is not the guest's, or malformed";
    RouterAdvertisement "router_advertisement" "a router advertisement";
    Redirect "redirect" "an ICMP redirect";
    DhcpServer "dhcp_server" "an answer of a DHCP server, from the guest";
    Dhcp "dhcp" "DHCP of another server, or malformed DHCP";
    Fragment "fragment" "a fragment that no rule allows";
    IpOptions "ip_options" "IPv4 options that no rule allows";
    ExtensionHeader "extension_header" "IPv6 extension headers that no rule allows, or too many of them";
    Tunnel "tunnel" "a tunnel protocol that no rule names";
    NotNamed "not_named" "a range that is refused unless a rule names an address or prefix in it";
    Denied "denied" "a deny rule";
    NotAllowed "not_allowed" "no rule allows it";
    NoFlow "no_flow" "an answer without a question: it belongs to no flow";
    FlowMac "flow_mac" "another MAC address than the flow's";
    TcpFlags "tcp_flags" "TCP flags that no handshake has";
    TcpWindow "tcp_window" "TCP sequence numbers outside of the flow's window";
    IcmpType "icmp_type" "an ICMP message that needs no answer and gives none";
    IcmpError "icmp_error" "an ICMP error that quotes no packet of a flow";
    IcmpRate "icmp_rate" "ICMP errors of the guest beyond the rate";
    TableFull "table_full" "the flow table is full";
}

impl Reason {
    /// Returns the reason at this position of [`Reason::ALL`].
    pub fn at(position: usize) -> Option<Reason> {
        Reason::ALL.get(position).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_positions_lead_back() {
        for (position, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(Reason::at(position), Some(*reason));
            assert_eq!(*reason as usize, position);
            assert_eq!(Reason::ALL.iter().filter(|other| other.name() == reason.name()).count(), 1);
        }
        assert_eq!(Reason::at(Reason::ALL.len()), None);
    }
}
