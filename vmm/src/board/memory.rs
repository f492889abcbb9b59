//! Guest memory: one sealed memfd, mapped once below and once above the hole for devices.
//!
//! The builder allocates it first. Everything else borrows it. A vhost-user back-end maps the same memfd,
//! from each region's `file_offset()`.
#![expect(unsafe_code, reason = "madvise on guest memory and handing its address to KVM")]

use std::fs::File;
use std::io;
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::mm::{Advice, madvise};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap, MmapRegion,
};

use crate::board::layout::{HIGH_RAM, HOLE_END, HOLE_START, LOW_RAM_END};

/// Size of a huge page, the only size used.
const HUGE_PAGE: u64 = 2 << 20;
/// Size of a page.
const PAGE: u64 = 4096;

/// Why guest memory cannot be allocated.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The size is not a multiple of the page size.
    #[error("a memory size of {size} bytes is not a multiple of the page size, {page} bytes: round it up")]
    Alignment {
        /// The size, in bytes.
        size: u64,
        /// Size of a page, in bytes.
        page: u64,
    },
    /// The size exceeds the address space of this host.
    #[error("a memory size of {0} bytes is more than this host can map: choose a smaller --mem")]
    TooLarge(u64),
    /// A memfd of that size cannot be created.
    #[error("a memfd of {size} bytes for guest memory cannot be created")]
    Memfd {
        /// The size, in bytes.
        size: u64,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The memfd cannot be mapped.
    #[error("guest memory of {size} bytes cannot be mapped: choose a smaller --mem or free memory")]
    Map {
        /// The size, in bytes.
        size: u64,
        /// The error of the system.
        #[source]
        source: MmapRegionError,
    },
    /// There are not enough huge pages.
    #[error(
        "guest memory of {size} bytes needs {pages} free huge pages of 2 MiB: \
         raise /proc/sys/vm/nr_hugepages or leave out --hugepages"
    )]
    HugePages {
        /// The size, in bytes.
        size: u64,
        /// Number of pages.
        pages: u64,
        /// The error of the system.
        #[source]
        source: MmapRegionError,
    },
    /// The regions cannot be combined.
    #[error("guest memory regions cannot be combined")]
    Regions(#[source] GuestRegionCollectionError),
    /// KVM refuses a region.
    #[error("KVM refuses {size} bytes of guest memory at {start:#x}")]
    Slot {
        /// Guest physical address.
        start: u64,
        /// The size, in bytes.
        size: u64,
        /// The error of KVM.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// Allocates `size` bytes of guest memory, zeroed, shared, and excluded from core dumps.
///
/// # Errors
///
/// See [`MemoryError`]. With `hugepages`, the pages are reserved here, so that the guest never lacks them.
pub fn allocate(size: u64, hugepages: bool) -> Result<GuestMemoryMmap, MemoryError> {
    let page = if hugepages { HUGE_PAGE } else { PAGE };
    if size == 0 || !size.is_multiple_of(page) {
        return Err(MemoryError::Alignment { size, page });
    }
    let file = Arc::new(memfd(size, hugepages).map_err(|source| MemoryError::Memfd { size, source })?);
    let mut regions = Vec::new();
    for (start, len, offset) in ram(size).ok_or(MemoryError::TooLarge(size))? {
        let region = map(&file, offset, len, hugepages).map_err(|source| match hugepages {
            true => MemoryError::HugePages { size, pages: size / HUGE_PAGE, source },
            false => MemoryError::Map { size, source },
        })?;
        let region = GuestRegionMmap::new(region, GuestAddress(start)).ok_or(MemoryError::TooLarge(size))?;
        regions.push(region);
    }
    GuestMemoryMmap::from_regions(regions).map_err(MemoryError::Regions)
}

/// Returns the parts of the RAM as (guest address, length, offset in the memfd), all in bytes.
fn ram(size: u64) -> Option<Vec<(u64, u64, u64)>> {
    let low = size.min(HOLE_START);
    let mut parts = vec![(0, low, 0)];
    if size > low {
        HOLE_END.checked_add(size - low)?;
        parts.push((HOLE_END, size - low, low));
    }
    Some(parts)
}

fn memfd(size: u64, hugepages: bool) -> io::Result<File> {
    let mut flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    if hugepages {
        flags |= MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    }
    let fd = memfd_create("volt-guest", flags)?;
    ftruncate(&fd, size)?;
    // If a back-end truncated the file, this process would end with SIGBUS, and vice versa.
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(File::from(fd))
}

fn map(file: &Arc<File>, offset: u64, len: u64, hugepages: bool) -> Result<MmapRegion, MmapRegionError> {
    let too_large = |_| MmapRegionError::InvalidOffsetLength;
    let len = usize::try_from(len).map_err(too_large)?;
    // Huge pages are reserved at once. Not all ordinary pages need to exist.
    let flags = if hugepages { libc::MAP_SHARED } else { libc::MAP_SHARED | libc::MAP_NORESERVE };
    let file = FileOffset::from_arc(Arc::clone(file), offset);
    let region = MmapRegion::build(Some(file), len, libc::PROT_READ | libc::PROT_WRITE, flags)?;
    // SAFETY: the range is exactly the mapping that `region` owns, and the advice changes no contents.
    unsafe { madvise(region.as_ptr().cast(), len, Advice::LinuxDontDump) }
        .map_err(|error| MmapRegionError::Mmap(error.into()))?;
    Ok(region)
}

/// Registers the memory with `vm`, one slot for each region.
///
/// # Errors
///
/// Fails if KVM refuses a region, for instance beyond the processor's physical addresses.
pub fn register(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let (start, size) = (region.start_addr().0, region.len());
        let slot = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: start,
            memory_size: size,
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is `size` bytes long and lives as long as the machine, which keeps the memory
        // next to the VM. Regions do not overlap, which `from_regions` has checked.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|source| MemoryError::Slot {
            start,
            size,
            source,
        })?;
    }
    Ok(())
}

