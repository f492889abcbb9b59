//! Guest memory: mappings of a front-end's shared files, and the translation of guest addresses to pointers.
//!
//! A [`GuestMemory`] is an immutable table behind an `Arc`. A change of the table (SET_MEM_TABLE,
//! ADD_MEM_REG, REM_MEM_REG) builds a new one that shares the remaining mappings. Rings hold the `Arc` of the
//! table that they were started with, so that a mapping lives as long as any pointer into it.
#![expect(unsafe_code, reason = "turns guest addresses into pointers to mapped memory")]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::MmapRegion;

use crate::dirty_log::DirtyLog;
use crate::part::IoPart;

/// The reason why regions do not form a table.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// Two regions share guest addresses.
    #[error("regions overlap in guest memory at {0:#x}")]
    GuestOverlap(u64),
}

/// One region of guest memory.
#[derive(Clone, Debug)]
pub struct Region {
    guest: u64,
    user: u64,
    size: u64,
    /// Start of the region in the mapping. Mappings begin at a page boundary, regions anywhere.
    host: *mut u8,
    mapping: Arc<MmapRegion>,
}

// SAFETY: `host` points into `mapping`, which is shared and kept with it.
unsafe impl Send for Region {}
// SAFETY: as above. A region only computes pointers, and the guest can change their targets at any time.
unsafe impl Sync for Region {}

impl Region {
    /// Creates a region of `size` bytes at guest address `guest`, which begins `offset` bytes into `mapping`.
    /// `user` is its address in the front-end's address space, which ring addresses refer to.
    ///
    /// Returns `None` if the region is empty, wraps in an address space, is not inside the mapping, or if the
    /// mapping cannot be read and written.
    pub fn new(mapping: Arc<MmapRegion>, offset: usize, guest: u64, user: u64, size: u64) -> Option<Region> {
        const USABLE: i32 = libc::PROT_READ | libc::PROT_WRITE;
        let inside = usize::try_from(size).ok()?.checked_add(offset)? <= mapping.size();
        guest.checked_add(size)?;
        user.checked_add(size)?;
        if !inside || size == 0 || mapping.prot() & USABLE != USABLE {
            return None;
        }
        // SAFETY: the region, and so its first byte, is inside the mapping.
        let host = unsafe { mapping.as_ptr().add(offset) };
        Some(Region { guest, user, size, host, mapping })
    }

    /// Returns the first guest address.
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// Returns the first address in the front-end's address space.
    pub fn user(&self) -> u64 {
        self.user
    }

    /// Returns the length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the mapped file.
    pub fn file(&self) -> Option<&File> {
        self.mapping.file_offset().map(|offset| offset.file())
    }

    /// Returns the guest address for the pointer `host` and the number of bytes from there to the region's
    /// end, if it points into the region.
    #[inline(always)]
    fn at(&self, host: *mut u8) -> Option<(u64, usize)> {
        let offset = (host as u64).wrapping_sub(self.host as u64);
        (offset < self.size).then(|| (self.guest + offset, (self.size - offset) as usize))
    }

    /// Returns the pointer for `guest` and the number of bytes from there to the region's end.
    #[inline(always)]
    fn tail(&self, guest: u64) -> Option<(*mut u8, u64)> {
        // One comparison for both ends: guest + size does not wrap, so the offset of a lower address wraps
        // beyond size.
        let offset = guest.wrapping_sub(self.guest);
        if offset >= self.size {
            return None;
        }
        // SAFETY: offset < size, and the region is inside the mapping (checked by `new`). It fits usize
        // because the mapping's size does.
        Some((unsafe { self.host.add(offset as usize) }, self.size - offset))
    }
}

/// A table of disjoint regions, sorted by guest address.
#[derive(Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Region>,
    log: Option<Arc<DirtyLog>>,
}

impl GuestMemory {
    /// Sorts and checks `regions`.
    ///
    /// # Errors
    ///
    /// Fails if two regions overlap in guest addresses. They may overlap in front-end addresses: a front-end
    /// can show one piece of its memory at two places.
    pub fn new(mut regions: Vec<Region>) -> Result<GuestMemory, MemoryError> {
        regions.sort_by_key(|region| region.guest);
        if let Some(pair) = regions.windows(2).find(|pair| pair[0].guest + pair[0].size > pair[1].guest) {
            return Err(MemoryError::GuestOverlap(pair[1].guest));
        }
        Ok(GuestMemory { regions, log: None })
    }

    /// Returns the same table, whose rings log the pages that they write.
    pub fn logged(&self, log: Arc<DirtyLog>) -> GuestMemory {
        GuestMemory { regions: self.regions.clone(), log: Some(log) }
    }

