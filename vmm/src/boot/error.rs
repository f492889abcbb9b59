//! Why a guest cannot be made ready to boot, in words for whoever started it.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::boot::kernel::error::KernelError;

/// Why a guest cannot be made ready to boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel.
    #[error("kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KernelError,
    },
    /// The initramfs cannot be read.
    #[error("initramfs {} cannot be read", path.display())]
    Initramfs {
        /// The file.
        path: PathBuf,
        /// From the system.
        #[source]
        source: io::Error,
    },
    /// Nothing to put into memory.
    #[error("initramfs {} is empty", .0.display())]
    InitramfsEmpty(PathBuf),
    /// No room above the kernel.
    #[error(
        "initramfs {} of {size} bytes does not fit: {free} bytes are free between the kernel and \
         {limit:#x}{}",
        path.display(), if *more { "; raise --mem or make it smaller" }
        else { ", and more memory does not help: make it smaller" }
    )]
    InitramfsSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Room in bytes.
        free: u64,
        /// Where the room ends: the end of RAM below the hole or what the kernel can reach.
        limit: u64,
        /// Whether the end of RAM could be elsewhere.
        more: bool,
    },
    /// More than the kernel takes.
    #[error("the kernel command line has {len} bytes and this kernel takes {max}: shorten it")]
    CmdlineLength {
        /// Its length in bytes, without the NUL.
        len: usize,
        /// The kernel's maximum.
        max: u64,
    },
    /// A byte that would end it.
    #[error("the kernel command line contains a control character at byte {0}: remove it")]
    CmdlineCharacter(usize),
    /// Writing to guest memory.
    #[error("boot data cannot be written to guest memory at {address:#x}")]
    Memory {
        /// Guest physical address.
        address: u64,
        /// From vm-memory.
        #[source]
        source: GuestMemoryError,
    },
}
