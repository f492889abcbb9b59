//! Along the descriptors of a chain: read here, judged by [`Chains`], their buffers turned into parts.
#![expect(unsafe_code, reason = "descriptors lie in memory shared with the guest")]

use std::cell::Cell;

use crate::chain::{ChainError, Chains, Descriptor};
use crate::memory::GuestMemory;
use crate::part::{IoPart, read_parts};
use crate::ring::{DESCRIPTOR, Head, Ring};

impl Ring {
    /// The buffer of chain `head` and whether it is device-writable, in the common case: a single descriptor,
    /// not empty, in the region where the last buffer was. Otherwise it takes a [`Ring::walk`].
    #[inline(always)]
    pub fn single(&self, head: Head) -> Option<(IoPart<'_>, bool)> {
        let descriptor = self.descriptor(head.0);
        let Descriptor { addr, len, .. } = descriptor;
        if !descriptor.is_whole_chain() || len == 0 {
            return None;
        }
        self.memory.part(addr, len, self.hint.get()).map(|part| (part, descriptor.is_writable()))
    }

    /// Hands the parts of chain `head` to `take`, with whether they are device-writable, in the chain's
    /// order.
    ///
    /// # Errors
    ///
    /// When the chain is malformed. Some parts may have been taken by then; the head must still be pushed.
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

    /// The same for the table that an indirect descriptor points to.
    fn walk_table<'r>(
        &'r self,
        table: Descriptor,
        mut chains: Chains,
        mut take: impl FnMut(IoPart<'r>, bool),
    ) -> Result<(), ChainError> {
        chains.enter(table)?;
        // At hand for each entry: whatever is written meanwhile, it cannot be these.
        let (memory, hint) = (&*self.memory, self.hint.clone());
        // Looked up once; a table that crosses a border is looked up entry by entry.
        let whole = memory.contiguous(table.addr, table.len, &hint);
        let mut next = Some(0);
        while let Some(number) = next {
            let descriptor = match whole {
                // SAFETY: number < the table's entries (checked by `Chains::next`), all of which are behind
                // the pointer, which is aligned; `memory` keeps them mapped.
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

    /// Copies entry `number` of the indirect table at guest address `table`, whose bytes may be anywhere:
    /// once, as a whole.
    #[cold]
    fn table_entry(&self, table: u64, number: u16) -> Result<Descriptor, ChainError> {
        let offset = u64::from(number) * DESCRIPTOR as u64;
        let unmapped = ChainError::Table { addr: table };
        let addr = table.checked_add(offset).ok_or(unmapped)?;
        let mut parts = [None; DESCRIPTOR];
        let mut count = 0;
        let mapped = self.memory.parts(addr, DESCRIPTOR as u32, &self.hint, |part| {
            // At least a byte each, so 16 bytes are at most 16 parts.
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

    /// Descriptor `number`, which is below the ring's size if it comes from this ring. One that does not is
    /// some other here.
    #[inline]
    fn descriptor(&self, number: u16) -> Descriptor {
        let pointer = self.desc.at::<[u64; 2]>(usize::from(number & self.mask) * DESCRIPTOR);
        // SAFETY: no number is above the mask here, so it is inside the table, which `area` checked whole and
        // aligned.
        unsafe { read_descriptor(pointer) }
    }
}

/// Hands the parts of a descriptor's buffer to `take`.
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

/// Copies a descriptor once, as the driver may change it at any time.
///
/// # Safety
///
/// 16 bytes of mapped memory, aligned to 8.
#[inline(always)]
unsafe fn read_descriptor(pointer: *const [u64; 2]) -> Descriptor {
    // SAFETY: the caller's promise.
    Descriptor::from_words(unsafe { pointer.read_volatile() })
}
