//! What each vring's worker is doing, where a supervisor can read it after this process has died.
//!
//! A chain that kills the process that serves it would kill the next one too. So a worker notes, before it
//! looks at a chain, at which index of the available ring that is: one store a chain. Whoever starts the next
//! process finds the note, and has the chain left out that did so twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use volt_virtio::chain::ChainError;

use crate::shared_words::{Kind, SharedWords, WordsError};

/// A note: bit 0 whether a chain is being served, bits 16 to 31 its index, from bit 32 how many were served
/// before it.
const SERVING: u64 = 1;

/// How many there are: for 127 pairs, a control queue, and the requests of the front-end.
pub const NOTES: usize = 256;
/// The note for requests, beside those for vrings.
pub const REQUESTS: usize = NOTES - 1;

const KIND: Kind = Kind { magic: *b"voltNOTE", version: 1 };

/// One note for each vring, in memory that is shared with forked processes.
#[derive(Clone, Debug)]
pub struct CrashNotes {
    words: Arc<SharedWords>,
}

impl CrashNotes {
    /// Empty notes.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub fn new() -> Result<CrashNotes, WordsError> {
        Ok(CrashNotes { words: Arc::new(SharedWords::create("volt-notes", KIND, NOTES)?) })
    }

    /// The note of vring `vring`.
    ///
    /// # Panics
    ///
    /// When it is not less than [`NOTES`].
    pub fn note(&self, vring: usize) -> CrashNote {
        assert!(vring < NOTES, "no vring {vring}");
        CrashNote { notes: self.clone(), vring, served: 0 }
    }

    fn word(&self, vring: usize) -> &AtomicU64 {
        self.words.word(vring)
    }

    /// The chains that were being served: vring, index, and how many the vring's worker had served before.
    /// Clears the notes for the next process. Called while there is none.
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
pub struct CrashNote {
    notes: CrashNotes,
    vring: usize,
    served: u32,
}

impl CrashNote {
    /// The chain at `index` of the available ring is looked at from here on.
    #[inline]
    pub fn serving(&mut self, index: u16) {
        let word = u64::from(self.served) << 32 | u64::from(index) << 16 | SERVING;
        self.notes.word(self.vring).store(word, Relaxed);
        self.served = self.served.saturating_add(1);
    }

    /// No chain is looked at.
    #[inline]
    pub fn idle(&self) {
        self.notes.word(self.vring).store(0, Relaxed);
    }
}

/// What a supervisor's process does with one vring: notes which chain it serves, and leaves one out.
#[derive(Debug)]
pub struct Watch {
    note: CrashNote,
    /// Index in the available ring of a chain that has ended two processes.
    deadly: Option<u16>,
}

impl Watch {
    /// The chain at `index` of the available ring comes next.
    ///
    /// # Errors
    ///
    /// When it must not be looked at.
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

    /// No chain is looked at.
    #[inline]
    pub fn idle(&self) {
        self.note.idle();
    }
}

/// The notes of a device, and the chains that its vrings are to leave out, by vring.
#[derive(Debug)]
pub struct Watches {
    notes: CrashNotes,
    deadly: BTreeMap<usize, u16>,
}

impl Watches {
    /// Over a supervisor's notes.
    pub fn new(notes: CrashNotes, deadly: BTreeMap<usize, u16>) -> Watches {
        Watches { notes, deadly }
    }

    /// What vring `vring`, which is about to start, does with it. A chain is left out once.
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
