//! Guest memory of a scripted peer: memfd-backed regions at any guest address, file offset and length.
//!
//! The front-end makes it ([`GuestMemory::new`]) and passes it to the back-end in SET_MEM_TABLE. The scripted
//! back-end maps the same descriptors with [`GuestMemory::map`]. Both read and write by guest address, also
//! across the borders of adjacent regions. The mapping ends with the last clone.
#![expect(unsafe_code, reason = "memory shared with another process is reached through a mapping")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// One region as SET_MEM_TABLE and ADD_MEM_REG describe it ("Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// First guest physical address.
    pub guest: u64,
    /// Length in bytes.
    pub size: u64,
    /// The region's address in the front-end's address space; nothing needs to be mapped there.
    pub user: u64,
    /// Offset of the region in the file.
    pub offset: u64,
}

impl RegionSpec {
    /// Returns a region whose user addresses differ from its guest addresses by a constant, the same for all
    /// regions: a range across two regions is contiguous in both.
    pub fn linear(guest: u64, size: u64, offset: u64) -> RegionSpec {
        RegionSpec { guest, size, user: guest + 0x7e00_0000_0000, offset }
    }

    /// Returns regions that are adjacent in guest and user addresses from `guest`, given by size and file
    /// offset.
    pub fn adjoining(guest: u64, pieces: &[(u64, u64)]) -> Vec<RegionSpec> {
        let mut next = guest;
        let place = |&(size, offset): &(u64, u64)| {
            next += size;
            RegionSpec::linear(next - size, size, offset)
        };
        pieces.iter().map(place).collect()
    }

    fn holds(&self, address: u64) -> bool {
        address.checked_sub(self.guest).is_some_and(|at| at < self.size)
    }
}

/// A region and its mapping.
#[derive(Debug)]
struct Region {
    spec: RegionSpec,
    file: OwnedFd,
    mapping: NonNull<u8>,
    mapped: usize,
}

// SAFETY: the mapping belongs to the region until drop, and every access goes by raw copies or atomics, never
// by references to the shared bytes.
unsafe impl Send for Region {}
// SAFETY: as above; concurrent access to guest memory is what guest memory is for.
unsafe impl Sync for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: made by `mmap` with this length in `Region::map`, and nothing else unmaps it.
        let _ = unsafe { rustix::mm::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

impl Region {
    /// Maps the file from its first byte, so that the offset need not be page-aligned.
    fn map(spec: RegionSpec, file: OwnedFd) -> io::Result<Region> {
        let len = spec.offset.checked_add(spec.size).and_then(|len| usize::try_from(len).ok());
        let mapped =
            len.filter(|len| *len > 0).ok_or_else(|| io::Error::other("region has no valid size"))?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), mapped, prot, MapFlags::SHARED, &file, 0) }?;
        let mapping = NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Region { spec, file, mapping, mapped })
    }

    /// Returns the pointer to a guest address and the number of bytes of the region from there.
    fn at(&self, address: u64) -> (NonNull<u8>, usize) {
        let into = address - self.spec.guest;
        // SAFETY: `holds(address)` was checked by the caller, so the offset is inside the mapping.
        let pointer = unsafe { self.mapping.add((self.spec.offset + into) as usize) };
        (pointer, (self.spec.size - into) as usize)
    }
}

/// Guest memory: regions in the order of the message.
#[derive(Clone, Debug)]
pub struct GuestMemory {
    regions: Arc<Vec<Region>>,
}

impl GuestMemory {
    /// Makes a memfd for each region, just long enough for it, and maps it.
    pub fn new(specs: &[RegionSpec]) -> io::Result<GuestMemory> {
        let fresh = |spec: &RegionSpec| {
            let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
            rustix::fs::ftruncate(&file, spec.offset + spec.size)?;
            Region::map(*spec, file)
        };
        Ok(GuestMemory { regions: Arc::new(specs.iter().map(fresh).collect::<io::Result<_>>()?) })
    }

    /// Makes one region of `size` bytes from guest address `guest`.
    pub fn flat(guest: u64, size: u64) -> io::Result<GuestMemory> {
        GuestMemory::new(&[RegionSpec::linear(guest, size, 0)])
    }

    /// Maps regions with existing files.
    pub fn map(regions: Vec<(RegionSpec, OwnedFd)>) -> io::Result<GuestMemory> {
        let mapped =
            regions.into_iter().map(|(spec, file)| Region::map(spec, file)).collect::<io::Result<_>>();
        Ok(GuestMemory { regions: Arc::new(mapped?) })
    }

    /// Returns the regions, in order.
    pub fn specs(&self) -> Vec<RegionSpec> {
        self.regions.iter().map(|region| region.spec).collect()
    }

