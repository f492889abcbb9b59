//! DHCPv4 messages (RFC 2131), by smoltcp's view.

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType, DhcpOpCode, DhcpPacket};

use crate::reason::Reason;
use crate::wire::Copied;
use crate::wire::ethernet::Mac;
use crate::wire::packet::Packet;
use crate::wire::udp::{self, Udp};

/// The server's port.
pub const SERVER: u16 = 67;
/// The client's port.
pub const CLIENT: u16 = 68;

const MESSAGE_TYPE: u8 = 53;
const LEASE_TIME: u8 = 51;
const OVERLOAD: u8 = 52;

/// A DHCP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dhcp {
    /// Whether it is one of a client.
    pub is_request: bool,
    /// Number of the exchange.
    pub exchange: u32,
    /// The client's MAC address.
    pub client: Mac,
    /// The address that the server assigns to the client.
    pub assigned: Ipv4Addr,
    /// Whether the server confirms the address.
    pub is_ack: bool,
    /// Whether the client gives its address up.
    pub gives_up: bool,
    /// Whether servers could read another type in it: it has several, or options in other fields.
    pub is_ambiguous: bool,
    /// For how many seconds, if the message says it.
    pub lease: Option<u32>,
}

impl Dhcp {
    /// Reads the message in a UDP packet.
    ///
    /// # Errors
    ///
    /// Fails if it is malformed, or only partly in the copy.
    pub fn new(frame: Copied<'_>, packet: &Packet) -> Result<Dhcp, Reason> {
        let bytes = frame.range(packet.transport + udp::LEN, packet.end).map_err(|_| Reason::Dhcp)?;
        let message = DhcpPacket::new_checked(bytes).map_err(|_| Reason::Dhcp)?;
        let mut dhcp = Dhcp {
            is_request: message.opcode() == DhcpOpCode::Request,
            exchange: message.transaction_id(),
            client: message.client_hardware_address().0,
            assigned: message.your_ip(),
            is_ack: false,
            gives_up: false,
            is_ambiguous: false,
            lease: None,
        };
        let mut types = 0;
        for option in message.options() {
            match (option.kind, option.data) {
                (MESSAGE_TYPE, [kind]) => {
                    let kind = DhcpMessageType::from(*kind);
                    dhcp.is_ack = kind == DhcpMessageType::Ack;
                    dhcp.gives_up = matches!(kind, DhcpMessageType::Release | DhcpMessageType::Decline);
                    types += 1;
                }
                (MESSAGE_TYPE | OVERLOAD, _) => dhcp.is_ambiguous = true,
                (LEASE_TIME, data) => {
                    dhcp.lease = data.first_chunk().map(|seconds| u32::from_be_bytes(*seconds));
                }
                _ => {}
            }
        }
        dhcp.is_ambiguous |= types > 1;
        Ok(dhcp)
    }
}

/// Whether a datagram is one of a client to a server.
pub fn is_to_server(udp: Udp) -> bool {
    udp.source == CLIENT && udp.destination == SERVER
}

/// Whether a datagram is one of a server to a client, or looks like it to one end.
pub fn is_to_client(udp: Udp) -> bool {
    udp.source == SERVER || udp.destination == CLIENT
}
