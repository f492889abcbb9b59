//! The rings of an AF_XDP socket, in memory that the kernel shares with every process that maps them.
//!
//! A ring has one producer and one consumer, each with a free-running position. So a process that maps the
//! rings of a socket continues exactly where another one stopped.
#![expect(unsafe_code, reason = "memory shared with the kernel")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::sockopt::xdp_mmap_offsets;
use rustix::net::xdp::XdpRingOffset;

use super::umem::{RX, TX};

/// Offsets of the rings for `mmap(2)`, from `linux/if_xdp.h`.
const RX_RING: u64 = 0;
const TX_RING: u64 = 0x8000_0000;
const FILL_RING: u64 = 0x1_0000_0000;
const COMPLETION_RING: u64 = 0x1_8000_0000;
/// Bytes of an address, and of a descriptor.
const ADDRESS: usize = 8;
const DESCRIPTOR: usize = 16;
/// `XDP_RING_NEED_WAKEUP`.
const NEED_WAKEUP: u32 = 1;

/// A ring as a whole.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: it is memory of the process, accessed with atomic instructions only.
unsafe impl Send for Mapping {}
// SAFETY: as before.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it was mapped with this length, and nothing refers to it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// One ring.
#[derive(Debug)]
pub(super) struct Ring {
    mapping: Mapping,
    at: XdpRingOffset,
    size: u32,
    /// Bytes of an entry: 8, an address, or 16, an address and a length.
    entry: usize,
}

impl Ring {
    /// Maps the ring of `socket` at offset `place`, which has `size` entries of `entry` bytes.
    pub(super) fn map(
        socket: impl AsFd,
        place: u64,
        at: XdpRingOffset,
        size: u32,
        entry: usize,
    ) -> io::Result<Ring> {
        assert!(size.is_power_of_two() && matches!(entry, 8 | 16));
        let fields = [Some(at.producer), Some(at.consumer), at.flags].into_iter().flatten();
        let fields = fields.map(|field| field as usize + size_of::<u32>());
        let len = fields.chain([at.desc as usize + size as usize * entry]).max().unwrap_or_default();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, socket, place)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Ring { mapping: Mapping { base, len }, at, size, entry })
    }

    /// Returns the word at `offset`.
    fn word(&self, offset: u64) -> &AtomicU32 {
        debug_assert!(offset as usize + size_of::<u32>() <= self.mapping.len);
        // SAFETY: the kernel's offsets are aligned and within the mapping, whose length is made of them. It
        // lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.mapping.base.as_ptr().add(offset as usize).cast()) }
    }

    /// Returns the `index`-th eight bytes of the entry at `position`.
    fn half(&self, position: u32, index: usize) -> &AtomicU64 {
        let entry = (position & (self.size - 1)) as usize * self.entry;
        debug_assert!(index < self.entry / 8);
        // SAFETY: one of `size` entries, which all callers keep to, within the mapping, and aligned like its
        // start.
        unsafe {
            let entries = self.mapping.base.as_ptr().add(self.at.desc as usize);
            AtomicU64::from_ptr(entries.add(entry + index * 8).cast())
        }
    }

    /// Returns the position of the other side if the kernel produces.
    #[inline]
    pub(super) fn produced(&self) -> u32 {
        self.word(self.at.producer).load(Acquire)
    }

    /// Returns the position of the other side if the kernel consumes.
    #[inline]
    pub(super) fn consumed(&self) -> u32 {
        self.word(self.at.consumer).load(Acquire)
    }

    /// Publishes entries before `position`.
    #[inline]
    pub(super) fn produce(&self, position: u32) {
        self.word(self.at.producer).store(position, Release);
    }

    /// Gives back entries before `position`.
    #[inline]
    pub(super) fn consume(&self, position: u32) {
        self.word(self.at.consumer).store(position, Release);
    }

    /// Whether the kernel must be told about new entries by a system call.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        // Kernels before 5.4 always do.
        self.at.flags.is_none_or(|flags| self.word(flags).load(Relaxed) & NEED_WAKEUP != 0)
    }

    /// Returns the address at `position`.
    #[inline]
    pub(super) fn address(&self, position: u32) -> u64 {
        self.half(position, 0).load(Relaxed)
    }

    /// Sets the address at `position`.
    #[inline]
    pub(super) fn set_address(&self, position: u32, address: u64) {
        self.half(position, 0).store(address, Relaxed);
    }

    /// Returns address and length of the descriptor at `position`.
    #[inline]
    pub(super) fn descriptor(&self, position: u32) -> (u64, u32) {
        let rest = self.half(position, 1).load(Relaxed).to_ne_bytes();
        let [a, b, c, d, ..] = rest;
        (self.address(position), u32::from_ne_bytes([a, b, c, d]))
    }

    /// Sets address and length of the descriptor at `position`. It has no options.
    #[inline]
    pub(super) fn set_descriptor(&self, position: u32, address: u64, len: u32) {
        let [a, b, c, d] = len.to_ne_bytes();
        self.set_address(position, address);
        self.half(position, 1).store(u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), Relaxed);
    }
}

/// The rings of a socket.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) fill: Ring,
    pub(super) done: Ring,
}

impl Rings {
    /// Maps them. Returns `None` if the socket has no interface any more.
    pub(super) fn map(socket: &OwnedFd) -> io::Result<Option<Rings>> {
        let at = xdp_mmap_offsets(socket)?;
        let map = |place, at, size, entry| match Ring::map(socket, place, at, size, entry) {
            // Not bound any more. Before Linux 6.4 also if it is bound: then there is no port to begin with.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => Ok(None),
            ring => ring.map(Some),
        };
        let rx = map(RX_RING, at.rx, RX, DESCRIPTOR)?;
        let tx = map(TX_RING, at.tx, TX, DESCRIPTOR)?;
        let fill = map(FILL_RING, at.fr, RX, ADDRESS)?;
        let done = map(COMPLETION_RING, at.cr, TX, ADDRESS)?;
        let (Some(rx), Some(tx), Some(fill), Some(done)) = (rx, tx, fill, done) else { return Ok(None) };
        Ok(Some(Rings { rx, tx, fill, done }))
    }
}
