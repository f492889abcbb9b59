//! The kernel file: recognising its kind by its contents, and loading it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::files::{self, OpenError};
use crate::layout::{HIGH_RAM, HOLE_START};
use crate::memory::low_end;

/// Offset of the 64-bit entry point in the part of a bzImage that is loaded (Linux boot protocol).
const ENTRY_64: u64 = 0x200;
/// `XLF_KERNEL_64` in `xloadflags`: there is a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// First boot protocol with `pref_address` and `init_size`.
const PROTOCOL_INIT_SIZE: u16 = 0x020a;
/// First boot protocol with `xloadflags`.
const PROTOCOL_XLOADFLAGS: u16 = 0x020c;
/// Longest command line of a kernel that does not say, without the NUL (`COMMAND_LINE_SIZE` of x86).
const CMDLINE_MAX: u64 = 2047;
/// Bytes at the start of a file that tell its kind.
const HEAD: usize = 0x290;

/// Why a file is no kernel for this machine.
#[derive(Debug, Error)]
pub enum KernelError {
    /// Cannot be opened or read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// A directory, a device.
    #[error("it is no regular file")]
    NotAFile,
    /// None of the kinds known.
    #[error("it is no Linux kernel: neither a bzImage nor an ELF file (an empty, foreign or damaged file?)")]
    Unknown,
    /// Compressed as a whole.
    #[error("it is compressed with {0}: a bzImage is used as it is, a vmlinux must be decompressed first")]
    Compressed(&'static str),
    /// An EFI program.
    #[error("it is an EFI program without the Linux boot header: use the bzImage (vmlinuz) it was made from")]
    Efi,
    /// For a 32-bit processor.
    #[error("it is a 32-bit kernel: use one for x86-64")]
    Bits32,
    /// For another architecture.
    #[error("it is an ELF file for another processor (machine {0}): use a kernel for x86-64")]
    Machine(u16),
    /// No executable.
    #[error(
        "it is an ELF file, but no executable (type {0}): use the vmlinux itself, not an object or a core dump"
    )]
    ElfType(u16),
    /// A zImage, or older than 2010.
    #[error("its boot protocol {}.{:02} is too old: 2.12 is needed", .0 >> 8, .0 & 0xff)]
    Protocol(u16),
    /// No PVH entry point.
    #[error(
        "it is a vmlinux without a PVH entry point: use the bzImage, or a kernel built with CONFIG_PVH=y"
    )]
    NoPvh,
    /// A program header that cannot be.
    #[error("its program headers are damaged")]
    Headers,
    /// Not all of it is there.
    #[error(
        "it is cut short: the file has {len} bytes and its headers tell of {need}; fetch or build it again"
    )]
    Short {
        /// Of the file, in bytes.
        len: u64,
        /// In bytes, at least.
        need: u64,
    },
    /// More memory than there is.
    #[error("it needs {need} bytes of memory below 3 GiB and the guest has {have}: raise --mem")]
    TooLittleMemory {
        /// In bytes, from 0 on.
        need: u64,
        /// In bytes.
        have: u64,
    },
    /// More memory than there can be.
    #[error(
        "it needs {0} bytes of memory below 3 GiB, where no guest has more than 3 GiB: it is damaged, or built for another \
         place"
    )]
    TooHigh(u64),
    /// Below 1 MiB.
    #[error("it wants to be loaded at {0:#x}, below 1 MiB, where the boot data is")]
    Low(u64),
    /// Where there is nothing of it.
    #[error("its first instruction would be at {0:#x}, outside of what it loads: it is damaged")]
    Entry(u64),
    /// From the loader.
    #[error("it cannot be loaded")]
    Load(#[source] linux_loader::loader::Error),
}

/// A file that is a kernel, not loaded yet.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    file: File,
    kind: Kind,
}

/// What kind of kernel it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Compressed, with the Linux boot header.
    BzImage(Preferred),
    /// Uncompressed ELF file.
    Elf(Extent),
}

/// Where a bzImage unpacks itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Preferred {
    address: u64,
    init_size: u64,
}

