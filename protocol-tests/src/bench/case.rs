//! The case of a measurement: direction, size, and the shape of ring and chains.

use crate::frame::{ETHERTYPE, NET_HEADER_LEN, NetHeader, checksum, gso};
use crate::wire::feature;

/// The direction of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Guest to wire.
    Tx,
    /// Wire to guest.
    Rx,
}

/// What the frames carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// TCP segments; where possible, in frames that the kernel drops at once.
    Tcp,
    /// UDP of flows between a guest, 10.9.0.1, and a peer behind its gateway, 198.51.100.2.
    Known,
    /// The same for a peer that a policy refuses.
    Refused,
}

/// One point of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The direction.
    pub direction: Direction,
    /// Bytes of a frame without its virtio-net header. A frame larger than [`MTU`] is a TCP segment that the
    /// receiver must cut.
    pub size: usize,
    /// Queue pairs that carry frames.
    pub pairs: usize,
    /// Entries of each ring.
    pub ring: u16,
    /// Whether EVENT_IDX is negotiated.
    pub event_idx: bool,
    /// Whether MRG_RXBUF is negotiated.
    pub mergeable: bool,
    /// Whether the driver asks for a notification of every batch.
    pub calls: bool,
    /// Whether header and frame have separate descriptors (transmit), as from drivers without headroom.
    pub split: bool,
    /// Whether written pages are logged, as during live migration.
    pub logged: bool,
    /// What the frames carry.
    pub traffic: Traffic,
}

/// Longest frame that is not cut into segments.
pub const MTU: usize = 9014;
/// The largest frame: a TCP segment of nearly 64 KiB.
pub const TSO: usize = 65_000;
/// All sizes.
pub const SIZES: [usize; 5] = [64, 256, 1500, 9000, TSO];
/// Number of flows among the frames, so that an interface with several queues uses all of them.
pub const FLOWS: usize = 64;

const BASE: Case = Case {
    direction: Direction::Tx,
    size: 64,
    pairs: 1,
    ring: 256,
    event_idx: true,
    mergeable: true,
    calls: false,
    split: false,
    logged: false,
    traffic: Traffic::Tcp,
};

/// Returns every size both ways, and every other choice by itself at 64 and 1500 bytes.
pub fn plan() -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in [Direction::Tx, Direction::Rx] {
        cases.extend(SIZES.map(|size| Case { direction, size, ..BASE }));
        for size in [64, 1500] {
            let base = Case { direction, size, ..BASE };
            cases.push(Case { ring: 1024, ..base });
            cases.push(Case { event_idx: false, ..base });
            cases.push(Case { calls: true, ..base });
            cases.push(Case { pairs: 2, ..base });
            cases.push(Case { logged: true, ..base });
            cases.push(match direction {
                Direction::Tx => Case { split: true, ..base },
                Direction::Rx => Case { mergeable: false, ..base },
            });
        }
    }
    cases
}

impl Case {
    /// Returns a short name: direction, size, and the differences from the plain case.
    pub fn name(&self) -> String {
        let mut name = match self.direction {
            Direction::Tx => format!("tx-{}", self.size),
            Direction::Rx => format!("rx-{}", self.size),
        };
        for (differs, text) in [
            (self.ring != BASE.ring, "-ring1024"),
            (!self.event_idx, "-noeventidx"),
            (!self.mergeable, "-nomrg"),
            (self.calls, "-calls"),
            (self.split, "-split"),
            (self.logged, "-logged"),
            (self.pairs > 1, "-2pairs"),
            (self.traffic == Traffic::Known, "-udp"),
            (self.traffic == Traffic::Refused, "-refused"),
        ] {
            name.push_str(if differs { text } else { "" });
        }
        name
    }

    /// Returns the feature bits to acknowledge.
    pub fn features(&self) -> u64 {
        let mut features = feature::VERSION_1
            | feature::PROTOCOL_FEATURES
            | feature::INDIRECT_DESC
            | feature::CSUM
            | feature::GUEST_CSUM
            | feature::HOST_TSO4
            | feature::GUEST_TSO4;
        for (set, bit) in [
            (self.event_idx, feature::EVENT_IDX),
            (self.mergeable, feature::MRG_RXBUF),
            (self.pairs > 1, feature::MQ),
        ] {
            features |= if set { bit } else { 0 };
        }
        features
    }

