//! What each vring's worker is doing, where another process can read it after this one has died.
//!
//! A chain that kills the process that serves it would kill the next one too. So a worker notes, before it looks at a
//! chain, at which index of the available ring that is: one store a chain. Whoever starts the next process finds the
//! note, and has the chain left out that did so twice.
#![expect(unsafe_code, reason = "memory that a supervisor shares with the processes it starts")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use vm_memory::MmapRegion;
use vm_memory::mmap::MmapRegionError;

/// A note: bit 0 whether a chain is being served, bits 16 to 31 its index, from bit 32 how many were served before it.
const SERVING: u64 = 1;

/// Notes that a journal has: 127 pairs, a control queue, and one for the requests of the front-end.
pub const NOTES: usize = 256;
/// The note for requests, beside those for vrings.
pub const REQUESTS: usize = NOTES - 1;

/// One note for each vring, in memory that is shared with forked processes.
#[derive(Clone, Debug)]
pub struct Journal {
    memory: Arc<MmapRegion>,
}

impl Journal {
    /// Empty notes.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub fn new() -> Result<Journal, MmapRegionError> {
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        let bytes = (NOTES * size_of::<u64>()).next_multiple_of(4096);
        let memory = MmapRegion::build(None, bytes, protection, flags)?;
        Ok(Journal { memory: Arc::new(memory) })
    }

    /// The note of vring `vring`.
    ///
    /// # Panics
    ///
    /// When it is not less than [`NOTES`].
    pub fn note(&self, vring: usize) -> Note {
        assert!(vring < NOTES, "no vring {vring}");
        Note { journal: self.clone(), vring, served: 0 }
    }

    fn word(&self, vring: usize) -> &AtomicU64 {
        // SAFETY: vring < NOTES (checked by `note`), the mapping has a word for each, aligned because it begins at a page,
        // and lives as long as `self`. All processes access it atomically.
        unsafe { AtomicU64::from_ptr(self.memory.as_ptr().cast::<u64>().add(vring)) }
    }

    /// The chains that were being served: vring, index, and how many the vring's worker had served before. Clears the
    /// notes for the next process. Called while there is none.
    pub fn take(&self) -> Vec<(usize, u16, u32)> {
        let words = (0..NOTES).map(|vring| (vring, self.word(vring).swap(0, Relaxed)));
        words
            .filter(|(_, word)| word & SERVING != 0)
            .map(|(vring, word)| (vring, (word >> 16) as u16, (word >> 32) as u32))
            .collect()
    }
}

/// Where the worker of one vring notes what it does.
#[derive(Debug)]
pub struct Note {
    journal: Journal,
    vring: usize,
    served: u32,
}

impl Note {
    /// The chain at `index` of the available ring is looked at from here on.
    #[inline]
    pub fn serving(&mut self, index: u16) {
        let word = u64::from(self.served) << 32 | u64::from(index) << 16 | SERVING;
        self.journal.word(self.vring).store(word, Relaxed);
        self.served = self.served.saturating_add(1);
    }

    /// No chain is looked at.
    #[inline]
    pub fn idle(&self) {
        self.journal.word(self.vring).store(0, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_tell_what_was_served_and_how_far_it_came() {
        let journal = Journal::new().unwrap();
        let (mut rx, mut tx) = (journal.note(0), journal.note(3));
        rx.serving(7);
        rx.idle();
        tx.serving(65535);
        tx.serving(0);
        assert_eq!(journal.take(), [(3, 0, 1)]);
        assert_eq!(journal.take(), []);
    }
}
