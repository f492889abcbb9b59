//! Pieces of host memory for `readv` and `writev`, bound to the lifetime of that memory.
#![expect(unsafe_code, reason = "copies to and from memory shared with the guest")]

use std::arch::asm;
use std::marker::PhantomData;

/// A piece of host memory for `readv` and `writev`: part of a guest's buffer or of a private buffer.
///
/// It borrows that memory, so that it cannot outlive the buffer, or the ring that keeps the mapping. The
/// bytes may change at any time, so they are only ever copied.
///
/// A port can use the parts of a call, and pass them on. It cannot keep them:
///
/// ```compile_fail,E0521
/// use std::sync::Mutex;
/// use volt_virtio::part::IoPart;
///
/// struct Port {
///     kept: Mutex<Vec<IoPart<'static>>>,
/// }
/// impl Port {
///     fn recv(&self, parts: &[IoPart<'_>]) {
///         self.kept.lock().unwrap().extend_from_slice(parts);
///     }
/// }
/// ```
///
/// It cannot create one for memory that it does not borrow:
///
/// ```compile_fail,E0133
/// volt_virtio::part::IoPart::new(std::ptr::dangling_mut(), 64);
/// ```
///
/// It cannot use them on another thread, where the borrow would not be known:
///
/// ```compile_fail,E0277
/// fn elsewhere(parts: &[volt_virtio::part::IoPart<'_>]) {
///     std::thread::scope(|scope| {
///         scope.spawn(|| parts.len());
///     });
/// }
/// ```
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct IoPart<'m>(libc::iovec, PhantomData<&'m [u8]>);

impl<'m> IoPart<'m> {
    /// Creates a part for memory that is not a slice.
    ///
    /// # Safety
    ///
    /// For `'m`, the `len` bytes at `base` must be mapped, readable and writable, and nobody may hold a
    /// reference to them.
    pub unsafe fn new(base: *mut u8, len: usize) -> IoPart<'m> {
        IoPart(libc::iovec { iov_base: base.cast(), iov_len: len }, PhantomData)
    }

    /// Creates a part for a private buffer.
    pub fn from_slice(buffer: &'m mut [u8]) -> IoPart<'m> {
        IoPart(libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }, PhantomData)
    }

    /// Returns the same part, for a caller that keeps its memory by other means than a borrow.
    ///
    /// # Safety
    ///
    /// While it is used, its memory must fulfil the conditions of [`IoPart::new`].
    pub(crate) unsafe fn unbound(self) -> IoPart<'static> {
        IoPart(self.0, PhantomData)
    }

    pub(crate) fn base(self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Returns the part without its first `count` bytes; `None` if nothing is left.
    #[inline]
    pub fn skip(self, count: usize) -> Option<IoPart<'m>> {
        let left = self.len().checked_sub(count).filter(|left| *left > 0)?;
        let base = self.base().wrapping_add(count).cast();
        Some(IoPart(libc::iovec { iov_base: base, iov_len: left }, PhantomData))
    }

    /// Returns the length in bytes.
    #[expect(clippy::len_without_is_empty, reason = "parts have at least one byte")]
    pub fn len(self) -> usize {
        self.0.iov_len
    }

    /// Extends this part by `next` if `next` begins at its end. Returns whether it did.
    #[inline]
    pub(crate) fn extend(&mut self, next: IoPart<'m>) -> bool {
        let adjoins = self.base().wrapping_add(self.len()) == next.base();
        if adjoins {
            self.0.iov_len += next.len();
        }
        adjoins
    }

    /// Returns `parts` in the form for `readv` and `writev`. They are valid as long as `parts` is.
    pub fn as_iovecs<'a>(parts: &'a [IoPart<'_>]) -> &'a [libc::iovec] {
        // SAFETY: repr(transparent).
        unsafe { std::slice::from_raw_parts(parts.as_ptr().cast(), parts.len()) }
    }
}

