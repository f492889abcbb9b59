//! Receive offloads: the work on a frame that its driver can do by itself.
//!
//! `Port::set_offloads` tells the port which frames to deliver. Frames that it has queued already, and a
//! frame that waited for buffers, match the previous driver. A driver must not be given frames for offloads
//! that it did not acknowledge (virtio 1.2, 5.1.6.4.1), and could not tell a missing checksum from a wrong
//! one.

use volt_virtio::features::Features;
use volt_virtio::part::{IoPart, read_parts, read_two, write_parts};

use crate::checksum::{checksum, sum};
use crate::port::HEADER_LEN;

const F_NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;
/// Offsets of `csum_start` and `csum_offset` in the header.
const CSUM_START: usize = 6;
const CSUM_OFFSET: usize = 8;

/// The receive offloads that are in force for a driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offloads {
    checksums: bool,
    /// Bit N for `gso_type` N, without ECN.
    segments: u8,
    ecn: bool,
}

impl Offloads {
    /// Selects the offloads among `features`. As for the port, there are none without checksums, and UDP
    /// segmentation applies to both families or to none.
    pub(super) fn new(features: Features) -> Offloads {
        let checksums = features.contains(Features::NET_GUEST_CSUM);
        let table = [
            (Features::NET_GUEST_TSO4, 1),
            (Features::NET_GUEST_UFO, 3),
            (Features::NET_GUEST_TSO6, 4),
            (Features::NET_GUEST_USO4.union(Features::NET_GUEST_USO6), 5),
        ];
        let known = table.iter().filter(|(feature, _)| checksums && features.contains(*feature));
        let segments = known.fold(1, |all, (_, kind)| all | 1 << kind);
        Offloads { checksums, segments, ecn: checksums && features.contains(Features::NET_GUEST_ECN) }
    }

    /// Completes the frame of `len` bytes at the start of `parts` as far as its driver has not acknowledged
    /// to do so. Returns `false` if that takes more than a checksum: the driver must not get the frame.
    ///
    /// Works on a copy in `room`: the guest can change its buffers.
    #[inline(never)]
    pub(super) fn finish(self, parts: &[IoPart<'_>], len: usize, room: &mut [u8]) -> bool {
        let fields = read_two(parts);
        if self.serve(fields) {
            return true;
        }
        let [flags, gso_type] = fields;
        if !self.segment(gso_type) {
            return false;
        }
        // Without it the checksum is present and was checked (DATA_VALID): no reason for a copy.
        if flags & F_NEEDS_CSUM != 0 {
            let Some(frame) = room.get_mut(..len) else { return false };
            read_parts(parts, frame);
            match missing_checksum(frame) {
                Ok(Some((at, sum))) => write_parts(parts, at, &sum),
                Ok(None) => {}
                Err(Misplaced) => return false,
            }
        }
        write_parts(parts, 0, &[0]);
        true
    }

    /// Whether the driver accepts a frame with these fields in its header.
    fn serve(self, [flags, gso_type]: [u8; 2]) -> bool {
        (flags == 0 || self.checksums) && self.segment(gso_type)
    }

    /// Whether the driver can segment a frame of this kind, or the frame needs no segmentation.
    fn segment(self, gso_type: u8) -> bool {
        let kind = gso_type & !GSO_ECN;
        kind < 8 && self.segments >> kind & 1 != 0 && (gso_type == kind || self.ecn)
    }
}

/// Returns the checksum that `frame`, which begins with its header, lacks, and its offset. `None`: no
/// checksum is missing.
///
/// # Errors
///
/// Fails if the header names a place outside of the frame.
pub(super) fn missing_checksum(frame: &[u8]) -> Result<Option<(usize, [u8; 2])>, Misplaced> {
    let (header, payload) = frame.split_at_checked(HEADER_LEN).ok_or(Misplaced)?;
    if header[0] & F_NEEDS_CSUM == 0 {
        return Ok(None);
    }
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (start, offset) = (field(CSUM_START), field(CSUM_OFFSET));
    let covered = payload.get(start..).ok_or(Misplaced)?;
    if offset + 2 > covered.len() {
        return Err(Misplaced);
    }
    // The field holds the sum of the pseudo header.
    Ok(Some((HEADER_LEN + start + offset, checksum(sum(covered)))))
}

/// A header that names a checksum outside of its frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misplaced;

#[cfg(test)]
mod tests {
    use super::*;

