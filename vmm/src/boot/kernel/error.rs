//! Why a file is no kernel for this machine, in words for whoever named it.

use std::io;

use thiserror::Error;

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
        "it is an ELF file, but no executable (type {0}): use the vmlinux itself, not an object or a core \
         dump"
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
        "it needs {0} bytes of memory below 3 GiB, where no guest has more than 3 GiB: it is damaged, or \
         built for another place"
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