    /// Returns the log of written pages, if they are logged.
    #[inline(always)]
    pub(crate) fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// Marks the pages of the first `len` bytes of `parts`, which must be parts of this memory, in `log`.
    /// Returns their number. `hint` as for [`GuestMemory::parts`], by host addresses.
    #[inline(always)]
    pub(crate) fn mark(&self, log: &DirtyLog, parts: &[IoPart<'_>], len: usize, hint: &Cell<usize>) -> u64 {
        // The common case: one part, in the region of the last.
        if let [first, ..] = parts
            && len <= first.len()
            && let Some((guest, room)) = self.regions.get(hint.get()).and_then(|r| r.at(first.base()))
            && len <= room
        {
            return log.mark(guest, len as u64);
        }
        self.mark_parts(log, parts, len, hint)
    }

    #[inline(never)]
    fn mark_parts(&self, log: &DirtyLog, parts: &[IoPart<'_>], mut len: usize, hint: &Cell<usize>) -> u64 {
        let mut pages = 0;
        for part in parts {
            let (mut base, mut left) = (part.base(), part.len().min(len));
            len -= left;
            // Adjacent regions may be adjacent here as well, so that a part is in both.
            while left > 0 {
                let Some((guest, room)) = self.guest_of(base, hint) else { break };
                let now = left.min(room);
                pages += log.mark(guest, now as u64);
                (base, left) = (base.wrapping_add(now), left - now);
            }
            if len == 0 {
                break;
            }
        }
        pages
    }

    /// Returns the guest address for a pointer, and the number of bytes from there to its region's end.
    fn guest_of(&self, host: *mut u8, hint: &Cell<usize>) -> Option<(u64, usize)> {
        if let Some(found) = self.regions.get(hint.get()).and_then(|region| region.at(host)) {
            return Some(found);
        }
        let (index, found) = self.regions.iter().enumerate().find_map(|(i, r)| Some((i, r.at(host)?)))?;
        hint.set(index);
        Some(found)
    }

    /// Returns the regions, by guest address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Translates an address of the front-end's address space to a guest address.
    pub fn user_to_guest(&self, user: u64) -> Option<u64> {
        let region = self.regions.iter().find(|r| user.checked_sub(r.user).is_some_and(|o| o < r.size))?;
        Some(user - region.user + region.guest)
    }

    /// Returns the pointer for `guest` and the number of bytes that follow it in the same region. `hint` is
    /// the index of the last region that was found: most buffers of a guest are in one region, so that the
    /// search is rare.
    fn tail(&self, guest: u64, hint: &Cell<usize>) -> Option<(*mut u8, u64)> {
        if let Some(found) = self.regions.get(hint.get()).and_then(|region| region.tail(guest)) {
            return Some(found);
        }
        let found = self.regions.partition_point(|region| region.guest <= guest).checked_sub(1)?;
        hint.set(found);
        self.regions[found].tail(guest)
    }

    /// Returns the host memory of `len` bytes at `guest`, if they are all in the region with index `hint`.
    #[inline(always)]
    pub(crate) fn part(&self, guest: u64, len: u32, hint: usize) -> Option<IoPart<'_>> {
        let (base, room) = self.regions.get(hint)?.tail(guest)?;
        // SAFETY: len <= room, and the region's mapping, which `new` found to be writable, lives as long as
        // `self`.
        (u64::from(len) <= room).then(|| unsafe { IoPart::new(base, len as usize) })
    }

    /// Calls `each` with the parts of host memory for `len` bytes at `guest`: one, or several if the range
    /// crosses into adjacent regions. Returns `false` if a part of the range is not guest memory. `each` may
    /// have been called before that.
    #[inline]
    pub fn parts<'m>(
        &'m self,
        guest: u64,
        len: u32,
        hint: &Cell<usize>,
        mut each: impl FnMut(IoPart<'m>),
    ) -> bool {
        if let Some(part) = self.part(guest, len, hint.get()) {
            if len > 0 {
                each(part);
            }
            return true;
        }
        self.search_parts(guest, len, hint, &mut each)
    }

    /// Like [`GuestMemory::parts`], for a range that is not all in the region of `hint`.
    #[inline(never)]
    fn search_parts<'m>(
        &'m self,
        mut guest: u64,
        len: u32,
        hint: &Cell<usize>,
        each: &mut dyn FnMut(IoPart<'m>),
    ) -> bool {
        let mut left = u64::from(len);
        while left > 0 {
            let Some((base, room)) = self.tail(guest, hint) else { return false };
            let now = left.min(room);
            // SAFETY: now <= room, and the region's mapping, which `new` found to be writable, lives as long
            // as `self`. now <= len: fits usize.
            each(unsafe { IoPart::new(base, now as usize) });
            left -= now;
            // The region ends at guest + now at most, which `Region::new` checked not to overflow.
            guest += now;
        }
        true
    }

    /// Returns the pointer to `len` bytes at `guest` as pairs of words, if they are aligned and in one
    /// region.
    pub(crate) fn contiguous(&self, guest: u64, len: u32, hint: &Cell<usize>) -> Option<*const [u64; 2]> {
        let (base, room) = self.tail(guest, hint)?;
        let pairs = base.cast::<[u64; 2]>();
        (u64::from(len) <= room && pairs.is_aligned()).then_some(pairs.cast_const())
    }

    /// Returns the memory of `len` bytes at `guest` for a ring whose fields have `align` bytes.
    ///
    /// # Errors
    ///
    /// See [`AreaError`].
    pub(crate) fn area(&self, guest: u64, len: usize, align: usize) -> Result<Area, AreaError> {
        if !guest.is_multiple_of(align as u64) {
            return Err(AreaError::Alignment { guest, align });
        }
        let mut parts = Vec::new();
        let whole = self.parts(guest, len as u32, &Cell::new(0), |part| parts.push(part));
        let area = match parts[..] {
            _ if !whole => return Err(AreaError::Unmapped { guest, len }),
            [one] => Area { base: one.base(), split: usize::MAX & !0xf, rest: one.base(), len },
            [one, two] => {
                Area { base: one.base(), split: one.len(), rest: two.base().wrapping_sub(one.len()), len }
            }
            _ => return Err(AreaError::Regions { guest, len, regions: parts.len() }),
        };
        let aligned = |p: *mut u8| (p as usize).is_multiple_of(align);
        if aligned(area.base) && aligned(area.rest) && area.split.is_multiple_of(align) {
            Ok(area)
        } else {
            Err(AreaError::Border { guest })
        }
    }
}

/// The reason why guest memory cannot contain a part of a ring.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AreaError {
    /// The address does not have the alignment that virtio 1.2, 2.7 requires.
    #[error("address {guest:#x} is not a multiple of {align}")]
    Alignment {
        /// Guest address.
        guest: u64,
        /// Bytes.
        align: usize,
    },
    /// A part of it is outside the shared memory.
    #[error("{len} bytes at {guest:#x} are not all in the memory that the front-end shared")]
    Unmapped {
        /// Guest address.
        guest: u64,
        /// Bytes.
        len: usize,
    },
    /// It crosses more than one region border.
    #[error("{len} bytes at {guest:#x} are in {regions} memory regions: the limit is 2")]
    Regions {
        /// Guest address.
        guest: u64,
        /// Bytes.
        len: usize,
        /// Regions touched.
        regions: usize,
    },
    /// The border of a region, or its place in the file, cuts through a field.
    #[error("a memory region's border cuts through a field of the ring at {guest:#x}")]
    Border {
        /// Guest address.
        guest: u64,
    },
}