/// The kind of a range of the guest's physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// RAM of the guest.
    Ram,
    /// Exists, but must not be used.
    Reserved,
}

/// Returns the memory map for the guest, as (start, length, kind) in order of address.
pub fn map_for_guest(memory: &GuestMemoryMmap) -> Vec<(u64, u64, RangeKind)> {
    let mut map =
        vec![(0, LOW_RAM_END, RangeKind::Ram), (LOW_RAM_END, HIGH_RAM - LOW_RAM_END, RangeKind::Reserved)];
    for region in memory.iter() {
        let start = region.start_addr().0.max(HIGH_RAM);
        let end = region.start_addr().0 + region.len();
        if end > start {
            map.push((start, end - start, RangeKind::Ram));
        }
    }
    map
}

/// Returns the end of the RAM below the hole.
pub fn low_end(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().next().map_or(0, GuestMemoryRegion::len)
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn ram_leaves_the_hole_to_devices() {
        assert_eq!(ram(GIB), Some(vec![(0, GIB, 0)]));
        assert_eq!(ram(3 * GIB), Some(vec![(0, 3 * GIB, 0)]));
        assert_eq!(ram(5 * GIB), Some(vec![(0, 3 * GIB, 0), (4 * GIB, 2 * GIB, 3 * GIB)]));
        assert_eq!(ram(u64::MAX), None);
    }

    #[test]
    fn every_region_names_its_part_of_one_sealed_memfd() {
        let memory = allocate(4 * GIB, false).unwrap();
        let offsets: Vec<_> = memory.iter().map(|r| r.file_offset().unwrap().start()).collect();
        assert_eq!(offsets, [0, 3 * GIB]);
        let file = memory.iter().next().unwrap().file_offset().unwrap().arc().clone();
        let seals = rustix::fs::fcntl_get_seals(&*file).unwrap();
        assert!(seals.contains(SealFlags::SHRINK));
        assert!(file.set_len(PAGE).is_err());
        memory.write_slice(b"volt", GuestAddress(4 * GIB)).unwrap();
        let mut seen = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&*file, &mut seen, 3 * GIB).unwrap();
        assert_eq!(&seen, b"volt");
    }

    #[test]
    fn guest_memory_is_left_out_of_core_dumps() {
        let memory = allocate(16 << 20, false).unwrap();
        let start = memory.iter().next().unwrap().as_ptr() as usize;
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let ours = smaps.split_once(&format!("\n{start:x}-")).expect("the mapping is listed").1;
        let flags = ours.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert!(flags.split(' ').any(|flag| flag == "dd"), "{flags}");
    }

    #[test]
    fn sizes_that_are_no_pages_are_refused() {
        assert!(matches!(allocate(0, false), Err(MemoryError::Alignment { .. })));
        assert!(matches!(allocate(4097, false), Err(MemoryError::Alignment { .. })));
        assert!(matches!(allocate(3 << 20, true), Err(MemoryError::Alignment { page: HUGE_PAGE, .. })));
    }

    #[test]
    fn missing_huge_pages_are_named_at_start() {
        let size = 1 << 40;
        assert!(matches!(
            allocate(size, true),
            Err(MemoryError::HugePages { .. } | MemoryError::Memfd { .. })
        ));
    }

    #[test]
    fn the_guest_is_told_what_is_ram() {
        let memory = allocate(4 * GIB, false).unwrap();
        let ram: u64 = map_for_guest(&memory).iter().filter(|r| r.2 == RangeKind::Ram).map(|r| r.1).sum();
        assert_eq!(ram, 4 * GIB - (HIGH_RAM - LOW_RAM_END));
        assert_eq!(map_for_guest(&memory).last(), Some(&(4 * GIB, GIB, RangeKind::Ram)));
        assert_eq!(low_end(&memory), 3 * GIB);
    }
}