    const TSO4: u8 = 1;
    const UFO: u8 = 3;
    const TSO6: u8 = 4;
    const USO: u8 = 5;

    #[test]
    fn a_driver_is_given_what_it_acknowledged() {
        let none = Offloads::new(Features::empty());
        assert!(none.serve([0, 0]));
        assert!(!none.serve([1, 0]) && !none.serve([2, 0]) && !none.serve([0, TSO4]));
        let csum = Features::NET_GUEST_CSUM;
        let cases = [
            (Features::empty(), vec![]),
            (Features::NET_GUEST_TSO4, vec![TSO4]),
            (Features::NET_GUEST_TSO4.union(Features::NET_GUEST_ECN), vec![TSO4, TSO4 | GSO_ECN]),
            (Features::NET_GUEST_TSO6, vec![TSO6]),
            (Features::NET_GUEST_UFO, vec![UFO]),
            (Features::NET_GUEST_USO4, vec![]),
            (Features::NET_GUEST_USO4.union(Features::NET_GUEST_USO6), vec![USO]),
        ];
        for (features, kinds) in cases {
            let with = Offloads::new(csum.union(features));
            for kind in 1..=255 {
                let known = kinds.contains(&kind) || (kind == GSO_ECN && with.ecn);
                assert_eq!(with.serve([1, kind]), known, "{features:?}: {kind:#x}");
                assert!(!Offloads::new(features).serve([0, kind]), "without checksums");
            }
        }
    }

    /// A datagram to 10.0.0.2 as the kernel hands it over; its checksum was computed by hand.
    #[test]
    fn checksums_are_completed() {
        let mut frame = vec![0; HEADER_LEN + 14 + 20];
        (frame[0], frame[CSUM_START], frame[CSUM_OFFSET]) = (F_NEEDS_CSUM, 34, 6);
        // Pseudo header: 10.0.0.1, 10.0.0.2, protocol 17, length 11.
        let pseudo: u16 = 0x0a00 + 1 + 0x0a00 + 2 + 17 + 11;
        frame.extend([0x04, 0x57, 0x08, 0xae, 0, 11]);
        frame.extend(pseudo.to_be_bytes());
        frame.extend([1, 2, 3]);
        let sum = !(pseudo + 0x0457 + 0x08ae + 11 + 0x0102 + 0x0300);
        assert_eq!(missing_checksum(&frame), Ok(Some((HEADER_LEN + 40, sum.to_be_bytes()))));
        frame[0] = 2;
        assert_eq!(missing_checksum(&frame), Ok(None));
        frame[0] = F_NEEDS_CSUM;
        for (start, offset) in [(34, 10), (45, 0), (0xffff, 0xffff), (44, 0)] {
            frame[CSUM_START..CSUM_START + 2].copy_from_slice(&u16::to_le_bytes(start));
            frame[CSUM_OFFSET..CSUM_OFFSET + 2].copy_from_slice(&u16::to_le_bytes(offset));
            assert_eq!(missing_checksum(&frame), Err(Misplaced), "{start} + {offset}");
        }
        assert_eq!(missing_checksum(&frame[..11]), Err(Misplaced));
    }

    #[test]
    fn a_sum_of_nothing_is_not_none() {
        let frame = [&[F_NEEDS_CSUM, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &[0xff; 2]].concat();
        assert_eq!(missing_checksum(&frame), Ok(Some((HEADER_LEN, [0xff; 2]))));
    }
}
