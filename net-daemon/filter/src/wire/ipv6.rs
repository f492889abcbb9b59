//! IPv6 headers and extension headers (RFC 8200).

use crate::reason::Reason;
use crate::wire::packet::{Fragment, Packet};
use crate::wire::{Copied, be16};

/// Length of the fixed header.
pub const LEN: usize = 40;
/// Length of a fragment header.
const FRAGMENT_LEN: usize = 8;
/// Extension headers in one packet: each kind once, and destination options twice.
const MOST: usize = 5;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;

/// Reads the header at offset `at` of `frame`, and follows its extension headers up to the transport.
///
/// # Errors
///
/// Fails for a malformed header, for more extension headers than a packet has, and for a packet that is
/// longer than the frame, unless it is `quoted` by an ICMP message, which may cut it.
#[inline]
pub(super) fn parse(frame: Copied<'_>, at: usize, quoted: bool) -> Result<Packet, Reason> {
    let header: &[u8; LEN] = frame.array(at)?;
    let payload = usize::from(be16(header, 4));
    if header[0] >> 4 != 6 || (!quoted && at + LEN + payload > frame.len) {
        return Err(Reason::Malformed);
    }
    let words =
        |at: usize| [at, at + 8].map(|at| u64::from_be_bytes(std::array::from_fn(|byte| header[at + byte])));
    let mut packet = Packet {
        is_ipv4: false,
        source_words: words(8),
        destination_words: words(24),
        protocol: header[6],
        hop_limit: header[7],
        transport: at + LEN,
        end: at + LEN + payload,
        fragment: None,
        options: false,
        rerouted: false,
    };
    if matches!(packet.protocol, HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION) {
        follow(frame, &mut packet)?;
    }
    Ok(packet)
}

/// Follows the extension headers.
#[cold]
fn follow(frame: Copied<'_>, packet: &mut Packet) -> Result<(), Reason> {
    let within = frame.until(packet.end);
    for number in 0..=MOST {
        let at = packet.transport;
        match packet.protocol {
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION if number == MOST => {
                return Err(Reason::ExtensionHeader);
            }
            HOP_BY_HOP if number > 0 => return Err(Reason::ExtensionHeader),
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [next, len, _, segments_left] = *within.array(at)?;
                // It is still to pass other hosts.
                packet.rerouted |= packet.protocol == ROUTING && segments_left > 0;
                (packet.protocol, packet.transport) = (next, at + 8 * (usize::from(len) + 1));
                packet.options = true;
            }
            FRAGMENT => {
                let header: &[u8; FRAGMENT_LEN] = within.array(at)?;
                if packet.fragment.is_some() {
                    return Err(Reason::ExtensionHeader);
                }
                let place = be16(header, 2);
                packet.fragment = Some(Fragment { offset: usize::from(place & !7) });
                (packet.protocol, packet.transport) = (header[0], at + FRAGMENT_LEN);
                if place & !7 != 0 {
                    // What follows is the middle of something.
                    return Ok(());
                }
            }
            _ if packet.transport > packet.end => return Err(Reason::Malformed),
            _ => break,
        }
    }
    Ok(())
}
