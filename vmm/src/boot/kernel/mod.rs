//! The kernel file. [`KernelImage::open`] recognizes its kind, and [`KernelImage::load`] loads it into
//! memory.
//!
//! | module | holds |
//! |---|---|
//! | `recognise` | the kind of kernel, by its contents |
//! | [`error`] | why a file cannot be used as a kernel |

use std::fs::File;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::board::layout::{HIGH_RAM, HOLE_START};
use crate::board::memory::low_end;
use crate::boot::kernel::error::KernelError;
use crate::boot::kernel::recognise::{ENTRY_64, Extent, Kind, Preferred, recognise};
use crate::files::{self, OpenError};

pub mod error;
mod recognise;

/// Longest command line of a kernel whose header has no limit, without the NUL (`COMMAND_LINE_SIZE` of x86).
const CMDLINE_MAX: u64 = 2047;
/// A kernel file that is not loaded yet.
#[derive(Debug)]
pub struct KernelImage {
    path: PathBuf,
    file: File,
    kind: Kind,
}

/// The boot protocol of a loaded kernel.
#[derive(Debug)]
pub enum Protocol {
    /// The 64-bit Linux boot protocol, with the header from the file.
    Linux64(Box<setup_header>),
    /// PVH.
    Pvh,
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Loaded {
    /// First instruction.
    pub entry: u64,
    /// First address after the kernel and the room in which it unpacks itself.
    pub end: u64,
    /// Last possible address of an initramfs.
    pub initramfs_max: u64,
    /// Longest command line in bytes, without the NUL.
    pub cmdline_max: u64,
    /// The boot protocol.
    pub protocol: Protocol,
}

impl KernelImage {
    /// Opens `path` and recognizes the kind of kernel.
    ///
    /// # Errors
    ///
    /// Fails if the file is not a 64-bit x86 kernel. See [`KernelError`].
    pub fn open(path: &Path) -> Result<KernelImage, KernelError> {
        let file = files::open_regular(path).map_err(|error| match error {
            OpenError::Kind => KernelError::NotAFile,
            OpenError::System(error) => KernelError::Read(error),
        })?;
        let kind = recognise(&file)?;
        Ok(KernelImage { path: path.to_owned(), file, kind })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Loads the kernel into memory.
    ///
    /// # Errors
    ///
    /// Fails if it does not fit.
    pub fn load(self, memory: &GuestMemoryMmap) -> Result<Loaded, KernelError> {
        match self.kind {
            Kind::BzImage(preferred) => load_bzimage(memory, self.file, preferred),
            Kind::Elf(extent) => load_elf(memory, self.file, extent),
        }
    }
}

fn load_bzimage(memory: &GuestMemoryMmap, mut file: File, at: Preferred) -> Result<Loaded, KernelError> {
    let end = at.address.checked_add(at.init_size).ok_or(KernelError::Headers)?;
    // The loaded part is smaller than the unpacked kernel, except with a damaged header.
    let size = file.metadata().map_err(KernelError::Read)?.len();
    check_room(memory, at.address, end.max(at.address.saturating_add(size)))?;
    let loaded =
        BzImage::load(memory, Some(GuestAddress(at.address)), &mut file, Some(GuestAddress(HIGH_RAM)))
            .map_err(KernelError::Load)?;
    let header = loaded.setup_header.ok_or(KernelError::Unknown)?;
    Ok(Loaded {
        entry: at.address + ENTRY_64,
        end: end.max(loaded.kernel_end),
        initramfs_max: u64::from(header.initrd_addr_max),
        cmdline_max: if header.cmdline_size == 0 { CMDLINE_MAX } else { u64::from(header.cmdline_size) },
        protocol: Protocol::Linux64(Box::new(header)),
    })
}

fn load_elf(memory: &GuestMemoryMmap, mut file: File, extent: Extent) -> Result<Loaded, KernelError> {
    check_room(memory, extent.start, extent.end)?;
    let loaded = Elf::load(memory, None, &mut file, None).map_err(KernelError::Load)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(KernelError::NoPvh);
    };
    if !(extent.start..extent.end).contains(&entry.0) {
        return Err(KernelError::Entry(entry.0));
    }
    Ok(Loaded {
        entry: entry.0,
        end: extent.end,
        // The start info has 64 bits for the address, but the kernel reads it with 32-bit page tables.
        initramfs_max: u64::from(u32::MAX),
        cmdline_max: CMDLINE_MAX,
        protocol: Protocol::Pvh,
    })
}

fn check_room(memory: &GuestMemoryMmap, start: u64, end: u64) -> Result<(), KernelError> {
    let have = low_end(memory);
    if start < HIGH_RAM {
        return Err(KernelError::Low(start));
    }
    if end > HOLE_START {
        return Err(KernelError::TooHigh(end));
    }
    if end > have {
        return Err(KernelError::TooLittleMemory { need: end, have });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
