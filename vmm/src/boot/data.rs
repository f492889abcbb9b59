//! What the two boot protocols share: how the boot vCPU starts, where the initramfs is, and writing into
//! guest memory.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::boot::error::BootError;

/// Where the initramfs lies in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// Guest physical address.
    pub address: u64,
    /// In bytes.
    pub size: u64,
}

/// How the boot vCPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Long mode, `boot_params` in RSI.
    Linux64 {
        /// First instruction.
        rip: u64,
    },
    /// Protected mode without paging, `hvm_start_info` in EBX.
    Pvh {
        /// First instruction.
        rip: u64,
    },
}

/// Writes `bytes` of boot data at `address`.
pub(super) fn put(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|source| BootError::Memory { address, source })
}