/// What an ELF file's loadable segments cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    start: u64,
    end: u64,
}

/// How a loaded kernel wants to be started.
#[derive(Debug)]
pub enum Protocol {
    /// The 64-bit Linux boot protocol, with the header as it came in the file.
    Linux64(Box<setup_header>),
    /// PVH.
    Pvh,
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct Loaded {
    /// First instruction.
    pub entry: u64,
    /// First address that the kernel neither occupies nor unpacks itself to.
    pub end: u64,
    /// Last address where an initramfs may lie.
    pub initramfs_max: u64,
    /// Longest command line in bytes, without the NUL.
    pub cmdline_max: u64,
    /// How to start it.
    pub protocol: Protocol,
}

impl Image {
    /// Opens `path` and finds out what it is.
    ///
    /// # Errors
    ///
    /// When it is no 64-bit x86 kernel; see [`KernelError`].
    pub fn open(path: &Path) -> Result<Image, KernelError> {
        let file = files::open_regular(path).map_err(|error| match error {
            OpenError::Kind => KernelError::NotAFile,
            OpenError::System(error) => KernelError::Read(error),
        })?;
        let kind = recognise(&file)?;
        Ok(Image { path: path.to_owned(), file, kind })
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the kernel into memory.
    ///
    /// # Errors
    ///
    /// When it does not fit.
    pub fn load(self, memory: &GuestMemoryMmap) -> Result<Loaded, KernelError> {
        match self.kind {
            Kind::BzImage(preferred) => load_bzimage(memory, self.file, preferred),
            Kind::Elf(extent) => load_elf(memory, self.file, extent),
        }
    }
}

fn load_bzimage(memory: &GuestMemoryMmap, mut file: File, at: Preferred) -> Result<Loaded, KernelError> {
    let end = at.address.checked_add(at.init_size).ok_or(KernelError::Headers)?;
    // What is loaded is smaller than what it unpacks to, except in a damaged header.
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

fn recognise(file: &File) -> Result<Kind, KernelError> {
    let mut head = [0; HEAD];
    let len = read_up_to(file, &mut head).map_err(KernelError::Read)?;
    let head = Head(head.get(..len).unwrap_or_default());
    if head.0.get(0x202..0x206) == Some(b"HdrS") {
        return recognise_bzimage(head, file);
    }
    if head.0.starts_with(b"\x7fELF") {
        return recognise_elf(head, file);
    }
    if head.0.starts_with(b"MZ") {
        return Err(KernelError::Efi);
    }
    const COMPRESSIONS: [(&[u8], &str); 8] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"\x5d\0\0", "lzma"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x04\x22\x4d\x18", "lz4"),
        (b"\x89LZO\0", "lzop"),
    ];
    let compression = COMPRESSIONS.iter().find(|(magic, _)| head.0.starts_with(magic));
    Err(compression.map_or(KernelError::Unknown, |(_, name)| KernelError::Compressed(name)))
}

fn recognise_bzimage(head: Head, file: &File) -> Result<Kind, KernelError> {
    if head.0.len() < HEAD {
        return Err(KernelError::Short { len: head.0.len() as u64, need: HEAD as u64 });
    }
    let version = head.u16(0x206)?;
    if version < PROTOCOL_INIT_SIZE {
        return Err(KernelError::Protocol(version));
    }
    if version < PROTOCOL_XLOADFLAGS || head.u16(0x236)? & XLF_KERNEL_64 == 0 {
        return Err(KernelError::Bits32);
    }
    check_bzimage_length(head, file)?;
    Ok(Kind::BzImage(Preferred { address: head.u64(0x258)?, init_size: u64::from(head.u32(0x260)?) }))
}

/// Compares the file with `setup_sects` and `syssize`: a kernel that lacks its end unpacks itself into a triple fault.
fn check_bzimage_length(head: Head, file: &File) -> Result<(), KernelError> {
    const SECTOR: u64 = 512;
    const PARAGRAPH: u64 = 16;
    // For historical reasons 0 is 4.
    let setup_sectors = match head.bytes::<1>(0x1f1)? {
        [0] => 4,
        [sectors] => u64::from(sectors),
    };
    let loaded = (u64::from(head.u32(0x1f4)?) * PARAGRAPH).max(ENTRY_64 + 1);
    check_length(file, (setup_sectors + 1) * SECTOR + loaded)
}

fn check_length(file: &File, need: u64) -> Result<(), KernelError> {
    let len = file.metadata().map_err(KernelError::Read)?.len();
    if len < need { Err(KernelError::Short { len, need }) } else { Ok(()) }
}

fn recognise_elf(head: Head, file: &File) -> Result<Kind, KernelError> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const EXECUTABLES: [u16; 2] = [2, 3];
    const X86_64: u16 = 62;
    const I386: u16 = 3;
    let (class, endian) = (head.0.get(4).copied(), head.0.get(5).copied());
    let machine = head.u16(18)?;
    if endian != Some(LITTLE_ENDIAN) {
        return Err(KernelError::Machine(machine.swap_bytes()));
    }
    if machine == I386 || (machine == X86_64 && class != Some(CLASS_64)) {
        return Err(KernelError::Bits32);
    }
    if machine != X86_64 {
        return Err(KernelError::Machine(machine));
    }
    let kind = head.u16(16)?;
    if !EXECUTABLES.contains(&kind) {
        return Err(KernelError::ElfType(kind));
    }
    elf_extent(head, file).map(Kind::Elf)
}

/// Reads the program headers, whose sizes tell what memory the kernel needs before it is loaded.
fn elf_extent(head: Head, file: &File) -> Result<Extent, KernelError> {
    const HEADER: usize = 56;
    const LOAD: u32 = 1;
    const NOTE: u32 = 4;
    let (offset, entry_size, count) = (head.u64(32)?, head.u16(54)?, head.u16(56)?);
    if usize::from(entry_size) != HEADER {
        return Err(KernelError::Headers);
    }
    let mut table = vec![0; HEADER * usize::from(count)];
    check_length(file, offset.checked_add(table.len() as u64).ok_or(KernelError::Headers)?)?;
    file.read_exact_at(&mut table, offset).map_err(KernelError::Read)?;
    let mut extent = Extent { start: u64::MAX, end: 0 };
    for header in table.chunks_exact(HEADER).map(Head) {
        let (address, in_file, size) = (header.u64(24)?, header.u64(32)?, header.u64(40)?);
        let kind = header.u32(0)?;
        if matches!(kind, LOAD | NOTE) {
            check_length(file, header.u64(8)?.checked_add(in_file).ok_or(KernelError::Headers)?)?;
        }
        if kind != LOAD {
            continue;
        }
        // The loader would put bytes where no room was looked for.
        if in_file > size {
            return Err(KernelError::Headers);
        }
        if size > 0 {
            extent.start = extent.start.min(address);
            extent.end = extent.end.max(address.checked_add(size).ok_or(KernelError::Headers)?);
        }
    }
    if extent.end == 0 {
        return Err(KernelError::Headers);
    }
    Ok(extent)
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, len as u64)? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}

/// Little-endian fields at fixed offsets of a file's or table entry's bytes.
#[derive(Clone, Copy)]
struct Head<'a>(&'a [u8]);

impl Head<'_> {
    fn bytes<const N: usize>(self, at: usize) -> Result<[u8; N], KernelError> {
        self.0.get(at..).and_then(|rest| rest.first_chunk().copied()).ok_or(KernelError::Unknown)
    }

    fn u16(self, at: usize) -> Result<u16, KernelError> {
        self.bytes(at).map(u16::from_le_bytes)
    }

    fn u32(self, at: usize) -> Result<u32, KernelError> {
        self.bytes(at).map(u32::from_le_bytes)
    }

    fn u64(self, at: usize) -> Result<u64, KernelError> {
        self.bytes(at).map(u64::from_le_bytes)
    }
}

#[cfg(test)]
#[path = "kernel_tests.rs"]
mod tests;
