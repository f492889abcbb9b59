//! The blocks of a pcapng file, in little-endian byte order (draft-ietf-opsawg-pcapng).
//!
//! volt has its own code because the package pcap-file needs syn 1 and thiserror 1 in addition to volt's
//! versions.

/// Section Header Block, Interface Description Block, Interface Statistics Block, Enhanced Packet Block.
const SHB: u32 = 0x0a0d_0d0a;
const IDB: u32 = 1;
const ISB: u32 = 5;
const EPB: u32 = 6;
const MAGIC: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;
const COMMENT: u16 = 1;

/// The direction of a frame, in the two lowest bits of `epb_flags`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flow {
    Inbound = 1,
    Outbound = 2,
}

/// A frame for an Enhanced Packet Block.
#[derive(Debug)]
pub(super) struct Packet<'a> {
    /// Number of the interface, in the order of their blocks.
    pub(super) interface: u32,
    /// Nanoseconds since 1970.
    pub(super) time: u64,
    pub(super) bytes: &'a [u8],
    /// Length of the whole frame in bytes.
    pub(super) len: u32,
    pub(super) flow: Flow,
    /// Frames of the interface lost before this one.
    pub(super) lost: u64,
    pub(super) comments: Vec<String>,
}

/// The contents of an Interface Statistics Block.
#[derive(Debug)]
pub(super) struct Statistics {
    pub(super) interface: u32,
    /// Nanoseconds since 1970.
    pub(super) start: u64,
    pub(super) end: u64,
    /// Number of frames, including lost ones.
    pub(super) received: u64,
    pub(super) lost: u64,
}

/// Writes the Section Header Block.
pub(super) fn section(out: &mut Vec<u8>, application: &str) {
    block(out, SHB, |out| {
        out.extend(MAGIC.to_le_bytes());
        // Version 1.0, and a section of unknown length.
        out.extend([1, 0, 0, 0]);
        out.extend((-1i64).to_le_bytes());
        option(out, 4, application.as_bytes());
        end_of_options(out);
    });
}

/// Writes an Interface Description Block for the next interface.
pub(super) fn interface(out: &mut Vec<u8>, name: &str, description: &str, snap: u32) {
    block(out, IDB, |out| {
        out.extend(u32::from(ETHERNET).to_le_bytes());
        out.extend(snap.to_le_bytes());
        option(out, 2, name.as_bytes());
        option(out, 3, description.as_bytes());
        // Times in nanoseconds.
        option(out, 9, &[9]);
        end_of_options(out);
    });
}

/// Writes an Enhanced Packet Block.
pub(super) fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    block(out, EPB, |out| {
        out.extend(packet.interface.to_le_bytes());
        out.extend(time(packet.time));
        out.extend((packet.bytes.len() as u32).to_le_bytes());
        out.extend(packet.len.to_le_bytes());
        out.extend(packet.bytes);
        pad(out);
        option(out, 2, &(packet.flow as u32).to_le_bytes());
        if packet.lost > 0 {
            option(out, 4, &packet.lost.to_le_bytes());
        }
        for comment in &packet.comments {
            option(out, COMMENT, comment.as_bytes());
        }
        end_of_options(out);
    });
}

/// Writes an Interface Statistics Block.
pub(super) fn statistics(out: &mut Vec<u8>, statistics: &Statistics) {
    block(out, ISB, |out| {
        out.extend(statistics.interface.to_le_bytes());
        out.extend(time(statistics.end));
        option(out, 2, &time(statistics.start));
        option(out, 3, &time(statistics.end));
        option(out, 4, &statistics.received.to_le_bytes());
        option(out, 5, &statistics.lost.to_le_bytes());
        end_of_options(out);
    });
}

/// Returns how many of the first `len` bytes are complete blocks, and the number of frames in these. `bytes`
/// begins with a block.
pub(super) fn whole(bytes: &[u8], len: usize) -> (usize, u64) {
    let (mut at, mut frames) = (0, 0);
    while let Some([kind, total]) = bytes.get(at..).and_then(first_words) {
        if at + total as usize > len {
            break;
        }
        at += total as usize;
        frames += u64::from(kind == EPB);
    }
    (at, frames)
}

