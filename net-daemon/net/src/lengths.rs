//! Lengths of frames and their header.

/// Length of `struct virtio_net_hdr_v1`, which precedes each frame on a port and in a ring (virtio 1.2,
/// 5.1.6).
pub const HEADER_LEN: usize = 12;
/// Length of an Ethernet header, and so of the shortest frame.
pub const ETHERNET_LEN: usize = 14;
/// Shortest frame with its header.
pub const MIN_FRAME_LEN: usize = HEADER_LEN + ETHERNET_LEN;
/// Longest frame with its header: the largest IP packet, an Ethernet header and two VLAN tags.
pub const MAX_FRAME_LEN: usize = HEADER_LEN + ETHERNET_LEN + 8 + 65535;
