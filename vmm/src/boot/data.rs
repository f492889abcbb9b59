//! Shared by the two boot protocols: the entry of the boot vCPU, the place of the initramfs, and writing to
//! guest memory.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::boot::error::BootError;

/// The place of the initramfs in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initramfs {
    /// Guest physical address.
    pub address: u64,
    /// Size in bytes.
    pub size: u64,
}

/// The entry of the boot vCPU.
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
