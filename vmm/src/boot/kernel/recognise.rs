//! Recognizes the kind of kernel by its contents, and the memory that it needs.
//!
//! No file is trusted: headers are checked against the file's length before anything is loaded.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::boot::kernel::error::KernelError;

/// Offset of the 64-bit entry point in the part of a bzImage that is loaded (Linux boot protocol).
pub(super) const ENTRY_64: u64 = 0x200;
/// `XLF_KERNEL_64` in `xloadflags`: there is a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1;
/// First boot protocol with `pref_address` and `init_size`.
const PROTOCOL_INIT_SIZE: u16 = 0x020a;
/// First boot protocol with `xloadflags`.
const PROTOCOL_XLOADFLAGS: u16 = 0x020c;
/// Bytes at the start of a file that show its kind.
const HEAD: usize = 0x290;

/// The kind of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Compressed, with the Linux boot header.
    BzImage(Preferred),
    /// Uncompressed ELF file.
    Elf(Extent),
}

/// The memory in which a bzImage unpacks itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Preferred {
    pub(super) address: u64,
    pub(super) init_size: u64,
}

/// The memory of an ELF file's loadable segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// Recognizes the kind of `file`.
///
/// # Errors
///
/// Fails if it is not a 64-bit x86 kernel, or a part of it is missing.
pub(super) fn recognise(file: &File) -> Result<Kind, KernelError> {
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

/// Compares the file's length with `setup_sects` and `syssize`. A kernel whose end is missing would unpack
/// itself into a triple fault.
fn check_bzimage_length(head: Head, file: &File) -> Result<(), KernelError> {
    const SECTOR: u64 = 512;
    const PARAGRAPH: u64 = 16;
    // For historical reasons, 0 means 4.
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

/// Reads the program headers, whose sizes give the memory that the kernel needs.
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
        // The loader would write bytes outside of the checked memory.
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

/// Little-endian fields at fixed offsets of a file's or a table entry's bytes.
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
