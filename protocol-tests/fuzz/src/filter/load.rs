//! What frames carry, from choices.

use std::net::{IpAddr, Ipv4Addr};

use arbitrary::Arbitrary;

use super::ends::{GATEWAY, GUEST, NEIGHBOUR, guest, mac_of, peer, solicited};
use super::read::Mac;

/// What a frame carries.
#[derive(Arbitrary, Clone, Debug)]
pub(super) enum Load {
    Tcp(Tcp),
    Udp {
        guest: u8,
        peer: u8,
        data: u8,
        len: u8,
    },
    Echo {
        is_reply: bool,
        id: u8,
    },
    /// An ICMP error, about the last packet that passed.
    Error {
        kind: u8,
        cut: u8,
        change: (u8, u8),
    },
    Icmp {
        kind: u8,
    },
    /// Neighbour discovery, with the address of the guest (below 128) or a peer as the target.
    Discovery {
        kind: u8,
        target: u8,
        options: u8,
        to: u8,
    },
    Dhcp {
        from_server: bool,
        exchange: u8,
        kind: u8,
        wrong: u8,
        to: u8,
    },
    Arp {
        operation: u8,
        sender: u8,
        target: u8,
        wrong: u8,
    },
    Rarp {
        wrong: u8,
        long: bool,
    },
    Protocol(u8),
    EtherType(u8),
}

/// A TCP segment.
#[derive(Arbitrary, Clone, Debug)]
pub(super) struct Tcp {
    guest: u8,
    peer: u8,
    flags: u8,
    /// Distances from what is usual.
    numbers: (u8, u8),
    data: u8,
    window: u8,
    options: u8,
}

/// Something made.
pub(super) enum Made {
    /// A frame without IP: EtherType and what follows.
    Plain(u16, Vec<u8>),
    /// The load of an IP packet, with its protocol.
    Packet(u8, Vec<u8>),
}

/// Returns the port of the guest's end and of the peer's end.
fn ports(guest: u8, peer: u8) -> (u16, u16) {
    let of = |choice: u8| [1000, 443, 22, 53, 1000, 68, 67, 547][usize::from(choice) % 8];
    let (guest, peer) = if guest % 16 < 14 { (guest % 2 * 2, peer % 4) } else { (guest, peer) };
    (of(guest), of(peer))
}

