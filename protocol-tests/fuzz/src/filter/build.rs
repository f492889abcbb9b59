//! Frames from choices. Most choices are likely ones: a byte picks one of a small set, and its first members
//! are what a good guest or a good host would send.

use std::net::IpAddr;

use arbitrary::Arbitrary;

use super::ends::{GATEWAY, GUEST, NEIGHBOUR, guest, mac_of, peer};
use super::load::{Load, Made};

/// How a frame is made.
#[derive(Arbitrary, Clone, Debug)]
pub(super) struct Spec {
    pub(super) out: bool,
    pub(super) v6: bool,
    pub(super) guest: u8,
    pub(super) peer: u8,
    load: Load,
    /// Odd choices: MAC addresses, IP header, virtio-net header.
    macs: u8,
    odd: u8,
    header: u8,
    changes: Changes,
}

/// What is changed of a frame that was made.
#[derive(Arbitrary, Clone, Debug)]
pub(super) struct Changes {
    /// 0 to 3: how many bytes, and which.
    count: u8,
    bytes: [(u16, u8); 3],
    cut: u8,
    pad: u8,
}

impl Spec {
    /// A good frame, nothing odd about it.
    pub(super) fn plain((out, v6): (bool, bool), peer: u8, load: Load) -> Spec {
        let changes = Changes { count: 0, bytes: [(0, 0); 3], cut: 0, pad: 255 };
        Spec { out, v6, guest: 0, peer, load, macs: 255, odd: 255, header: 1, changes }
    }

    /// Makes the frame, header first. `last` is an IP packet that passed, to be quoted, and its way.
    pub(super) fn make(&self, last: &(bool, Vec<u8>)) -> Vec<u8> {
        let guest = guest(self.v6, self.guest);
        let (mut peer, mut hop_limit) = (peer(self.v6, self.peer), 64);
        let made = self.load.make(self.out, (guest, &mut peer), &mut hop_limit, last);
        let (ether_type, packet, carried) = match made {
            Made::Plain(ether_type, bytes) => (ether_type, bytes, None),
            Made::Packet(protocol, bytes) => {
                let (ends, odd) = (if self.out { (guest, peer) } else { (peer, guest) }, self.odd);
                let (ether_type, packet, at) = ip(ends, (protocol, hop_limit), &bytes, odd);
                (ether_type, packet, Some((protocol, at)))
            }
        };
        let [mut mine, mut theirs] = [GUEST, mac_of(peer)];
        match self.macs % 32 {
            0 => theirs = NEIGHBOUR,
            1 => theirs = [0xff; 6],
            2 => mine = [0xff; 6],
            3 => mine = NEIGHBOUR,
            4 => theirs = GATEWAY,
            _ => {}
        }
        let (to, from) = if self.out { (theirs, mine) } else { (mine, theirs) };
        let mut frame = self.net_header(carried, packet.len()).to_vec();
        frame.extend(to);
        frame.extend(from);
        frame.extend(u16::to_be_bytes(ether_type));
        frame.extend(packet);
        self.changes.apply(&mut frame);
        frame
    }

    /// Makes a virtio-net header: none, a good one for the transport at this place, or a bad one.
    fn net_header(&self, carried: Option<(u8, usize)>, len: usize) -> [u8; 12] {
        let mut header = [0; 12];
        let (protocol, at) = carried.unwrap_or((6, 20));
        let mut set =
            |at: usize, value: usize| header[at..at + 2].copy_from_slice(&(value as u16).to_le_bytes());
        let choice = self.header;
        if choice.is_multiple_of(4) && choice > 0 {
            set(6, 14 + at);
            set(8, if protocol == 17 { 6 } else { 16 });
            set(2, len % 100);
            let gso = match (choice / 4 % 4, protocol, self.v6) {
                (1, 6, false) => 1,
                (1, 6, true) => 4,
                (1, 17, _) => 5,
                (2, 17, _) => 3,
                (3, ..) => choice / 16,
                _ => 0,
            };
            set(4, [0, 8, 7, 1448, 65_535, 1][usize::from(choice) / 16 % 6]);
            (header[0], header[1]) = (1, gso);
        }
        match choice {
            249 => header[0] = 2,
            250 => header[0] |= 4,
            251 => header[6] ^= 1,
            252 => header[8] ^= 4,
            253 => header[1] ^= 0x80,
            254 => header[10] = 7,
            255 => header[0] = 0,
            _ => {}
        }
        header
    }
}