    /// Returns the lengths of a chain's buffers, including the header, as Linux lays them out. A transmit
    /// frame without page fragments is one buffer with headroom for the header; others are protocol headers
    /// and fragments of at most 32 KiB. Receive buffers are about as large as the frames, at most a page; or
    /// they are a chain of pages.
    pub fn parts(&self) -> Vec<usize> {
        let whole = NET_HEADER_LEN + self.size;
        match self.direction {
            Direction::Tx if self.split => vec![NET_HEADER_LEN, self.size],
            Direction::Tx if self.size <= 1500 => vec![whole],
            Direction::Tx => {
                let head = NET_HEADER_LEN + 54;
                let mut parts = vec![head];
                parts.extend((0..whole - head).step_by(32768).map(|at| (whole - head - at).min(32768)));
                parts
            }
            Direction::Rx if self.mergeable => vec![whole.clamp(1536, 4096)],
            Direction::Rx if whole <= 1536 => vec![1536],
            Direction::Rx => vec![4096; whole.div_ceil(4096)],
        }
    }

    /// Returns the number of chains for one frame.
    pub fn chains_per_frame(&self) -> usize {
        match self.direction {
            Direction::Tx => 1,
            Direction::Rx => (NET_HEADER_LEN + self.size).div_ceil(self.parts().iter().sum()),
        }
    }

    /// Returns the virtio-net header of the frames.
    pub fn header(&self) -> NetHeader {
        if self.size <= MTU {
            return NetHeader::default();
        }
        NetHeader {
            flags: gso::NEEDS_CSUM,
            gso_type: gso::TCPV4,
            hdr_len: 54,
            gso_size: 1448,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        }
    }

    /// Returns a frame of flow `flow`: TCP over IPv4 between two unused addresses. Where possible, frames
    /// from the guest have an unknown Ethertype: the kernel drops them at once, and the floor is low.
    pub fn frame(&self, flow: usize) -> Vec<u8> {
        if self.traffic != Traffic::Tcp {
            return self.udp(flow);
        }
        let mut frame = self.tcp(flow);
        if self.direction == Direction::Tx && self.size <= MTU {
            frame[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        }
        frame
    }

    fn udp(&self, flow: usize) -> Vec<u8> {
        let (gateway, guest) = ([0x02, 0, 0, 0, 0, 0x11], [0x02, 0, 0, 0, 0, 0x12]);
        let peer = if self.traffic == Traffic::Known { [198, 51, 100, 2] } else { [203, 0, 113, 2] };
        let (guest_ip, port) = ([10, 9, 0, 1], 20_000 + flow as u16);
        let (macs, addresses, ports) = match self.direction {
            Direction::Tx => ([gateway, guest], [guest_ip, peer], [port, 9]),
            Direction::Rx => ([guest, gateway], [peer, guest_ip], [9, port]),
        };
        let mut ip = vec![0x45, 0];
        ip.extend_from_slice(&((self.size - 14) as u16).to_be_bytes());
        ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
        ip.extend_from_slice(addresses.as_flattened());
        let sum = checksum(&ip, 0);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let mut frame = macs.as_flattened().to_vec();
        frame.extend_from_slice(&[0x08, 0x00]);
        frame.extend_from_slice(&ip);
        frame.extend_from_slice(ports.map(u16::to_be_bytes).as_flattened());
        frame.extend_from_slice(&((self.size - 34) as u16).to_be_bytes());
        // No checksum.
        frame.extend_from_slice(&[0, 0]);
        frame.resize(self.size, 0x5a);
        frame
    }

    fn tcp(&self, flow: usize) -> Vec<u8> {
        let mut frame = vec![0x02, 0, 0, 0, 0, 0x11, 0x02, 0, 0, 0, 0, 0x12, 0x08, 0x00];
        let mut ip = vec![0x45, 0];
        ip.extend_from_slice(&((self.size - 14) as u16).to_be_bytes());
        ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2]);
        let sum = checksum(&ip, 0);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        let pseudo = !checksum(&ip[12..20], 6 + (self.size - 34) as u32);
        frame.extend_from_slice(&ip);
        frame.extend_from_slice(&(20_000 + flow as u16).to_be_bytes());
        frame.extend_from_slice(&9u16.to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
        frame.extend_from_slice(&pseudo.to_be_bytes());
        frame.resize(self.size, 0x5a);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let mut names: Vec<String> = plan().iter().map(Case::name).collect();
        names.sort();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn chains_hold_the_frames() {
        for case in plan() {
            let room = case.parts().iter().sum::<usize>() * case.chains_per_frame();
            assert!(room >= case.size + NET_HEADER_LEN, "{case:?}");
            assert_eq!(case.frame(3).len(), case.size);
        }
    }
}