impl Load {
    /// Makes it, for these ends. Neighbour discovery chooses its own destination.
    pub(super) fn make(
        &self,
        out: bool,
        (guest_address, peer_address): (IpAddr, &mut IpAddr),
        hop_limit: &mut u8,
        last: &(bool, Vec<u8>),
    ) -> Made {
        let v6 = guest_address.is_ipv6();
        let icmp = |bytes: Vec<u8>| Made::Packet(if v6 { 58 } else { 1 }, bytes);
        match self {
            Load::Tcp(tcp) => Made::Packet(6, tcp.make(out)),
            Load::Udp { guest, peer, data, len } => {
                let (guest, peer) = ports(*guest, *peer);
                let (from, to) = if out { (guest, peer) } else { (peer, guest) };
                let size = 8 + u16::from(*data % 64);
                let said = if *len >= 250 { u16::from(*len) - 250 + size - 3 } else { size };
                Made::Packet(17, datagram((from, to), said, &vec![7; usize::from(size) - 8]))
            }
            Load::Echo { is_reply, id } => {
                let kinds = if v6 { [128, 129] } else { [8, 0] };
                icmp(vec![kinds[usize::from(*is_reply)], 0, 0, 0, 0, id % 3, 0, 1])
            }
            Load::Error { kind, cut, change } => icmp(error(v6, *kind, *cut, *change, last)),
            Load::Icmp { kind } => icmp([&[*kind, 0, 0, 0, 0, 0, 0, 0], &[0; 20][..]].concat()),
            Load::Discovery { kind, target, options, to } => {
                let (kind, mac) = (*kind, if out { GUEST } else { mac_of(*peer_address) });
                *hop_limit = if *to < 240 { 255 } else { 64 };
                let target = if *target < 128 { guest(true, *target) } else { peer(true, *target) };
                if let (true, IpAddr::V6(target)) = (out, target) {
                    let groups =
                        ["ff02::1", "ff02::2", "ff02::16"].map(|text| text.parse().expect("a group"));
                    match to % 8 {
                        0 | 1 => *peer_address = solicited(target).into(),
                        2 => *peer_address = target.into(),
                        choice @ 3..=5 => *peer_address = groups[usize::from(choice) - 3],
                        _ => {}
                    }
                }
                Made::Packet(58, discovery(kind, target, *options, mac))
            }
            Load::Dhcp { from_server, exchange, kind, wrong, to } => {
                if out && to % 4 > 0 {
                    *peer_address = Ipv4Addr::BROADCAST.into();
                }
                if !out && to % 4 > 0 {
                    *peer_address = IpAddr::from([192, 0, 2, 1]);
                }
                if v6 {
                    *peer_address = peer(true, *to);
                }
                Made::Packet(17, dhcp(*from_server, *exchange, *kind, *wrong))
            }
            Load::Arp { operation, sender, target, wrong } => {
                let (guest, peer) = (guest(false, *sender), peer(false, *target));
                *peer_address = peer;
                let (sender, target) = match wrong % 16 {
                    0 => (guest, guest),
                    _ if out => (guest, peer),
                    _ => (peer, guest),
                };
                let mac = if out { GUEST } else { mac_of(peer) };
                let mac = if *wrong == 1 { NEIGHBOUR } else { mac };
                let operation = if *operation < 240 { 1 + operation % 2 } else { *operation };
                Made::Plain(0x0806, arp(operation, (mac, sender), (GUEST, target), *wrong))
            }
            Load::Rarp { wrong, long } => {
                *peer_address = Ipv4Addr::BROADCAST.into();
                let zero = IpAddr::from([0, 0, 0, 0]);
                let mut bytes = arp(3, (GUEST, zero), (GUEST, zero), 0xff);
                if *wrong >= 128 {
                    let at = usize::from(*wrong) % bytes.len();
                    bytes[at] ^= 1;
                }
                bytes.resize(if *long { 3000 } else { 46 }, 0);
                if *wrong == 1 {
                    *bytes.last_mut().expect("bytes") = 1;
                }
                Made::Plain(0x8035, bytes)
            }
            Load::Protocol(number) => {
                let known = [47, 4, 41, 50, 132, 58, 1, 2, 59, 51];
                Made::Packet(*known.get(usize::from(*number)).unwrap_or(number), vec![0; 24])
            }
            Load::EtherType(choice) => {
                let known = [0x8100, 0x88a8, 0x9100, 0x0100, 0x88cc, 0x0800, 0x86dd, 0x0806];
                Made::Plain(known[usize::from(*choice) % 8], vec![0x45; 60])
            }
        }
    }
}

impl Tcp {
    /// A segment with these flags (see `make`), as the ends would send it next.
    pub(super) fn plain(from_peer: bool, flags: u8) -> Tcp {
        let (guest, peer) = if from_peer { (1, 0) } else { (0, 1) };
        Tcp { guest, peer, flags, numbers: (0, 0), data: 0, window: 0, options: 7 }
    }

    /// Changes what a line of a conversation may have odd.
    pub(super) fn odd(self, flags: u8, numbers: (u8, u8), data: u8, options: u8) -> Tcp {
        Tcp { flags, numbers, data, options, ..self }
    }

    fn make(&self, out: bool) -> Vec<u8> {
        let (guest, peer) = ports(self.guest, self.peer);
        let (from, to) = if out { (guest, peer) } else { (peer, guest) };
        let flags =
            [2, 0x12, 0x10, 0x18, 0x11, 0x14, 4, 0x10, 0x02, 0x12, 0x10, 0xc2][usize::from(self.flags) % 12];
        let flags = if self.flags >= 240 { self.flags } else { flags };
        let distance = |choice: u8| {
            const FAR: [u32; 12] = [
                0,
                0xffff_ffff,
                3,
                1000,
                1001,
                0x1_0000,
                66_001,
                0x10_0000,
                0x4000_0000,
                0x7fff_ffff,
                0x8000_0000,
                9,
            ];
            if choice < 200 { u32::from(choice) % 4 } else { FAR[usize::from(choice) % 12] }
        };
        let (mine, theirs) = if out { (1000, 500_000) } else { (500_000_u32, 1000_u32) };
        let is_syn = flags & 2 > 0;
        let sequence = mine + u32::from(!is_syn);
        let mut bytes = [from.to_be_bytes(), to.to_be_bytes()].concat();
        bytes.extend(
            sequence.wrapping_add(distance(self.numbers.0) / if is_syn { 4 } else { 1 }).to_be_bytes(),
        );
        let acknowledged = theirs.wrapping_add(1).wrapping_add(distance(self.numbers.1));
        let acknowledged = if self.numbers.1 < 128 { theirs + 1 } else { acknowledged };
        bytes.extend(acknowledged.to_be_bytes());
        let options: &[u8] = match self.options % 8 {
            0 => &[2, 4, 5, 180, 1, 3, 3, 7],
            1 => &[3, 3, 200, 0],
            2 => &[1, 2, 9, 3],
            3 => &[8, 0, 3, 3],
            _ => &[],
        };
        let offset = if self.options >= 250 { self.options } else { (20 + options.len() as u8) << 2 };
        bytes.extend([offset, flags]);
        bytes.extend(
            [1000_u16, 0, 1, 65_535, 500, 1000, 1000, 1000][usize::from(self.window) % 8].to_be_bytes(),
        );
        bytes.extend([0; 4]);
        bytes.extend(options);
        let data = if is_syn && self.data < 250 { 0 } else { usize::from(self.data) % 4 };
        bytes.extend(vec![7; if self.data == 249 { 1400 } else { data }]);
        bytes
    }
}

