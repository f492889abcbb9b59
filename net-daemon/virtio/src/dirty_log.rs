//! The log of written pages that a front-end shares during live migration: one bit for each 4 KiB page of
//! guest physical memory, the least significant bit of a byte first ("Migration" in the vhost-user
//! specification).
//!
//! The front-end reads and clears bits while the guest runs, and copies the pages again. So a bit is set
//! after the write that it stands for. A [`GuestMemory`](crate::memory::GuestMemory) carries the log, and
//! rings of that memory mark what they publish.
#![expect(unsafe_code, reason = "the log is shared with another process")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::MmapRegion;

/// Bytes of guest memory that one bit stands for.
pub const LOG_PAGE: u64 = 4096;

/// A log of written pages.
#[derive(Debug)]
pub struct DirtyLog {
    /// Start of the log in the mapping.
    base: *mut u8,
    size: u64,
    _mapping: Arc<MmapRegion>,
}

// SAFETY: `base` points into the mapping, which is kept with it. All accesses are atomic.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Creates a log of `size` bytes, which begins `offset` bytes into `mapping`.
    ///
    /// Returns `None` if the log is empty, is not inside the mapping, or if the mapping cannot be read and
    /// written.
    pub fn new(mapping: Arc<MmapRegion>, offset: usize, size: u64) -> Option<DirtyLog> {
        const USABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
        let inside = usize::try_from(size).ok()?.checked_add(offset)? <= mapping.size();
        if !inside || size == 0 || mapping.prot() & USABLE != USABLE {
            return None;
        }
        // SAFETY: the log, and so its first byte, is inside the mapping.
        let base = unsafe { mapping.as_ptr().add(offset) };
        Some(DirtyLog { base, size, _mapping: mapping })
    }

    /// Whether the log has a bit for each page of `len` bytes at guest address `guest`.
    pub fn covers(&self, guest: u64, len: u64) -> bool {
        len == 0 || guest.checked_add(len - 1).is_some_and(|last| last / LOG_PAGE / 8 < self.size)
    }

    /// Marks the pages of `len` bytes at guest address `guest` as written. Returns the number of marks.
    /// Ignores pages beyond the log, which [`DirtyLog::covers`] finds earlier.
    ///
    /// Always a locked instruction, even if the bit is set already: reading the bit first would need a fence
    /// between the write and the reading, which costs the same.
    #[inline]
    pub fn mark(&self, guest: u64, len: u64) -> u64 {
        let Some(last) = len.checked_sub(1).map(|last| guest.saturating_add(last) / LOG_PAGE) else {
            return 0;
        };
        let first = guest / LOG_PAGE;
        let mut page = first;
        while page <= last
            && let Some(byte) = self.byte(page / 8)
        {
            // Release: the front-end that sees the bit sees the written bytes.
            byte.fetch_or(1 << (page % 8), Ordering::Release);
            page += 1;
        }
        page - first
    }

    /// Marks those pages of `len` bytes at guest address `guest` that are marked in `other`, and perhaps a
    /// few around them that are. Ignores pages beyond either log.
    pub fn merge(&self, other: &DirtyLog, guest: u64, len: u64) {
        let [first, end] = [guest, guest.saturating_add(len)].map(|at| at / LOG_PAGE / 8);
        let bytes = (first..=end).map_while(|at| Some((self.byte(at)?, other.byte(at)?)));
        for (to, from) in bytes {
            match from.load(Ordering::Acquire) {
                0 => {}
                bits => drop(to.fetch_or(bits, Ordering::Release)),
            }
        }
    }

    /// Returns byte `at`, if the log has it.
    #[inline(always)]
    fn byte(&self, at: u64) -> Option<&AtomicU8> {
        // SAFETY: at < size, so the byte is inside the mapping, which is kept. All accesses are atomic.
        (at < self.size).then(|| unsafe { AtomicU8::from_ptr(self.base.add(at as usize)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(size: u64) -> (Arc<MmapRegion>, DirtyLog) {
        let mapping = Arc::new(MmapRegion::new(0x1000).unwrap());
        (mapping.clone(), DirtyLog::new(mapping, 3, size).unwrap())
    }

    fn marked(log: &DirtyLog) -> Vec<u64> {
        let byte = |at| log.byte(at).unwrap().load(Ordering::Relaxed);
        (0..log.size * 8).filter(|page| byte(page / 8) >> (page % 8) & 1 == 1).collect()
    }

    #[test]
    fn a_log_must_be_inside_its_mapping() {
        let mapping = Arc::new(MmapRegion::new(0x1000).unwrap());
        let new = |offset, size| DirtyLog::new(mapping.clone(), offset, size).is_some();
        assert!(new(0xfff, 1) && new(0, 0x1000));
        assert!(!new(0, 0) && !new(0xfff, 2) && !new(usize::MAX, 1) && !new(0, u64::MAX));
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let read_only = Arc::new(MmapRegion::build(None, 0x1000, libc::PROT_READ, flags).unwrap());
        assert!(DirtyLog::new(read_only, 0, 8).is_none(), "marking would end the process");
    }

    #[test]
    fn each_touched_page_has_its_bit() {
        for (guest, len, pages) in [
            (0, 0, vec![]),
            (0, 1, vec![0]),
            (0xfff, 1, vec![0]),
            (0xfff, 2, vec![0, 1]),
            (0x7000, 0x2001, vec![7, 8, 9]),
            (0x1f000, 0x1000, vec![31]),
        ] {
            let (_mapping, marks) = log(4);
            assert_eq!(marks.mark(guest, len), pages.len() as u64, "{guest:#x}+{len:#x}");
            assert_eq!(marked(&marks), pages, "{guest:#x}+{len:#x}");
            let (_mapping, merged) = log(3);
            merged.mark(0x2000, 1);
            merged.merge(&marks, 0, u64::MAX);
            let expected: Vec<_> = (0..24).filter(|page| *page == 2 || pages.contains(page)).collect();
            assert_eq!(marked(&merged), expected, "the part of {pages:?} that fits");
            let (_mapping, part) = log(4);
            part.merge(&marks, 0x8000, 0x8000);
            assert!(marked(&part).iter().all(|page| (8..24).contains(page) && pages.contains(page)));
            assert_eq!(marked(&part).contains(&8), pages.contains(&8));
        }
    }

    #[test]
    fn nothing_is_marked_beyond_the_log() {
        let (_mapping, log) = log(2);
        assert!(log.covers(0, 0x10000) && log.covers(u64::MAX, 0));
        assert!(!log.covers(0, 0x10001) && !log.covers(0x10000, 1) && !log.covers(u64::MAX, 2));
        assert_eq!(log.mark(0xf000, 0x5000), 1);
        log.mark(u64::MAX - 1, 9);
        log.mark(0x2_0000, 1);
        assert_eq!(marked(&log), [15]);
        let after = log.base.wrapping_add(2);
        // SAFETY: inside the mapping; only this test uses it.
        assert_eq!(unsafe { after.read() }, 0);
    }
}
