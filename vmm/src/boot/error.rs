//! Why a guest cannot be prepared for its boot, in words for the user.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::boot::kernel::error::KernelError;

/// Why a guest cannot be prepared for its boot.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel cannot be used.
    #[error("kernel {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: KernelError,
    },
    /// The initramfs cannot be read.
    #[error("initramfs {} cannot be read", path.display())]
    Initramfs {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        #[source]
        source: io::Error,
    },
    /// The initramfs is empty.
    #[error("initramfs {} is empty", .0.display())]
    InitramfsEmpty(PathBuf),
    /// There is too little room above the kernel.
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
        /// Free bytes.
        free: u64,
        /// End of the room: the end of RAM below the hole, or the end of the kernel's reach.
        limit: u64,
        /// Whether more memory would help.
        more: bool,
    },
    /// The command line is longer than this kernel accepts.
    #[error("the kernel command line has {len} bytes, and this kernel takes {max}: shorten it")]
    CmdlineLength {
        /// Its length in bytes, without the NUL.
        len: usize,
        /// The kernel's maximum.
        max: u64,
    },
    /// The command line contains a character that would end it.
    #[error("the kernel command line contains a control character at byte {0}: remove it")]
    CmdlineCharacter(usize),
    /// Writing to guest memory failed.
    #[error("boot data cannot be written to guest memory at {address:#x}")]
    Memory {
        /// Guest physical address.
        address: u64,
        /// The error of vm-memory.
        #[source]
        source: GuestMemoryError,
    },
}
