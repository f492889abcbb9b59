//! The walk along a chain: reads its descriptors, lets [`Chains`] check them, and turns their buffers into
//! parts.
#![expect(unsafe_code, reason = "descriptors lie in memory shared with the guest")]

use std::cell::Cell;

use crate::chain::{ChainError, Chains, Descriptor};
use crate::memory::GuestMemory;
use crate::part::{IoPart, read_parts};
use crate::ring::{DESCRIPTOR, Head, Ring};

impl Ring {
    /// Returns the buffer of chain `head`, and whether it is device-writable, in the common case: a single
    /// descriptor, not empty, in the region of the last buffer. Otherwise use [`Ring::walk`].
    #[inline(always)]
    pub fn single(&self, head: Head) -> Option<(IoPart<'_>, bool)> {
        let descriptor = self.descriptor(head.0);
        let Descriptor { addr, len, .. } = descriptor;
        if !descriptor.is_whole_chain() || len == 0 {
            return None;
        }
        self.memory.part(addr, len, self.hint.get()).map(|part| (part, descriptor.is_writable()))
    }

    /// Passes the parts of chain `head` to `take`, in the chain's order, with whether they are
    /// device-writable.
    ///
    /// # Errors
    ///
    /// Fails if the chain is malformed. `take` may have got some parts then. The head must still be pushed.
    #[inline]
    pub fn walk<'r>(&'r self, head: Head, mut take: impl FnMut(IoPart<'r>, bool)) -> Result<(), ChainError> {
        let (mut number, mut descriptor) = (head.0, self.descriptor(head.0));
        let mut chains = Chains::new(self.size(), self.indirect);
        loop {
            if let Some(table) = chains.follow(number, descriptor)? {
                return self.walk_table(table, chains, take);
            }
            let next = chains.next(descriptor)?;
            buffer(&self.memory, &self.hint, descriptor, &mut take)?;
            let Some(next) = next else { return Ok(()) };
            (number, descriptor) = (next, self.descriptor(next));
        }
    }

    /// Like [`Ring::walk`], for the table of an indirect descriptor.
    fn walk_table<'r>(
        &'r self,
        table: Descriptor,
        mut chains: Chains,
        mut take: impl FnMut(IoPart<'r>, bool),
    ) -> Result<(), ChainError> {
        chains.enter(table)?;
        // Local copies: writes to guest memory cannot change them, so they need not be reloaded.
        let (memory, hint) = (&*self.memory, self.hint.clone());
        // Translated once. In a table that crosses a border, each entry is translated.
        let whole = memory.contiguous(table.addr, table.len, &hint);
        let mut next = Some(0);
        while let Some(number) = next {
            let descriptor = match whole {
                // SAFETY: number < the table's entries (checked by `Chains::next`). All of them follow the
                // pointer, which is aligned. `memory` keeps them mapped.
                Some(entries) => unsafe { read_descriptor(entries.add(usize::from(number))) },
                None => self.table_entry(table.addr, number)?,
            };
            chains.follow(number, descriptor)?;
            next = chains.next(descriptor)?;
            buffer(memory, &hint, descriptor, &mut take)?;
        }
        self.hint.set(hint.get());
        Ok(())
    }

    /// Copies entry `number` of the indirect table at guest address `table` once, as a whole. Its bytes may
    /// be in several regions.
    #[cold]
    fn table_entry(&self, table: u64, number: u16) -> Result<Descriptor, ChainError> {
        let offset = u64::from(number) * DESCRIPTOR as u64;
        let unmapped = ChainError::Table { addr: table };
        let addr = table.checked_add(offset).ok_or(unmapped)?;
        let mut parts = [None; DESCRIPTOR];
        let mut count = 0;
        let mapped = self.memory.parts(addr, DESCRIPTOR as u32, &self.hint, |part| {
            // Each has at least one byte, so 16 bytes are at most 16 parts.
            parts[count] = Some(part);
            count += 1;
        });
        if !mapped {
            return Err(unmapped);
        }
        let mut bytes = [0; DESCRIPTOR];
        let mut done = 0;
        for part in parts.iter().flatten() {
            done += read_parts(&[*part], &mut bytes[done..]);
        }
        let (addr, rest) = bytes.split_at(8);
        Ok(Descriptor::from_words([addr, rest].map(|word| word.try_into().map_or(0, u64::from_ne_bytes))))
    }

    /// Returns descriptor `number`. A number of this ring is below its size. Any other number gives some
    /// other descriptor.
    #[inline]
    fn descriptor(&self, number: u16) -> Descriptor {
        let pointer = self.desc.at::<[u64; 2]>(usize::from(number & self.mask) * DESCRIPTOR);
        // SAFETY: the number is masked, so it is inside the table. `area` checked all of the table and its
        // alignment.
        unsafe { read_descriptor(pointer) }
    }
}

/// Passes the parts of a descriptor's buffer to `take`.
#[inline]
fn buffer<'r>(
    memory: &'r GuestMemory,
    hint: &Cell<usize>,
    descriptor: Descriptor,
    take: &mut impl FnMut(IoPart<'r>, bool),
) -> Result<(), ChainError> {
    let Descriptor { addr, len, .. } = descriptor;
    let writable = descriptor.is_writable();
    let mapped = memory.parts(addr, len, hint, |part| take(part, writable));
    if mapped { Ok(()) } else { Err(ChainError::Unmapped { addr, len }) }
}

/// Copies a descriptor once: the driver may change it at any time.
///
/// # Safety
///
/// `pointer` must point to 16 bytes of mapped memory, aligned to 8.
#[inline(always)]
unsafe fn read_descriptor(pointer: *const [u64; 2]) -> Descriptor {
    // SAFETY: the caller guarantees it.
    Descriptor::from_words(unsafe { pointer.read_volatile() })
}