    /// Returns the regions' descriptors, in order.
    pub fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.regions.iter().map(|region| region.file.as_fd()).collect()
    }

    /// Returns the first guest address after all regions.
    pub fn end(&self) -> u64 {
        self.regions.iter().map(|region| region.spec.guest + region.spec.size).max().unwrap_or(0)
    }

    /// Returns the front-end's address of a guest address; returns an address outside memory unchanged, for
    /// faults.
    pub fn user(&self, guest: u64) -> u64 {
        self.find(guest).map_or(guest, |region| guest - region.spec.guest + region.spec.user)
    }

    /// Returns the guest address of a front-end's address.
    pub fn guest(&self, user: u64) -> Option<u64> {
        let inside = |s: &RegionSpec| user.checked_sub(s.user).filter(|at| *at < s.size);
        self.regions.iter().find_map(|region| inside(&region.spec).map(|at| at + region.spec.guest))
    }

    fn find(&self, guest: u64) -> Option<&Region> {
        self.regions.iter().find(|region| region.spec.holds(guest))
    }

    /// Returns the pointer to `len` bytes at `guest` in one region, for loops that cannot afford a search.
    /// Valid while this memory or a clone of it lives.
    pub fn pointer(&self, guest: u64, len: usize) -> Option<NonNull<u8>> {
        let (pointer, room) = self.find(guest)?.at(guest);
        (len <= room).then_some(pointer)
    }

    /// Returns the bytes from `guest` to the end of its region; 0 outside memory.
    pub fn room(&self, guest: u64) -> usize {
        self.find(guest).map_or(0, |region| region.at(guest).1)
    }

    /// Walks `len` bytes from `guest`, piece by piece across adjacent regions. Returns false if part of it is
    /// not memory.
    fn pieces(&self, guest: u64, len: usize, mut each: impl FnMut(NonNull<u8>, usize, usize)) -> bool {
        let mut done = 0;
        while done < len {
            let Some(address) = guest.checked_add(done as u64) else { return false };
            let Some(region) = self.find(address) else { return false };
            let (pointer, room) = region.at(address);
            let count = room.min(len - done);
            each(pointer, done, count);
            done += count;
        }
        true
    }

    /// Copies out of guest memory. Returns false if part of the range is not memory.
    pub fn try_read(&self, guest: u64, into: &mut [u8]) -> bool {
        self.pieces(guest, into.len(), |pointer, at, count| {
            // SAFETY: `pieces` gives `count` mapped bytes at `pointer`; the slice has `count` bytes from
            // `at`.
            unsafe { pointer.as_ptr().copy_to_nonoverlapping(into[at..at + count].as_mut_ptr(), count) }
        })
    }

    /// Copies into guest memory. Returns false if part of the range is not memory.
    pub fn try_write(&self, guest: u64, from: &[u8]) -> bool {
        self.pieces(guest, from.len(), |pointer, at, count| {
            // SAFETY: `pieces` gives `count` mapped bytes at `pointer`; the slice has `count` bytes from
            // `at`.
            unsafe { pointer.as_ptr().copy_from_nonoverlapping(from[at..at + count].as_ptr(), count) }
        })
    }

    /// Reads `len` bytes.
    ///
    /// # Panics
    /// If the range is not memory: the test itself is wrong.
    pub fn read(&self, guest: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        assert!(self.try_read(guest, &mut bytes), "{guest:#x}+{len:#x} is no guest memory");
        bytes
    }

    /// Writes bytes.
    ///
    /// # Panics
    /// If the range is not memory: the test itself is wrong.
    pub fn write(&self, guest: u64, bytes: &[u8]) {
        assert!(self.try_write(guest, bytes), "{guest:#x}+{:#x} is no guest memory", bytes.len());
    }

    /// Reads a 16-bit field that the other side writes, with Acquire order. Returns 0 outside memory.
    pub fn load(&self, guest: u64) -> u16 {
        self.atomic(guest).map_or(0, |field| u16::from_le(field.load(Ordering::Acquire)))
    }

    /// Writes a 16-bit field that the other side reads, with Release order.
    pub fn store(&self, guest: u64, value: u16) {
        if let Some(field) = self.atomic(guest) {
            field.store(value.to_le(), Ordering::Release);
        }
    }

    /// Sets bits of a byte that others set bits of too. Does nothing outside memory.
    pub fn set_bits(&self, guest: u64, bits: u8) {
        if let Some(byte) = self.pointer(guest, 1) {
            // SAFETY: one mapped byte that lives as long as `self`; whoever shares it sets bits atomically.
            unsafe { AtomicU8::from_ptr(byte.as_ptr()) }.fetch_or(bits, Ordering::SeqCst);
        }
    }

    fn atomic(&self, guest: u64) -> Option<&AtomicU16> {
        let (pointer, room) = self.find(guest)?.at(guest);
        let aligned = pointer.as_ptr().addr().is_multiple_of(2) && room >= 2;
        // SAFETY: two mapped, aligned bytes that live as long as `self`; all access to ring indices is
        // atomic.
        aligned.then(|| unsafe { AtomicU16::from_ptr(pointer.as_ptr().cast()) })
    }
}
