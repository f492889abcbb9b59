//! Guest memory: mappings of a front-end's shared files, and the way from a guest address to a pointer.
//!
//! A [`GuestMemory`] is an immutable table behind an `Arc`. Whoever changes the table (SET_MEM_TABLE,
//! ADD_MEM_REG, REM_MEM_REG) builds a new one that shares the mappings that stay; rings hold the `Arc` of
//! the table they were started with, so a mapping lives as long as any pointer into it.
#![expect(unsafe_code, reason = "turns guest addresses into pointers to mapped memory")]

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::MmapRegion;

use crate::part::IoPart;

/// Why a set of regions is no table.
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
    /// Where the region begins inside the mapping: mappings begin at a page, regions anywhere.
    host: *mut u8,
    mapping: Arc<MmapRegion>,
}

// SAFETY: `host` points into `mapping`, which is shared and kept with it.
unsafe impl Send for Region {}
// SAFETY: as above; a region only computes pointers, and what they point to is changed by the guest at any
// time.
unsafe impl Sync for Region {}

impl Region {
    /// A region of `size` bytes at guest address `guest`, which begins `offset` bytes into `mapping`.
    /// `user` is where the front-end has mapped it; ring addresses are given in that space.
    ///
    /// `None` when the region is empty, wraps in an address space, is not inside the mapping, or the mapping
    /// cannot be read and written.
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

    /// First guest address.
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// First address in the front-end's address space.
    pub fn user(&self) -> u64 {
        self.user
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The file that is mapped.
    pub fn file(&self) -> Option<&File> {
        self.mapping.file_offset().map(|offset| offset.file())
    }

    /// The pointer for `guest` and the bytes from there to the region's end.
    #[inline(always)]
    fn tail(&self, guest: u64) -> Option<(*mut u8, u64)> {
        // One comparison for both ends: as guest + size does not wrap, the offset of an address below does,
        // to beyond size.
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
}

impl GuestMemory {
    /// Sorts and checks `regions`.
    ///
    /// # Errors
    ///
    /// When two regions overlap in guest addresses. In front-end addresses they may: a front-end can show one
    /// piece of its memory at two places.
    pub fn new(mut regions: Vec<Region>) -> Result<GuestMemory, MemoryError> {
        regions.sort_by_key(|region| region.guest);
        if let Some(pair) = regions.windows(2).find(|pair| pair[0].guest + pair[0].size > pair[1].guest) {
            return Err(MemoryError::GuestOverlap(pair[1].guest));
        }
        Ok(GuestMemory { regions })
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The guest address for an address of the front-end's address space.
    pub fn user_to_guest(&self, user: u64) -> Option<u64> {
        let region = self.regions.iter().find(|r| user.checked_sub(r.user).is_some_and(|o| o < r.size))?;
        Some(user - region.user + region.guest)
    }

    /// The pointer for `guest` and the bytes that follow it in the same region. `hint` is the index of the
    /// region that the last call found: a guest's buffers mostly come from one, so the search is rare.
    fn tail(&self, guest: u64, hint: &Cell<usize>) -> Option<(*mut u8, u64)> {
        if let Some(found) = self.regions.get(hint.get()).and_then(|region| region.tail(guest)) {
            return Some(found);
        }
        let found = self.regions.partition_point(|region| region.guest <= guest).checked_sub(1)?;
        hint.set(found);
        self.regions[found].tail(guest)
    }

    /// The host memory behind `len` bytes at `guest`, if they are all in the region of number `hint`.
    #[inline(always)]
    pub(crate) fn part(&self, guest: u64, len: u32, hint: usize) -> Option<IoPart<'_>> {
        let (base, room) = self.regions.get(hint)?.tail(guest)?;
        // SAFETY: len <= room, and the region's mapping, which `new` found to be writable, lives as long as
        // `self`.
        (u64::from(len) <= room).then(|| unsafe { IoPart::new(base, len as usize) })
    }

    /// Calls `each` with the parts of host memory behind `len` bytes at `guest`: one, or more where the range
    /// crosses into adjoining regions. `false` when part of the range is no guest memory; `each` may have
    /// been called by then.
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

    /// The same for a range that is not all in the region of `hint`.
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
            // The region ends at guest + now at most, which Region::new checked to be no overflow.
            guest += now;
        }
        true
    }

    /// The pointer to `len` bytes at `guest` as pairs of words, when they lie in one region and are aligned
    /// for that.
    pub(crate) fn contiguous(&self, guest: u64, len: u32, hint: &Cell<usize>) -> Option<*const [u64; 2]> {
        let (base, room) = self.tail(guest, hint)?;
        let pairs = base.cast::<[u64; 2]>();
        (u64::from(len) <= room && pairs.is_aligned()).then_some(pairs.cast_const())
    }

    /// The memory of `len` bytes at `guest` for a ring, whose fields have `align` bytes.
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

/// Why guest memory cannot hold a part of a ring.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum AreaError {
    /// The address breaks the alignment that virtio 1.2, 2.7 asks for.
    #[error("address {guest:#x} is not a multiple of {align}")]
    Alignment {
        /// Guest address.
        guest: u64,
        /// Bytes.
        align: usize,
    },
    /// Some of it is outside the shared memory.
    #[error("{len} bytes at {guest:#x} are not all in the memory that the front-end shared")]
    Unmapped {
        /// Guest address.
        guest: u64,
        /// Bytes.
        len: usize,
    },
    /// It crosses more than one region border.
    #[error("{len} bytes at {guest:#x} are spread over {regions} memory regions: 2 are the limit")]
    Regions {
        /// Guest address.
        guest: u64,
        /// Bytes.
        len: usize,
        /// Regions touched.
        regions: usize,
    },
    /// A region border, or its place in the file, cuts through a field.
    #[error("a memory region's border cuts through a field of the ring at {guest:#x}")]
    Border {
        /// Guest address.
        guest: u64,
    },
}

/// The memory of one part of a ring (descriptor table, available ring, used ring): contiguous for the guest,
/// in at most two pieces here, because a ring may cross from one region into the next.
///
/// Holds pointers without owning: valid while the [`GuestMemory`] that made it lives.
#[derive(Debug)]
pub(crate) struct Area {
    /// Where offsets below `split` count from.
    base: *mut u8,
    split: usize,
    /// Where the others count from: `split` bytes before the second piece.
    rest: *mut u8,
    len: usize,
}

impl Area {
    /// Pointer to the `T` at byte `offset`.
    #[inline(always)]
    pub(crate) fn at<T>(&self, offset: usize) -> *mut T {
        let end = offset + size_of::<T>();
        debug_assert!(end <= self.len && (offset >= self.split || end <= self.split), "{offset} of {self:?}");
        // Callers stay inside `len` (the ring computes offsets from indices it has masked); each of the two
        // pieces is inside one mapping, and `area` refused a border inside an aligned field.
        let origin = if offset < self.split { self.base } else { self.rest };
        origin.wrapping_add(offset).cast()
    }
}

/// Keeps `mapping` out of core dumps: it is the guest's memory, and can be as large as the guest's.
///
/// # Errors
///
/// What `madvise` says.
pub fn exclude_from_core_dump(mapping: &MmapRegion) -> io::Result<()> {
    // SAFETY: the range is a live mapping of ours, and MADV_DONTDUMP does not change its contents.
    let result = unsafe { libc::madvise(mapping.as_ptr().cast(), mapping.size(), libc::MADV_DONTDUMP) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests;
