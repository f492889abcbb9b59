//! Memory regions of the front-end: checked, mapped, and made into a table.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::warn;
use rustix::fs::{FileType, SealFlags, fcntl_get_seals, fstat, fstatfs};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, MmapRegion};

use crate::state::{Exporter, FdId, Importer, StateError};
use crate::vhost_user::message::MemoryRegion;
use crate::virtio::memory::{GuestMemory, MemoryError, Region, exclude_from_core_dump};

/// Most regions at a time: the answer to GET_MAX_MEM_SLOTS.
pub const MAX_SLOTS: usize = 128;
const PAGE: u64 = 4096;
const HUGETLBFS_MAGIC: i64 = 0x9584_58f6;

/// Why a region is not taken.
#[derive(Debug, Error)]
pub enum RegionError {
    /// Ends beyond an address space.
    #[error(
        "memory region of {size:#x} bytes at guest address {guest:#x}, file offset {offset:#x}, is empty or too large"
    )]
    Size {
        /// Guest address.
        guest: u64,
        /// Bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
    },
    /// Its file ends before.
    #[error("memory region of {size:#x} bytes at offset {offset:#x} of a file that has only {file:#x}")]
    FileTooShort {
        /// Bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// The system does not map it.
    #[error("memory region at guest address {guest:#x} cannot be mapped")]
    Map {
        /// Guest address.
        guest: u64,
        /// Why.
        source: MmapRegionError,
    },
    /// Its descriptor cannot be asked.
    #[error("the memory region's file cannot be examined")]
    File(#[from] io::Error),
    /// Does not go with the others.
    #[error("memory table refused")]
    Table(#[from] MemoryError),
    /// There are too many.
    #[error("more than {MAX_SLOTS} memory regions")]
    Slots,
    /// REM_MEM_REG of a region that was not added.
    #[error("there is no memory region of {size:#x} bytes at guest address {guest:#x} to remove")]
    Unknown {
        /// Guest address.
        guest: u64,
        /// Bytes.
        size: u64,
    },
}

/// Maps `region` of the file behind `fd`, after a look at the file.
fn map(region: MemoryRegion, fd: OwnedFd) -> Result<Region, RegionError> {
    let file = File::from(fd);
    check_file(&file, region.size, region.offset)?;
    map_file(region, file)
}

fn map_file(region: MemoryRegion, file: File) -> Result<Region, RegionError> {
    let MemoryRegion { guest, size, user, offset } = region;
    let bad_size = RegionError::Size { guest, size, offset };
    let page = page_size(&file)?;
    // A mapping begins and ends at a page of its file; the region may begin and end anywhere.
    let before = offset % page;
    let len = before.checked_add(size).and_then(|len| len.checked_next_multiple_of(page));
    let Some(len) = len.and_then(|len| usize::try_from(len).ok()).filter(|_| size > 0) else {
        return Err(bad_size);
    };
    let mapping = MmapRegion::build(
        Some(FileOffset::new(file, offset - before)),
        len,
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_SHARED | libc::MAP_NORESERVE,
    )
    .map_err(|source| RegionError::Map { guest, source })?;
    if let Err(error) = exclude_from_core_dump(&mapping) {
        warn!("guest memory at {guest:#x} cannot be kept out of core dumps: {error}");
    }
    Region::new(Arc::new(mapping), before as usize, guest, user, size).ok_or(bad_size)
}

/// Checks that the file has the region's bytes.
fn check_file(file: &File, size: u64, offset: u64) -> Result<(), RegionError> {
    let stat = fstat(file).map_err(io::Error::from)?;
    let end = offset.checked_add(size);
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && end.is_none_or(|end| end > stat.st_size as u64)
    {
        return Err(RegionError::FileTooShort { size, offset, file: stat.st_size as u64 });
    }
    Ok(())
}

fn page_size(file: &File) -> Result<u64, RegionError> {
    let fs = fstatfs(file).map_err(io::Error::from)?;
    Ok(if fs.f_type == HUGETLBFS_MAGIC { fs.f_bsize as u64 } else { PAGE })
}

/// The table of SET_MEM_TABLE, whose regions come with one descriptor each.
///
/// # Errors
///
/// See [`RegionError`].
pub fn table(regions: &[MemoryRegion], fds: Vec<OwnedFd>) -> Result<GuestMemory, RegionError> {
    let mapped: Result<Vec<_>, _> = regions.iter().zip(fds).map(|(region, fd)| map(*region, fd)).collect();
    Ok(GuestMemory::new(mapped?)?)
}

/// Whether the front-end has given up its right to cut the memory's files off (`F_SEAL_SHRINK`).
///
/// Where it has not, it can cut them off under the mapping, and touching what is gone ends this process with SIGBUS: its
/// own guest's network, as a daemon serves one virtual machine.
pub fn is_sealed(memory: &GuestMemory) -> bool {
    let sealed = |file: &File| fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    memory.regions().iter().all(|region| region.file().is_some_and(sealed))
}

/// The table with one more region (ADD_MEM_REG).
///
/// # Errors
///
/// See [`RegionError`].
pub fn add(memory: &GuestMemory, region: MemoryRegion, fd: OwnedFd) -> Result<GuestMemory, RegionError> {
    if memory.regions().len() >= MAX_SLOTS {
        return Err(RegionError::Slots);
    }
    let mut regions = memory.regions().to_vec();
    regions.push(map(region, fd)?);
    Ok(GuestMemory::new(regions)?)
}

/// Whether the table has this very region.
pub fn contains(memory: &GuestMemory, region: MemoryRegion) -> bool {
    memory.regions().iter().any(|r| is(r, region))
}

/// Whether two messages mean the same region; the offset is not compared, as some front-ends leave it out.
pub fn same(one: &MemoryRegion, other: &MemoryRegion) -> bool {
    MemoryRegion { offset: 0, ..*one } == MemoryRegion { offset: 0, ..*other }
}

fn is(r: &Region, region: MemoryRegion) -> bool {
    r.guest() == region.guest && r.size() == region.size && r.user() == region.user
}

/// The table without a region (REM_MEM_REG), which is found by its addresses and size; the offset is not compared, as
/// some front-ends leave it out.
///
/// # Errors
///
/// When it is not there.
pub fn remove(memory: &GuestMemory, region: MemoryRegion) -> Result<GuestMemory, RegionError> {
    let regions: Vec<_> = memory.regions().iter().filter(|r| !is(r, region)).cloned().collect();
    if regions.len() == memory.regions().len() {
        return Err(RegionError::Unknown { guest: region.guest, size: region.size });
    }
    Ok(GuestMemory::new(regions)?)
}

/// A region in a state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegionState {
    #[serde(flatten)]
    region: MemoryRegion,
    fd: FdId,
}

/// Writes a table out. Regions without a file, which no front-end has, are left out.
pub fn export<'a>(memory: &'a GuestMemory, out: &mut Exporter<'a>) -> Vec<RegionState> {
    let regions = memory.regions().iter().filter_map(|r| Some((r, r.file()?)));
    regions
        .map(|(r, file)| RegionState {
            region: MemoryRegion { guest: r.guest(), size: r.size(), user: r.user(), offset: r.file_start() },
            fd: out.fd(r.id(), file),
        })
        .collect()
}