fn first_words(bytes: &[u8]) -> Option<[u32; 2]> {
    let (words, _) = bytes.as_chunks();
    Some([u32::from_le_bytes(*words.first()?), u32::from_le_bytes(*words.get(1)?)])
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(kind.to_le_bytes());
    out.extend([0; 4]);
    body(out);
    let total = ((out.len() - start + 4) as u32).to_le_bytes();
    out[start + 4..start + 8].copy_from_slice(&total);
    out.extend(total);
}

/// Writes an option with at most 65,535 bytes of `value`.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let len = value.len().min(u16::MAX.into());
    out.extend(code.to_le_bytes());
    out.extend((len as u16).to_le_bytes());
    out.extend(&value[..len]);
    pad(out);
}

fn end_of_options(out: &mut Vec<u8>) {
    option(out, 0, &[]);
}

/// Pads to a multiple of four bytes, as values of variable length and blocks need.
fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// Encodes a time. The upper half comes first.
fn time(nanoseconds: u64) -> [u8; 8] {
    nanoseconds.rotate_left(32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        let digits: Vec<_> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
    }

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    /// Section 4.1 of the draft.
    #[test]
    fn a_section_header_block() {
        let expected = "0a0d0d0a 28000000 4d3c2b1a 0100 0000 ffffffffffffffff \
                        0400 0400 766f6c74 0000 0000 28000000";
        assert_eq!(written(|out| section(out, "volt")), bytes(expected));
    }

    /// Section 4.2.
    #[test]
    fn an_interface_description_block() {
        let expected = "01000000 34000000 0100 0000 00000400 0200 0500 7461703020000000 \
                        0300 0200 74780000 0900 0100 09000000 0000 0000 34000000";
        assert_eq!(written(|out| interface(out, "tap0 ", "tx", 262_144)), bytes(expected));
    }

    /// Section 4.3.
    #[test]
    fn an_enhanced_packet_block() {
        let frame = Packet {
            interface: 1,
            time: 0x0102_0304_0506_0708,
            bytes: &[0xaa, 0xbb, 0xcc, 0xdd, 0xee],
            len: 60,
            flow: Flow::Outbound,
            lost: 7,
            comments: vec!["why".to_owned(), "also".to_owned()],
        };
        let expected = "06000000 50000000 01000000 04030201 08070605 05000000 3c000000 aabbccddee000000 \
                        0200 0400 02000000 0400 0800 0700000000000000 0100 0300 77687900 \
                        0100 0400 616c736f 0000 0000 50000000";
        assert_eq!(written(|out| packet(out, &frame)), bytes(expected));
        let plain = Packet { lost: 0, comments: Vec::new(), flow: Flow::Inbound, bytes: &[1; 4], ..frame };
        let expected = "06000000 30000000 01000000 04030201 08070605 04000000 3c000000 01010101 \
                        0200 0400 01000000 0000 0000 30000000";
        assert_eq!(written(|out| packet(out, &plain)), bytes(expected));
    }

    /// Section 4.6.
    #[test]
    fn an_interface_statistics_block() {
        let end = Statistics { interface: 2, start: 1, end: 1 << 32, received: 9, lost: 3 };
        let expected = "05000000 4c000000 02000000 01000000 00000000 0200 0800 0000000001000000 \
                        0300 0800 0100000000000000 0400 0800 0900000000000000 \
                        0500 0800 0300000000000000 0000 0000 4c000000";
        assert_eq!(written(|out| statistics(out, &end)), bytes(expected));
    }

    #[test]
    fn whole_blocks_are_told_from_the_rest() {
        let frame = |out: &mut Vec<u8>| {
            let comments = Vec::new();
            let flow = Flow::Inbound;
            packet(out, &Packet { interface: 0, time: 0, bytes: &[1; 4], len: 4, flow, lost: 0, comments });
        };
        let mut out = written(|out| section(out, ""));
        let section = out.len();
        frame(&mut out);
        let first = out.len();
        frame(&mut out);
        for (len, expected) in [
            (0, (0, 0)),
            (section, (section, 0)),
            (first - 1, (section, 0)),
            (first, (first, 1)),
            (out.len() - 1, (first, 1)),
            (out.len(), (out.len(), 2)),
        ] {
            assert_eq!(whole(&out, len), expected, "of {len}");
        }
    }
}
