//! The announcement of a guest that has arrived by live migration: a RARP frame with its address, from which
//! bridges and switches learn the guest's new place.
//!
//! [`NetDevice::announce`](crate::device::NetDevice::announce) gives an address to a running pair, or to the
//! next one that starts. The pair sends the frame like one of its guest's: limits apply to it, and captures
//! show it. While the port has no room, the announcement waits; a later one replaces it.

use std::io;

use log::{info, warn};
use volt_virtio::part::IoPart;

use crate::config::Mac;
use crate::pair::Pair;
use crate::port::{ETHERNET_LEN, FILTERED, HEADER_LEN};

/// Shortest Ethernet frame without its checksum (IEEE 802.3).
const SHORTEST: usize = 60;

/// Returns the frame that announces `mac`, header first: a broadcast of a RARP "request reverse" (RFC 903) in
/// which the sender asks for its own protocol address.
fn frame(mac: Mac) -> [u8; HEADER_LEN + SHORTEST] {
    let ethernet = [&[0xff; 6], &mac.0[..], &[0x80, 0x35]].concat();
    // Ethernet, IPv4, lengths of their addresses, request reverse.
    let rarp = [&[0, 1, 8, 0, 6, 4, 0, 3][..], &mac.0, &[0; 4], &mac.0, &[0; 4]].concat();
    let mut frame = [0; HEADER_LEN + SHORTEST];
    frame[HEADER_LEN..HEADER_LEN + ETHERNET_LEN].copy_from_slice(&ethernet);
    frame[HEADER_LEN + ETHERNET_LEN..][..rarp.len()].copy_from_slice(&rarp);
    frame
}

impl Pair {
    /// Sends the announcement that waits. It continues to wait while the port has no room.
    #[cold]
    pub(crate) fn announce(&mut self) {
        let Some(mac) = self.announcement else { return };
        let sent = self.queue.send(&[IoPart::from_slice(&mut frame(mac))]);
        let sent = sent.and_then(|_| match self.queue.flush() {
            // What does not go now goes with the guest's next frame.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            flushed => flushed,
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Ok(()) => {
                self.counters.announcements.add(1);
                info!(event = "guest_announced", mac:%; "announced the guest's address {mac} on the network");
            }
            Err(error) => {
                let why = match error.raw_os_error() {
                    Some(FILTERED) => "the filter knows the guest by another address".to_owned(),
                    _ => error.to_string(),
                };
                warn!(
                    event = "guest_not_announced", mac:%;
                    "the guest's address {mac} is not announced on the network: {why}"
                );
            }
        }
        self.announcement = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_a_broadcast_from_the_guest() {
        let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
        let frame = frame(mac);
        assert_eq!(frame[..HEADER_LEN], [0; HEADER_LEN]);
        let frame = &frame[HEADER_LEN..];
        assert_eq!(frame.len(), SHORTEST);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!((&frame[6..12], &frame[12..14]), (&mac.0[..], &[0x80, 0x35][..]));
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac.0[..], &mac.0[..]));
        assert!(frame[28..32].iter().chain(&frame[38..]).all(|byte| *byte == 0));
    }
}