/// Maps the table of a state again. A file that has been cut off since is mapped all the same: a guest that does not touch
/// what is gone is served on.
///
/// # Errors
///
/// When a region cannot be mapped, or its descriptor did not come.
pub fn import(regions: &[RegionState], from: &mut Importer) -> Result<GuestMemory, StateError> {
    let map = |state: &RegionState| {
        let file = File::from(from.take(state.fd)?);
        Ok(map_file(state.region, file).map_err(StateError::Memory)?.known_as(state.fd))
    };
    let regions = regions.iter().map(map).collect::<Result<_, StateError>>()?;
    GuestMemory::new(regions).map_err(|error| StateError::Memory(error.into()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::fd::AsFd;

    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn memfd(size: u64) -> OwnedFd {
        let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, size).unwrap();
        fd
    }

    fn region(guest: u64, size: u64, offset: u64) -> MemoryRegion {
        MemoryRegion { guest, size, user: 0x7000_0000 + guest, offset }
    }

    #[test]
    fn sizes_are_checked_before_anything_is_mapped() {
        let error = |size, offset| map(region(0, size, offset), memfd(0x2000)).unwrap_err();
        assert!(matches!(error(0x2001, 0), RegionError::FileTooShort { file: 0x2000, .. }));
        assert!(matches!(error(1, 0x2000), RegionError::FileTooShort { .. }));
        assert!(matches!(error(u64::MAX, 2), RegionError::FileTooShort { .. }));
        assert!(matches!(error(0, 0), RegionError::Size { .. }));
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(matches!(map(region(0, u64::MAX, 0), null.into()), Err(RegionError::Size { .. })));
    }

    #[test]
    fn a_region_may_begin_anywhere_in_its_file() {
        let fd = memfd(0x4000);
        rustix::io::pwrite(&fd, b"here", 0x1234).unwrap();
        let memory = GuestMemory::new(vec![map(region(0x1000, 0x100, 0x1234), fd).unwrap()]).unwrap();
        let mut bytes = [0; 4];
        assert!(memory.parts(0x1000, 4, &Cell::new(0), |part| {
            crate::virtio::part::read_parts(&[part], &mut bytes);
        }));
        assert_eq!(&bytes, b"here");
        assert!(!memory.parts(0x1000, 0x101, &Cell::new(0), |_| {}));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_by_name() {
        let file = File::open("/proc/self/exe").unwrap();
        let error = map(region(0x1000, 0x1000, 0), file.into()).unwrap_err();
        assert!(matches!(error, RegionError::Map { guest: 0x1000, .. }));
    }

    #[test]
    fn regions_come_and_go() {
        let fd = memfd(0x4000);
        let again = || fd.as_fd().try_clone_to_owned().unwrap();
        let memory = table(&[region(0x4000, 0x1000, 0)], vec![again()]).unwrap();
        let memory = add(&memory, region(0, 0x1000, 0x1000), again()).unwrap();
        assert_eq!(memory.regions()[0].guest(), 0);
        assert!(matches!(add(&memory, region(0x800, 0x1000, 0), again()), Err(RegionError::Table(_))));
        let memory = remove(&memory, region(0x4000, 0x1000, 0)).unwrap();
        assert_eq!(memory.regions().len(), 1);
        let error = remove(&memory, region(0x4000, 0x1000, 0)).unwrap_err();
        assert!(matches!(error, RegionError::Unknown { guest: 0x4000, .. }));
    }
}