impl Changes {
    /// Changes bytes of a frame, cuts it or adds padding.
    pub(super) fn apply(&self, frame: &mut Vec<u8>) {
        let count = if self.count >= 224 { usize::from(self.count) % 4 } else { 0 };
        for (at, byte) in &self.bytes[..count] {
            let at = usize::from(*at) % frame.len().max(1);
            frame.iter_mut().skip(at).take(1).for_each(|old| *old = *byte);
        }
        match self.pad {
            0..=15 => frame.extend(vec![self.cut; usize::from(self.pad)]),
            16 => frame.resize(frame.len().max(72), self.cut),
            17 => frame.resize(frame.len().max(73), self.cut),
            18 => frame.extend(vec![0; 3000]),
            19 => {
                frame.extend(vec![0; 3000]);
                frame.push(self.cut);
            }
            _ => {}
        }
        if self.cut >= 248 {
            frame.truncate(frame.len().saturating_sub(usize::from(self.pad)));
        }
    }
}

/// Makes an IP packet. Returns its EtherType, its bytes, and where its load is.
pub(super) fn ip(
    (source, destination): (IpAddr, IpAddr),
    (protocol, hop_limit): (u8, u8),
    load: &[u8],
    odd: u8,
) -> (u16, Vec<u8>, usize) {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let options: &[u8] = match odd {
                1 => &[1, 1, 1, 0],
                2 => &[0x94, 4, 0, 0],
                3 => &[131, 7, 4, 1, 2, 3, 4, 0],
                4 => &[7, 0, 0, 0],
                _ => &[],
            };
            let place: u16 = match odd {
                5 => 0x2000,
                6 => 0x2001,
                7 => 2,
                8 => 3,
                9 => 185,
                10 => 0x8000,
                _ => 0x4000,
            };
            let len = 20 + options.len();
            let total = (len + load.len()).min(65_535) as u16 - u16::from(odd == 11);
            let mut bytes = vec![0x40 | (len / 4) as u8, 0];
            bytes.extend(total.to_be_bytes());
            bytes.extend([0, 9]);
            bytes.extend(place.to_be_bytes());
            bytes.extend([hop_limit, protocol, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.extend(options);
            bytes.extend(load);
            (0x0800, bytes, len)
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let extensions: Vec<(u8, [u8; 7])> = match odd {
                1 => vec![(0, [0, 5, 2, 0, 0, 1, 0])],
                2 => vec![(60, [0, 1, 4, 0, 0, 0, 0])],
                3 => vec![(43, [0, 0, 1, 0, 0, 0, 0])],
                4 => vec![(43, [0, 0, 0, 0, 0, 0, 0])],
                5 => vec![(44, [0, 0, 1, 0, 0, 0, 9])],
                6 => vec![(44, [0, 0, 0, 0, 0, 0, 9])],
                7 => vec![(44, [0, 0, 16, 0, 0, 0, 9])],
                8 => vec![(44, [0, 0, 25, 0, 0, 0, 9])],
                9 => vec![(44, [0, 5, 168, 0, 0, 0, 9])],
                10 => vec![(60, [0; 7]), (44, [0, 0, 1, 0, 0, 0, 9])],
                12 => vec![(60, [0; 7]), (0, [0; 7])],
                13 => vec![(60, [0; 7]); 5],
                14 => vec![(60, [0; 7]); 6],
                15 => vec![(60, [0; 7]), (60, [9; 7])],
                16 => vec![(44, [0, 0, 1, 0, 0, 0, 9]); 2],
                _ => vec![],
            };
            let len = 8 * extensions.len() + load.len();
            let total = len.min(65_535) as u16 - u16::from(odd == 11 && len > 0);
            let mut bytes = vec![0x60, 0, 0, 0];
            bytes.extend(total.to_be_bytes());
            bytes.extend([extensions.first().map_or(protocol, |(kind, _)| *kind), hop_limit]);
            bytes.extend(octets(source));
            bytes.extend(octets(destination));
            for (n, (_, rest)) in extensions.iter().enumerate() {
                bytes.push(extensions.get(n + 1).map_or(protocol, |(kind, _)| *kind));
                bytes.extend(rest);
            }
            bytes.extend(load);
            (0x86dd, bytes, 40 + 8 * extensions.len())
        }
    }
}