/// The memory of one part of a ring (descriptor table, available ring, used ring). It is contiguous for the
/// guest, but consists of up to two pieces here, because a ring may cross from one region into the next.
///
/// Contains pointers without ownership. It is valid while the [`GuestMemory`] that created it lives.
#[derive(Debug)]
pub(crate) struct Area {
    /// Origin of offsets below `split`.
    base: *mut u8,
    split: usize,
    /// Origin of the other offsets: `split` bytes before the second piece.
    rest: *mut u8,
    len: usize,
}

impl Area {
    /// Returns the pointer to the `T` at byte `offset`.
    #[inline(always)]
    pub(crate) fn at<T>(&self, offset: usize) -> *mut T {
        let end = offset + size_of::<T>();
        debug_assert!(end <= self.len && (offset >= self.split || end <= self.split), "{offset} of {self:?}");
        // Callers stay within `len`: the ring computes offsets from masked indices. Each of the two pieces is
        // inside one mapping, and `area` refused a border inside an aligned field.
        let origin = if offset < self.split { self.base } else { self.rest };
        origin.wrapping_add(offset).cast()
    }
}

/// Excludes `mapping` from core dumps: it contains guest memory, and can be as large as that.
///
/// # Errors
///
/// Returns the error of `madvise`.
pub fn exclude_from_core_dump(mapping: &MmapRegion) -> io::Result<()> {
    // SAFETY: the range is a live mapping of this process, and MADV_DONTDUMP does not change its contents.
    let result = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_DONTDUMP) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
