//! The log of written pages that a front-end shares with its back-end: one bit for each 4 KiB page of guest
//! physical memory, the least significant bit of a byte first ("Live migration", vhost-user specification).
//!
//! [`DirtyLog::new`] makes it, [`Frontend::set_log_base`](crate::frontend::Frontend::set_log_base) passes it
//! to a back-end, and [`DirtyLog::take`] reads and clears it, as a migration does in each pass.
#![expect(unsafe_code, reason = "the log is shared with another process")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of guest memory that one bit stands for.
pub const PAGE: u64 = 4096;

/// Returns the numbers of the pages that `len` bytes at guest address `at` are in.
pub fn pages(at: u64, len: u64) -> std::ops::Range<u64> {
    at / PAGE..if len == 0 { at / PAGE } else { (at + len - 1) / PAGE + 1 }
}

/// A log in a memfd, from any byte of the file on.
#[derive(Debug)]
pub struct DirtyLog {
    file: OwnedFd,
    offset: u64,
    size: u64,
    mapping: NonNull<u8>,
}

// SAFETY: the mapping belongs to the log until drop, and every access is atomic.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // SAFETY: made by `mmap` with this length in `new`, and nothing else unmaps it.
        let _ =
            unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), (self.offset + self.size) as usize) };
    }
}

impl DirtyLog {
    /// Makes an empty log of `size` bytes, `offset` bytes into a new file.
    pub fn new(size: u64, offset: u64) -> io::Result<DirtyLog> {
        let file = rustix::fs::memfd_create("log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, offset + size)?;
        let (len, prot) = ((offset + size) as usize, ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED, &file, 0) }?;
        let mapping = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(DirtyLog { file, offset, size, mapping })
    }

    /// Makes a log for all guest addresses below `end`, at the start of its file.
    pub fn covering(end: u64) -> io::Result<DirtyLog> {
        DirtyLog::new(end.div_ceil(PAGE).div_ceil(8).next_multiple_of(8), 0)
    }

    /// Returns the body of SET_LOG_BASE ("Log description"): size and offset.
    pub fn body(&self) -> Vec<u8> {
        crate::wire::longs(&[self.size, self.offset])
    }

    /// Returns the file.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn byte(&self, at: u64) -> &AtomicU8 {
        assert!(at < self.size, "byte {at} of a log of {}", self.size);
        // SAFETY: inside the mapping (asserted), which lives as long as `self`; all accesses are atomic.
        unsafe { AtomicU8::from_ptr(self.mapping.add((self.offset + at) as usize).as_ptr()) }
    }

    /// Returns whether a page is marked.
    pub fn has(&self, page: u64) -> bool {
        page / 8 < self.size && self.byte(page / 8).load(Ordering::SeqCst) >> (page % 8) & 1 == 1
    }

    /// Returns the marked pages without clearing them.
    pub fn marked(&self) -> BTreeSet<u64> {
        self.collect(|byte| byte.load(Ordering::SeqCst))
    }

    /// Returns the marked pages and clears them.
    pub fn take(&self) -> BTreeSet<u64> {
        self.collect(|byte| byte.swap(0, Ordering::SeqCst))
    }

    fn collect(&self, read: impl Fn(&AtomicU8) -> u8) -> BTreeSet<u64> {
        let bytes = (0..self.size).map(|at| (at, read(self.byte(at)))).filter(|(_, bits)| *bits != 0);
        bytes
            .flat_map(|(at, bits)| {
                (0..8).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| at * 8 + bit)
            })
            .collect()
    }

    /// Cuts the file off after `size` bytes of the log, as a hostile owner can.
    pub fn cut_off(&self, size: u64) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.file, self.offset + size)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_their_pages() {
        assert_eq!(pages(0, 0), 0..0);
        assert_eq!(pages(0, 1), 0..1);
        assert_eq!(pages(0xfff, 1), 0..1);
        assert_eq!(pages(0xfff, 2), 0..2);
        assert_eq!(pages(0x3000, 0x1001), 3..5);
    }

    #[test]
    fn bits_are_counted_from_the_least_significant() {
        let log = DirtyLog::new(16, 5).unwrap();
        log.byte(1).fetch_or(0b1000_0001, Ordering::SeqCst);
        assert!(log.has(8) && log.has(15) && !log.has(9) && !log.has(1 << 40));
        assert_eq!(log.marked(), BTreeSet::from([8, 15]));
        assert_eq!(log.take(), BTreeSet::from([8, 15]));
        assert!(log.take().is_empty());
    }
}
