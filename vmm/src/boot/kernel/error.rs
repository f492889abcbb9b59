//! Why a file cannot be used as a kernel, in words for the user.

use std::io;

use thiserror::Error;

/// Why a file cannot be used as a kernel.
#[derive(Debug, Error)]
pub enum KernelError {
    /// It cannot be opened or read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is a directory, a device or the like.
    #[error("it is not a regular file")]
    NotAFile,
    /// Its kind is unknown.
    #[error("it is not a Linux kernel: neither a bzImage nor an ELF file (is it empty, foreign or damaged?)")]
    Unknown,
    /// The whole file is compressed.
    #[error("it is compressed with {0}: use a bzImage as it is, and decompress a vmlinux first")]
    Compressed(&'static str),
    /// It is an EFI program.
    #[error(
        "it is an EFI program without the Linux boot header: use the bzImage (vmlinuz) that it was made \
             from"
    )]
    Efi,
    /// It is for a 32-bit processor.
    #[error("it is a 32-bit kernel: use one for x86-64")]
    Bits32,
    /// It is for another architecture.
    #[error("it is an ELF file for another processor (machine {0}): use a kernel for x86-64")]
    Machine(u16),
    /// It is not an executable.
    #[error(
        "it is an ELF file, but not an executable (type {0}): use the vmlinux itself, not an object or a \
         core dump"
    )]
    ElfType(u16),
    /// It is a zImage, or older than 2010.
    #[error("its boot protocol {}.{:02} is too old: 2.12 is needed", .0 >> 8, .0 & 0xff)]
    Protocol(u16),
    /// It has no PVH entry point.
    #[error(
        "it is a vmlinux without a PVH entry point: use the bzImage, or a kernel built with CONFIG_PVH=y"
    )]
    NoPvh,
    /// A program header is invalid.
    #[error("its program headers are damaged")]
    Headers,
    /// A part of it is missing.
    #[error(
        "it is cut short: the file has {len} bytes, and its headers need {need}; fetch or build it again"
    )]
    Short {
        /// Length of the file in bytes.
        len: u64,
        /// Least length in bytes.
        need: u64,
    },
    /// It needs more memory than the guest has.
    #[error("it needs {need} bytes of memory below 3 GiB, and the guest has {have}: raise --mem")]
    TooLittleMemory {
        /// End of the memory that it needs.
        need: u64,
        /// Memory of the guest in bytes.
        have: u64,
    },
    /// It needs more memory than a guest can have.
    #[error(
        "it needs {0} bytes of memory below 3 GiB, where a guest has at most 3 GiB: it is damaged, or \
         built for another place"
    )]
    TooHigh(u64),
    /// It is loaded below 1 MiB.
    #[error("its load address {0:#x} is below 1 MiB, where the boot data is")]
    Low(u64),
    /// Its entry point is outside of its contents.
    #[error("its first instruction is at {0:#x}, outside of its contents: it is damaged")]
    Entry(u64),
    /// An error of the loader.
    #[error("it cannot be loaded")]
    Load(#[source] linux_loader::loader::Error),
}
