//! IP packets of both families: which view reads them.

use crate::reason::Reason;
use crate::wire::packet::Packet;
use crate::wire::{Copied, ethernet, ipv4, ipv6};

/// Reads the packet behind the Ethernet header of `frame`, which has this EtherType.
///
/// # Errors
///
/// Fails if headers contradict themselves or the frame's length, or were not copied.
#[inline]
pub fn read(frame: Copied<'_>, ether_type: u16) -> Result<Packet, Reason> {
    match ether_type {
        ethernet::IPV4 => ipv4::parse(frame, ethernet::LEN, false),
        ethernet::IPV6 => ipv6::parse(frame, ethernet::LEN, false),
        other => Err(ethernet::unjudged(other)),
    }
}

/// Reads the packet at `at`, which an ICMP message quotes. The quotation may end before the packet does.
///
/// # Errors
///
/// As [`read`].
pub fn quoted(frame: Copied<'_>, at: usize, is_ipv4: bool) -> Result<Packet, Reason> {
    if is_ipv4 { ipv4::parse(frame, at, true) } else { ipv6::parse(frame, at, true) }
}

#[cfg(test)]
mod tests;