fn datagram(ports: (u16, u16), len: u16, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [ports.0, ports.1, len, 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(data);
    bytes
}

fn error(v6: bool, kind: u8, cut: u8, change: (u8, u8), last: &(bool, Vec<u8>)) -> Vec<u8> {
    let kinds: [u8; 8] = if v6 { [1, 2, 3, 4, 1, 137, 100, 2] } else { [3, 11, 12, 3, 3, 5, 4, 3] };
    let mut quoted = last.1.clone();
    quoted.truncate(usize::from(cut).max(28));
    if change.0 >= 200 && !quoted.is_empty() {
        let at = usize::from(change.0 - 200) % quoted.len();
        quoted[at] = change.1;
    }
    [&[kinds[usize::from(kind) % 8], 0, 0, 0, 0, 0, 0, 0], &quoted[..]].concat()
}

fn discovery(kind: u8, target: IpAddr, options: u8, mac: Mac) -> Vec<u8> {
    let kind = [135, 136, 133, 134, 143, 131, 132, 130, 135, 136][usize::from(kind) % 10];
    let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    match (kind, target) {
        (135 | 136 | 131 | 132, IpAddr::V6(target)) => bytes.extend(target.octets()),
        (134, _) => bytes.extend([0; 8]),
        _ => {}
    }
    let option = |kind: u8, mac: Mac| [&[kind, 1], &mac[..]].concat();
    match options % 12 {
        0..=3 => bytes.extend(option(1 + options % 2, mac)),
        4 => bytes.extend(option(1, NEIGHBOUR)),
        5 => bytes.extend([option(14, [5; 6]), option(2, mac)].concat()),
        6 => bytes.extend([option(1, mac), option(2, NEIGHBOUR)].concat()),
        7 => bytes.extend(option(5, [0; 6])),
        8 => bytes.extend([1, 0, 0, 0, 0, 0, 0, 0]),
        9 => bytes.extend([1, 2, 0]),
        _ => {}
    }
    bytes
}

fn dhcp(from_server: bool, exchange: u8, kind: u8, wrong: u8) -> Vec<u8> {
    let mut message = vec![if from_server { 2 } else { 1 }, 1, 6, 0, 0, 0, 0, exchange % 2];
    message.extend([0; 8]);
    message.extend([192, 0, 2, if kind.is_multiple_of(16) { 51 } else { 50 }]);
    message.extend([0; 8]);
    message.extend(if wrong % 16 == 1 { NEIGHBOUR } else { GUEST });
    message.extend([0; 202]);
    message.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 2 + kind % 4]);
    message.extend(
        [&[51, 4, 0, 0, 0, 100, 255][..], &[0, 51, 2, 0, 0], &[51, 4, 0, 0], &[255]][usize::from(kind / 64)],
    );
    message.truncate(if wrong % 16 == 2 { 239 } else { message.len() });
    if wrong >= 240 {
        let at = usize::from(wrong - 240);
        message[at] ^= 1;
    }
    let ports = match wrong % 16 {
        3 => (67, 67),
        4 => (68, 68),
        5 => (67, 53),
        6 => (53, 68),
        7 => (67, 68),
        8 => (68, 67),
        _ if from_server => (67, 68),
        _ => (68, 67),
    };
    datagram(ports, 8 + message.len() as u16, &message)
}

fn arp(operation: u8, sender: (Mac, IpAddr), target: (Mac, IpAddr), wrong: u8) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, address) in [sender, target] {
        bytes.extend(mac);
        if let IpAddr::V4(v4) = address {
            bytes.extend(v4.octets());
        }
    }
    match wrong {
        2 => bytes[4] = 8,
        3 => bytes.truncate(20),
        4 => bytes[8..14].copy_from_slice(&GATEWAY),
        _ => {}
    }
    bytes
}
