//! A descriptor chain, read once from its ring and checked completely (virtio 1.2, 2.7.5).

use std::ops::Deref;

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice};

/// Why a chain is not a request.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// The chain is a loop, leaves its table, has a bad indirect table, or exceeds 4 GiB.
    #[error("descriptor chain without an end after {0} descriptors")]
    Endless(usize),
    /// 2.7.4.2: device-readable descriptors come before device-writable ones.
    #[error("device-readable descriptor after a device-writable one")]
    Order,
    /// A buffer is not in guest memory.
    #[error("buffer of {len} bytes at {address:#x} is outside of guest memory")]
    Outside {
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
}

/// The two halves of a request.
pub struct Chain<'m> {
    /// Data from the driver.
    pub readable: Buffers<'m>,
    /// Buffers for the device's data.
    pub writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// Reads each descriptor of `descriptors` once, and looks up its buffer in `memory`.
    ///
    /// # Errors
    ///
    /// Fails if one descriptor is bad. Nothing of such a chain is served.
    pub fn read<M>(
        descriptors: DescriptorChain<M>,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Chain<'m>, ChainError>
    where
        M: Deref,
        M::Target: GuestMemory,
    {
        let mut chain = Chain { readable: Buffers::default(), writable: Buffers::default() };
        // The iterator ends in the same way after the last descriptor and at a bad one. Only the last one has
        // no NEXT flag.
        let mut more = true;
        let mut count = 0;
        for descriptor in descriptors {
            more = descriptor.has_next();
            count += 1;
            let half = if descriptor.is_write_only() {
                &mut chain.writable
            } else if chain.writable.slices.is_empty() {
                &mut chain.readable
            } else {
                return Err(ChainError::Order);
            };
            half.add(memory, descriptor.addr(), descriptor.len())?;
        }
        if more { Err(ChainError::Endless(count)) } else { Ok(chain) }
    }
}

/// Pieces of guest memory, in order. The guest may change their contents at any time.
#[derive(Clone, Default)]
pub struct Buffers<'m> {
    slices: Vec<VolatileSlice<'m>>,
    len: usize,
}

impl<'m> Buffers<'m> {
    fn add(
        &mut self,
        memory: &'m GuestMemoryMmap,
        address: GuestAddress,
        len: u32,
    ) -> Result<(), ChainError> {
        let outside = || ChainError::Outside { address: address.0, len };
        // A buffer that crosses memory regions has several slices.
        let slices =
            memory.get_slices(address, len as usize, Permissions::ReadWrite).map_err(|_| outside())?;
        for slice in slices {
            let slice = slice.map_err(|_| outside())?;
            self.len += slice.len();
            self.slices.push(slice);
        }
        Ok(())
    }

    /// Returns the number of bytes in all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the pieces. None of them is empty.
    pub fn slices(&self) -> &[VolatileSlice<'m>] {
        &self.slices
    }

    /// Returns the first `at` bytes and the rest. Returns `None` if there are fewer.
    pub fn split_at(&self, at: usize) -> Option<(Buffers<'m>, Buffers<'m>)> {
        let mut halves = (Buffers::default(), Buffers::default());
        let mut wanted = at;
        for slice in &self.slices {
            let here = wanted.min(slice.len());
            wanted -= here;
            let (head, tail) = slice.split_at(here).ok()?;
            halves.0.push(head);
            halves.1.push(tail);
        }
        (wanted == 0).then_some(halves)
    }

    fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.len += slice.len();
            self.slices.push(slice);
        }
    }

    /// Copies bytes from the start into `bytes`, as many as both have. Returns their number.
    pub fn copy_to(&self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.read(&mut bytes[done..], 0).unwrap_or(0);
        }
        done
    }

    /// Copies `bytes` to the start, as many as fit. Returns their number.
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.slices {
            done += slice.write(&bytes[done..], 0).unwrap_or(0);
        }
        done
    }
}