/// Copies `bytes` into `parts`, `offset` bytes from their start. Stops at the end of the shorter one.
pub fn write_parts(parts: &[IoPart<'_>], mut offset: usize, mut bytes: &[u8]) {
    for part in parts {
        let Some(room) = part.len().checked_sub(offset).filter(|room| *room > 0) else {
            offset -= part.len();
            continue;
        };
        let now = room.min(bytes.len());
        // SAFETY: offset + now <= part.len(), and the part borrows its memory. Guest memory never overlaps
        // `bytes`, which is private.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), part.base().add(offset), now) };
        bytes = &bytes[now..];
        offset = 0;
        if bytes.is_empty() {
            return;
        }
    }
}

/// Copies from the start of `parts` into `bytes`, and returns the number of bytes. Reads each byte once, even
/// if the guest changes it meanwhile. Not for common frames, which are never copied.
pub fn read_parts(parts: &[IoPart<'_>], bytes: &mut [u8]) -> usize {
    let mut done = 0;
    for part in parts {
        let now = part.len().min(bytes.len() - done);
        for (offset, byte) in bytes[done..done + now].iter_mut().enumerate() {
            // SAFETY: offset < now <= part.len(), and the part borrows its memory.
            *byte = unsafe { part.base().add(offset).read_volatile() };
        }
        done += now;
    }
    done
}

/// Copies from the start of `parts` into `bytes`, up to the end of the shorter one, and returns the number of
/// bytes.
///
/// Decisions may depend on the copy, also while the guest changes its bytes. The copy is then some mixture of
/// old and new bytes, but it is complete before anything looks at it, and nothing reads guest memory again.
/// Copies in large pieces: for frames that are always copied.
#[inline]
pub fn copy_out(parts: &[IoPart<'_>], bytes: &mut [u8]) -> usize {
    let mut done = 0;
    for part in parts {
        let now = part.len().min(bytes.len() - done);
        // SAFETY: now <= part.len(), and the part borrows its memory. done + now <= bytes.len(). Memory of a
        // part never overlaps `bytes`, which is private and borrowed by this call alone.
        unsafe { std::ptr::copy_nonoverlapping(part.base(), bytes.as_mut_ptr().add(done), now) };
        done += now;
        if done == bytes.len() {
            break;
        }
    }
    // Without this, the compiler could assume that guest memory still equals the copy, and read it again
    // instead of the copy. An assembly block that is given the pointer may have changed the copy, so from
    // here on every read is one of the copy.
    // SAFETY: there are no instructions.
    unsafe { asm!("/* {0} */", in(reg) bytes.as_mut_ptr(), options(nostack, preserves_flags)) };
    done
}

/// Copies from `offset` bytes into `from` to the start of `to`, up to the end of the shorter one. Copies
/// large pieces, so that a guest that changes its bytes meanwhile gets any mixture of old and new copied. No
/// decision may depend on the result.
pub fn copy_parts(from: &[IoPart<'_>], mut offset: usize, to: IoPart<'_>) {
    let mut done = 0;
    for part in from {
        let Some(there) = part.len().checked_sub(offset).filter(|there| *there > 0) else {
            offset -= part.len();
            continue;
        };
        let now = there.min(to.len() - done);
        // SAFETY: offset + now <= part.len() and done + now <= to.len(), and parts borrow their memory.
        // `copy` accepts overlapping memory.
        unsafe { std::ptr::copy(part.base().add(offset), to.base().add(done), now) };
        done += now;
        offset = 0;
        if done == to.len() {
            return;
        }
    }
}

/// Copies `from` into `parts`, `offset` bytes from their start. Stops at the end of the shorter one. No
/// decision may depend on the result, as with [`copy_parts`].
pub fn spread_part(from: IoPart<'_>, parts: &[IoPart<'_>], mut offset: usize) {
    let mut done = 0;
    for part in parts {
        let Some(room) = part.len().checked_sub(offset).filter(|room| *room > 0) else {
            offset -= part.len();
            continue;
        };
        let now = room.min(from.len() - done);
        // SAFETY: offset + now <= part.len() and done + now <= from.len(), and parts borrow their memory.
        // `copy` accepts overlapping memory.
        unsafe { std::ptr::copy(from.base().add(done), part.base().add(offset), now) };
        done += now;
        offset = 0;
        if done == from.len() {
            return;
        }
    }
}

/// Returns the ones' complement sum of the 16-bit words from `offset` to the end of `part`, big-endian, the
/// last one filled up with a zero byte (RFC 1071). For memory that no guest can change: reads it once, but
/// after it was written.
pub fn sum_part(part: IoPart<'_>, offset: usize) -> u16 {
    const LANES: usize = 4;
    /// Eight bytes of any alignment.
    #[repr(C, packed)]
    #[derive(Clone, Copy)]
    struct Word(u64);

    let len = part.len().saturating_sub(offset);
    let base = part.base().wrapping_add(offset);
    // Several sums, so that additions do not wait for each other.
    let mut sums = [0_u128; LANES];
    let whole = len / (8 * LANES) * LANES;
    for group in (0..whole).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the word ends at or before `len`, and the part borrows its memory.
            let Word(word) = unsafe { base.cast::<Word>().add(group + lane).read_volatile() };
            *sum += u128::from(word);
        }
    }
    let mut last = [0; 8 * LANES];
    let rest = len - whole * 8;
    for (at, byte) in last[..rest].iter_mut().enumerate() {
        // SAFETY: within the part, as before.
        *byte = unsafe { base.add(whole * 8 + at).read_volatile() };
    }
    let (words, _) = last.as_chunks();
    let rest = words.iter().map(|word| u128::from(u64::from_ne_bytes(*word)));
    let mut sum = sums.into_iter().chain(rest).sum::<u128>();
    while sum > 0xffff {
        // In large steps first.
        let bits = if sum > u128::from(u64::MAX) { 64 } else { 16 };
        sum = (sum & ((1 << bits) - 1)) + (sum >> bits);
    }
    // The order of bytes in a word matters only for the result.
    u16::from_be_bytes((sum as u16).to_ne_bytes())
}

/// Returns the first two bytes of a buffer with at least that many. Each frame's header begins with them.
#[inline(always)]
pub fn read_two(parts: &[IoPart<'_>]) -> [u8; 2] {
    match parts {
        [first, ..] if first.len() >= 2 => {
            // SAFETY: two bytes, of any alignment, in a part that borrows its memory.
            unsafe { first.base().cast::<[u8; 2]>().read_volatile() }
        }
        _ => read_two_apart(parts),
    }
}

/// Like [`write_parts`] with two bytes, optimized for the first part.
#[inline(always)]
pub fn write_two(parts: &[IoPart<'_>], offset: usize, bytes: [u8; 2]) {
    match parts {
        [first, ..] if first.len() >= offset + 2 => {
            // SAFETY: as many bytes, of any alignment, in a part that borrows its memory.
            unsafe { first.base().add(offset).cast::<[u8; 2]>().write_volatile(bytes) };
        }
        _ => write_parts(parts, offset, &bytes),
    }
}

#[cold]
fn read_two_apart(parts: &[IoPart<'_>]) -> [u8; 2] {
    let mut bytes = [0; 2];
    read_parts(parts, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_across_parts() {
        let (mut a, mut b) = ([0u8; 3], [0u8; 4]);
        let parts = [IoPart::from_slice(&mut a), IoPart::from_slice(&mut b)];
        write_parts(&parts, 2, &[1, 2, 3]);
        let mut all = [9; 8];
        assert_eq!(read_parts(&parts, &mut all), 7);
        assert_eq!(all, [0, 0, 1, 2, 3, 0, 0, 9]);
        assert_eq!((read_two(&parts), read_two(&parts[1..])), ([0, 0], [2, 3]));
        write_parts(&parts, 6, &[7, 8]);
        assert_eq!(read_parts(&parts, &mut all), 7);
        assert_eq!(all, [0, 0, 1, 2, 3, 0, 7, 9]);
        write_two(&parts, 1, [4, 5]);
        write_two(&parts, 2, [6, 7]);
        assert_eq!(read_parts(&parts, &mut all), 7);
        assert_eq!(all, [0, 4, 6, 7, 3, 0, 7, 9]);
    }

    #[test]
    fn sums_any_range() {
        let mut bytes: Vec<u8> = (0..70_000).map(|i| (i * 7 + i / 251) as u8).collect();
        for (from, to) in [(0, 0), (0, 1), (1, 2), (3, 12), (0, 8), (5, 69_998), (1, 70_000)] {
            let mut expected: u64 = 0;
            for pair in bytes[from..to].chunks(2) {
                expected += u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low));
            }
            while expected > 0xffff {
                expected = (expected & 0xffff) + (expected >> 16);
            }
            assert_eq!(u64::from(sum_part(IoPart::from_slice(&mut bytes[..to]), from)), expected, "{from}");
        }
    }

    #[test]
    fn copies_out_as_far_as_both_go_and_leaves_a_rest() {
        let (mut a, mut b) = ([1u8, 2, 3], [4u8, 5, 6, 7]);
        let parts = [IoPart::from_slice(&mut a), IoPart::from_slice(&mut b)];
        for (room, expected) in [(0, 0), (2, 2), (3, 3), (5, 5), (7, 7), (9, 7)] {
            let mut to = vec![9; room];
            assert_eq!(copy_out(&parts, &mut to), expected);
            assert!(to.iter().take(7).copied().eq((1..=7).take(room)), "{room}: {to:?}");
            assert!(to.iter().skip(7).all(|byte| *byte == 9), "{room}: {to:?}");
        }
        let mut rest = [0; 2];
        assert_eq!(copy_out(&[parts[1].skip(2).unwrap()], &mut rest), 2);
        assert_eq!(rest, [6, 7]);
        assert!(parts[1].skip(4).is_none() && parts[1].skip(5).is_none());
    }

    #[test]
    fn spreads_a_part_from_any_offset_as_far_as_both_go() {
        for (offset, len, expected) in [
            (0, 7, [1, 2, 3, 4, 5, 6, 7]),
            (2, 3, [0, 0, 1, 2, 3, 0, 0]),
            (3, 4, [0, 0, 0, 1, 2, 3, 4]),
            (5, 7, [0, 0, 0, 0, 0, 1, 2]),
            (7, 7, [0; 7]),
        ] {
            let (mut a, mut b) = ([0u8; 3], [0u8; 4]);
            let mut from = [1, 2, 3, 4, 5, 6, 7];
            let parts = [IoPart::from_slice(&mut a), IoPart::from_slice(&mut b)];
            spread_part(IoPart::from_slice(&mut from[..len]), &parts, offset);
            assert_eq!([&a[..], &b].concat(), expected, "{len} to {offset}");
        }
    }

    #[test]
    fn copies_in_pieces_from_any_offset_as_far_as_both_go() {
        let (mut a, mut b) = ([1u8, 2, 3], [4u8, 5, 6, 7]);
        let parts = [IoPart::from_slice(&mut a), IoPart::from_slice(&mut b)];
        for (offset, room, expected) in [
            (0, 8, &[1, 2, 3, 4, 5, 6, 7, 9][..]),
            (0, 5, &[1, 2, 3, 4, 5]),
            (2, 3, &[3, 4, 5]),
            (3, 4, &[4, 5, 6, 7]),
            (5, 4, &[6, 7, 9, 9]),
            (7, 2, &[9, 9]),
        ] {
            let mut to = vec![9; room];
            copy_parts(&parts, offset, IoPart::from_slice(&mut to));
            assert_eq!(to, expected, "from {offset} into {room}");
        }
    }
}
