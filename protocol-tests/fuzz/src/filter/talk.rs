//! Conversations: the usual frames of a flow in their order, some of them odd.

use arbitrary::Arbitrary;

use super::build::Spec;
use super::load::{Load, Tcp};

/// A conversation.
#[derive(Arbitrary, Debug)]
pub(super) struct Talk {
    from_peer: bool,
    v6: bool,
    peer: u8,
    kind: u8,
    lines: [Line; 5],
}

/// One frame of it.
#[derive(Arbitrary, Debug)]
struct Line {
    odd: u8,
    flags: u8,
    numbers: (u8, u8),
    data: u8,
    options: u8,
}

/// Places of flags in the list of segments: SYN, SYN and ACK, ACK, PSH and ACK, FIN and ACK.
const USUAL: [u8; 5] = [0, 1, 2, 3, 4];

impl Talk {
    /// Returns its frames.
    pub(super) fn frames(&self) -> impl Iterator<Item = Spec> {
        // An allowed host or a client, or any.
        let usual = if self.from_peer { 5 } else { 0 };
        let peer = if self.peer < 192 { usual } else { self.peer };
        self.lines.iter().enumerate().map(move |(n, line)| {
            let by_opener = n % 2 == 0;
            let out = by_opener != self.from_peer;
            let id = if line.odd > 240 { line.flags } else { 0 };
            let load = match self.kind % 4 {
                0 | 1 => Load::Tcp(self.segment(n, line)),
                2 => Load::Udp { guest: id, peer: 1, data: line.data, len: 0 },
                _ => Load::Echo { is_reply: !by_opener, id },
            };
            let mut spec = Spec::plain((out, self.v6), peer, load);
            if line.odd > 252 {
                spec.guest = line.flags;
            }
            spec
        })
    }

    fn segment(&self, n: usize, line: &Line) -> Tcp {
        let plain = Tcp::plain(self.from_peer, USUAL[n]);
        match line.odd {
            0..160 => plain,
            160..200 => plain.odd(USUAL[n], line.numbers, 0, line.options),
            200..230 => plain.odd(USUAL[n], (0, 0), line.data, line.options),
            _ => plain.odd(line.flags, line.numbers, line.data, line.options),
        }
    }
}
