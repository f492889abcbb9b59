//! Memory regions of the front-end: checks, mappings, and the table.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::warn;
use rustix::fs::{SealFlags, fcntl_get_seals};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use volt_net::state::{Exporter, FdId, Importer, StateError};
use volt_virtio::memory::{GuestMemory, MemoryError, Region, exclude_from_core_dump};

use crate::mapping::{MapFault, Piece, map, short_file};
use crate::message::MemoryRegion;

/// Maximum number of regions at a time, the answer to GET_MAX_MEM_SLOTS.
pub const MAX_SLOTS: usize = 128;

/// The reason why a region is refused.
#[derive(Debug, Error)]
pub enum RegionError {
    /// It is empty, or ends beyond an address space.
    #[error(
        "memory region of {size:#x} bytes at guest address {guest:#x}, file offset {offset:#x}, is empty or \
         too large"
    )]
    Size {
        /// Guest address.
        guest: u64,
        /// Bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
    },
    /// It ends beyond its file.
    #[error("memory region of {size:#x} bytes at offset {offset:#x} of a file that has only {file:#x}")]
    FileTooShort {
        /// Bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// The system cannot map it.
    #[error("memory region at guest address {guest:#x} cannot be mapped")]
    Map {
        /// Guest address.
        guest: u64,
        /// The reason.
        source: MmapRegionError,
    },
    /// Its descriptor cannot be examined.
    #[error("the memory region's file cannot be examined")]
    File(#[from] io::Error),
    /// It conflicts with the others.
    #[error("memory table refused")]
    Table(#[from] MemoryError),
    /// There are too many regions.
    #[error("more than {MAX_SLOTS} memory regions")]
    Slots,
    /// REM_MEM_REG of a region that does not exist.
    #[error("there is no memory region of {size:#x} bytes at guest address {guest:#x} to remove")]
    Unknown {
        /// Guest address.
        guest: u64,
        /// Bytes.
        size: u64,
    },
}

fn map_file(region: MemoryRegion, file: File) -> Result<Region, RegionError> {
    let MemoryRegion { guest, size, user, offset } = region;
    let bad_size = RegionError::Size { guest, size, offset };
    let Piece { mapping, offset: before } = match map(file, offset, size) {
        Ok(piece) => piece,
        Err(MapFault::Size) => return Err(bad_size),
        Err(MapFault::File(error)) => return Err(RegionError::File(error)),
        Err(MapFault::Map(source)) => return Err(RegionError::Map { guest, source }),
    };
    if let Err(error) = exclude_from_core_dump(&mapping) {
        warn!(
            event = "memory_in_core_dumps";
            "guest memory at {guest:#x} cannot be excluded from core dumps: {error}"
        );
    }
    Region::new(mapping, before, guest, user, size).ok_or(bad_size)
}

/// A front-end's memory table: the regions as it described them, and the guest memory that they form.
#[derive(Clone, Debug, Default)]
pub struct MemoryTable {
    slots: Vec<Slot>,
    guest: Arc<GuestMemory>,
}

/// A region, with its mapping and the number of its file in a state.
#[derive(Clone, Debug)]
struct Slot {
    described: MemoryRegion,
    fd: FdId,
    region: Region,
}

impl MemoryTable {
    fn over(slots: Vec<Slot>) -> Result<MemoryTable, MemoryError> {
        let guest = GuestMemory::new(slots.iter().map(|slot| slot.region.clone()).collect())?;
        Ok(MemoryTable { slots, guest: Arc::new(guest) })
    }

    /// Creates the table of SET_MEM_TABLE, whose regions come with one descriptor each.
    ///
    /// # Errors
    ///
    /// See [`RegionError`].
    pub fn new(regions: &[MemoryRegion], fds: Vec<OwnedFd>) -> Result<MemoryTable, RegionError> {
        let slots: Result<Vec<_>, _> =
            regions.iter().zip(fds).map(|(region, fd)| Slot::map(*region, fd)).collect();
        Ok(MemoryTable::over(slots?)?)
    }

    /// Adds one region to the table (ADD_MEM_REG).
    ///
    /// # Errors
    ///
    /// See [`RegionError`].
    pub fn with(mut self, region: MemoryRegion, fd: OwnedFd) -> Result<MemoryTable, RegionError> {
        if self.slots.len() >= MAX_SLOTS {
            return Err(RegionError::Slots);
        }
        self.slots.push(Slot::map(region, fd)?);
        Ok(MemoryTable::over(self.slots)?)
    }

    /// Removes a region from the table (REM_MEM_REG), by its addresses and size.
    ///
    /// # Errors
    ///
    /// Fails if there is no such region.
    pub fn without(mut self, region: MemoryRegion) -> Result<MemoryTable, RegionError> {
        let before = self.slots.len();
        self.slots.retain(|slot| !slot.described.is_same(&region));
        if self.slots.len() == before {
            return Err(RegionError::Unknown { guest: region.guest, size: region.size });
        }
        Ok(MemoryTable::over(self.slots)?)
    }

    /// Whether the table has this region.
    pub fn contains(&self, region: MemoryRegion) -> bool {
        self.slots.iter().any(|slot| slot.described.is_same(&region))
    }

    /// Returns the guest memory.
    pub fn guest(&self) -> &Arc<GuestMemory> {
        &self.guest
    }

    /// Returns the size in bytes, and the number of regions.
    pub fn size(&self) -> (u64, usize) {
        (self.slots.iter().map(|slot| slot.described.size).sum(), self.slots.len())
    }

    /// Describes the size for the log: `512 MiB in 2 regions`.
    pub fn describe(&self) -> String {
        let (bytes, regions) = self.size();
        let size = match bytes.div_ceil(1 << 10) {
            kib @ ..1024 => format!("{kib} KiB"),
            kib => format!("{} MiB", (kib + 512) >> 10),
        };
        format!("{size} in {regions} region{}", if regions == 1 { "" } else { "s" })
    }

    /// Whether the front-end can no longer truncate the memory's files (`F_SEAL_SHRINK`).
    ///
    /// Otherwise it can truncate them under the mapping. An access to the missing part then ends this process
    /// with SIGBUS. That affects only its own guest's network, because a daemon serves one virtual machine.
    pub fn is_sealed(&self) -> bool {
        let sealed = |file: &File| fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        self.slots.iter().all(|slot| slot.region.file().is_some_and(sealed))
    }

    /// Exports the table.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> Vec<RegionState> {
        let with_files = self.slots.iter().filter_map(|slot| Some((slot, slot.region.file()?)));
        with_files
            .map(|(slot, file)| RegionState { region: slot.described, fd: out.fd(slot.fd, file) })
            .collect()
    }

    /// Maps the table of a state again. Accepts a file that was truncated meanwhile: a guest that does not
    /// touch the missing part is still served.
    ///
    /// # Errors
    ///
    /// Fails if a region cannot be mapped, or if its descriptor did not come.
    pub fn import(regions: &[RegionState], from: &mut Importer) -> Result<MemoryTable, StateError> {
        let memory = |error: RegionError| StateError::Memory(error.into());
        let map = |state: &RegionState| {
            let file = File::from(from.take(state.fd)?);
            let region = map_file(state.region, file).map_err(memory)?;
            Ok(Slot { described: state.region, fd: state.fd, region })
        };
        let slots = regions.iter().map(map).collect::<Result<_, StateError>>()?;
        MemoryTable::over(slots).map_err(|error| memory(error.into()))
    }
}

impl Slot {
    /// Checks the file `fd`, and maps `described` of it.
    fn map(described: MemoryRegion, fd: OwnedFd) -> Result<Slot, RegionError> {
        let file = File::from(fd);
        let MemoryRegion { size, offset, .. } = described;
        if let Some(file) = short_file(&file, offset, size)? {
            return Err(RegionError::FileTooShort { size, offset, file });
        }
        Ok(Slot { described, fd: FdId::fresh(), region: map_file(described, file)? })
    }
}

/// A region in a state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RegionState {
    #[serde(flatten)]
    region: MemoryRegion,
    fd: FdId,
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
        let error = |size, offset| Slot::map(region(0, size, offset), memfd(0x2000)).unwrap_err();
        assert!(matches!(error(0x2001, 0), RegionError::FileTooShort { file: 0x2000, .. }));
        assert!(matches!(error(1, 0x2000), RegionError::FileTooShort { .. }));
        assert!(matches!(error(u64::MAX, 2), RegionError::FileTooShort { .. }));
        assert!(matches!(error(0, 0), RegionError::Size { .. }));
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        assert!(matches!(Slot::map(region(0, u64::MAX, 0), null.into()), Err(RegionError::Size { .. })));
    }

    #[test]
    fn a_region_may_begin_anywhere_in_its_file() {
        let fd = memfd(0x4000);
        rustix::io::pwrite(&fd, b"here", 0x1234).unwrap();
        let table = MemoryTable::new(&[region(0x1000, 0x100, 0x1234)], vec![fd]).unwrap();
        let memory = table.guest();
        let mut bytes = [0; 4];
        assert!(memory.parts(0x1000, 4, &Cell::new(0), |part| {
            volt_virtio::part::read_parts(&[part], &mut bytes);
        }));
        assert_eq!(&bytes, b"here");
        assert!(!memory.parts(0x1000, 0x101, &Cell::new(0), |_| {}));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_refused_by_name() {
        let file = File::open("/proc/self/exe").unwrap();
        let error = Slot::map(region(0x1000, 0x1000, 0), file.into()).unwrap_err();
        assert!(matches!(error, RegionError::Map { guest: 0x1000, .. }));
    }

    #[test]
    fn regions_come_and_go() {
        let fd = memfd(0x4000);
        let again = || fd.as_fd().try_clone_to_owned().unwrap();
        let table = MemoryTable::new(&[region(0x4000, 0x1000, 0)], vec![again()]).unwrap();
        let table = table.with(region(0, 0x1000, 0x1000), again()).unwrap();
        assert_eq!(table.guest().regions()[0].guest(), 0);
        let overlapping = table.clone().with(region(0x800, 0x1000, 0), again());
        assert!(matches!(overlapping, Err(RegionError::Table(_))));
        let table = table.without(region(0x4000, 0x1000, 0)).unwrap();
        assert_eq!((table.size(), table.describe().as_str()), ((0x1000, 1), "4 KiB in 1 region"));
        let error = table.without(region(0x4000, 0x1000, 0)).unwrap_err();
        assert!(matches!(error, RegionError::Unknown { guest: 0x4000, .. }));
    }
}
