//! Notes on the work of each vring's worker, which a supervisor can read after this process has died.
//!
//! A chain that kills the process that serves it would kill the next process, too. So a worker notes the
//! chain's index in the available ring before it looks at the chain. That costs one store for each chain. The
//! supervisor finds the note, and makes the next process leave out a chain that killed two processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use volt_virtio::chain::ChainError;

use crate::shared_words::{Kind, SharedWords, WordsError};

/// Layout of a note: bit 0 is set while a chain is served, bits 16 to 31 are its index, and bits 32 and up
/// count the chains served before.
const SERVING: u64 = 1;

/// Number of notes: for 127 pairs, a control queue, and the requests of the front-end.
pub const NOTES: usize = 256;
/// Index of the note for requests.
pub const REQUESTS: usize = NOTES - 1;

const KIND: Kind = Kind { magic: *b"voltNOTE", version: 1 };

/// One note for each vring, in memory that forked processes share.
#[derive(Clone, Debug)]
pub struct CrashNotes {
    words: Arc<SharedWords>,
}

impl CrashNotes {
    /// Creates empty notes.
    ///
    /// # Errors
    ///
    /// Fails if there is no memory.
    pub fn new() -> Result<CrashNotes, WordsError> {
        Ok(CrashNotes { words: Arc::new(SharedWords::create("volt-notes", KIND, NOTES)?) })
    }

    /// Returns the note of vring `vring`.
    ///
    /// # Panics
    ///
    /// Panics if `vring` is not less than [`NOTES`].
    pub fn note(&self, vring: usize) -> CrashNote {
        assert!(vring < NOTES, "no vring {vring}");
        CrashNote { notes: self.clone(), vring, served: 0 }
    }

    fn word(&self, vring: usize) -> &AtomicU64 {
        self.words.word(vring)
    }

    /// Returns the chains that were being served: vring, index, and the number of chains that the vring's
    /// worker had served before. Clears the notes for the next process. Call it while no process runs.
    pub fn take(&self) -> Vec<(usize, u16, u32)> {
        let words = (0..NOTES).map(|vring| (vring, self.word(vring).swap(0, Relaxed)));
        words
            .filter(|(_, word)| word & SERVING != 0)
            .map(|(vring, word)| (vring, (word >> 16) as u16, (word >> 32) as u32))
            .collect()
    }
}

/// The note of one vring's worker.
#[derive(Debug)]
pub struct CrashNote {
    notes: CrashNotes,
    vring: usize,
    served: u32,
}

impl CrashNote {
    /// Notes that the worker looks at the chain at `index` of the available ring from now on.
    #[inline]
    pub fn serving(&mut self, index: u16) {
        let word = u64::from(self.served) << 32 | u64::from(index) << 16 | SERVING;
        self.notes.word(self.vring).store(word, Relaxed);
        self.served = self.served.saturating_add(1);
    }

    /// Notes that the worker looks at no chain.
    #[inline]
    pub fn idle(&self) {
        self.notes.word(self.vring).store(0, Relaxed);
    }
}

/// The crash protection of one vring: notes which chain is served, and leaves one out.
#[derive(Debug)]
pub struct Watch {
    note: CrashNote,
    /// Index in the available ring of a chain that has killed two processes.
    deadly: Option<u16>,
}

impl Watch {
    /// Notes that the chain at `index` of the available ring comes next.
    ///
    /// # Errors
    ///
    /// Fails if the worker must not look at that chain.
    #[inline]
    pub fn begin(&mut self, index: u16) -> Result<(), ChainError> {
        self.note.serving(index);
        match self.deadly {
            Some(deadly) if deadly == index => {
                self.deadly = None;
                Err(ChainError::Deadly)
            }
            _ => Ok(()),
        }
    }

    /// Notes that the worker looks at no chain.
    #[inline]
    pub fn idle(&self) {
        self.note.idle();
    }
}

/// The notes of a device, and for each vring the chain to leave out.
#[derive(Debug)]
pub struct Watches {
    notes: CrashNotes,
    deadly: BTreeMap<usize, u16>,
}

impl Watches {
    /// Creates it over the notes of a supervisor.
    pub fn new(notes: CrashNotes, deadly: BTreeMap<usize, u16>) -> Watches {
        Watches { notes, deadly }
    }

    /// Returns the crash protection of vring `vring`, which is about to start. A chain is left out once.
    pub fn of(&mut self, vring: usize) -> Watch {
        Watch { note: self.notes.note(vring), deadly: self.deadly.remove(&vring) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_tell_what_was_served_and_how_far_it_came() {
        let notes = CrashNotes::new().unwrap();
        let (mut rx, mut tx) = (notes.note(0), notes.note(3));
        rx.serving(7);
        rx.idle();
        tx.serving(65535);
        tx.serving(0);
        assert_eq!(notes.take(), [(3, 0, 1)]);
        assert_eq!(notes.take(), []);
    }
}
