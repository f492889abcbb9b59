//! Rings of captured frames. Each has one writer, a worker, and one reader in another process.
//!
//! All rings of a capture share one memfd in equal parts. Positions are in words and never decrease.
//!
//! ```text
//! words  0 HEAD      the writer's: entries before it are complete
//!        1 WRITTEN   the writer's: an entry between HEAD and here may still be marked as dropped
//!        2 LOST      the writer's: frames for which there was no room
//!        8 TAIL      the reader's: entries before it have been read
//!       16 ...       entries
//! entry  0 its words | fate << 32 | 1 for a frame to the guest << 40
//!        1 time: nanoseconds since 1970
//!        2 bytes that follow | bytes of the whole << 32, each with the header of virtio
//!        3 frames lost before it
//!        4 ...       bytes, to a whole word
//! fate   0 passed, 1 to 63 dropped, 64 to 127 refused by a filter, 128 to 191 noted by a filter,
//!          each but the first plus the position of its reason
//! ```
//!
//! The reader may belong to anybody. So the writer keeps its own positions, and treats a ring with an
//! impossible TAIL as full. A frame to the guest is *held* until the next call of the port's queue, when it
//! is certain that it was not dropped. A reader shows a frame that is held for too long, for example while it
//! waits for the guest's buffers.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use thiserror::Error;
use volt_filter::reason::Reason;
use volt_virtio::part::{IoPart, copy_parts};

use crate::counters::{Counter, DropReason};
use crate::shared_words::{Kind, SharedWords, WordsError};

const KIND: Kind = Kind { magic: *b"voltCAPT", version: 1 };

const HEAD: usize = 0;
const WRITTEN: usize = 1;
const LOST: usize = 2;
/// In another cache line than the writer's words.
const TAIL: usize = 8;
const CONTROL: usize = 16;
/// Words of an entry's header.
const ENTRY: usize = 4;
const WORD: usize = size_of::<u64>();
/// Bytes of a ring: some milliseconds of a fast network. With many pairs, all rings share [`MOST`].
const BYTES: usize = 8 << 20;
const MOST: usize = 64 << 20;
/// How long a reader waits for a frame that is held.
const PATIENCE: Duration = Duration::from_millis(50);

/// Creates the memory for so many rings.
pub(super) fn memory(rings: usize) -> Result<SharedWords, WordsError> {
    let bytes = BYTES.min(MOST / rings.max(1));
    SharedWords::create_file("volt-capture", KIND, rings * bytes / WORD)
}

/// A ring in its memory.
#[derive(Debug)]
struct Ring {
    words: Arc<SharedWords>,
    first: usize,
    /// Words for entries.
    len: usize,
}

impl Ring {
    /// Returns ring number `index` of `rings`.
    fn new(words: &Arc<SharedWords>, index: usize, rings: usize) -> Ring {
        let each = words.len() / rings;
        Ring { words: words.clone(), first: index * each, len: each - CONTROL }
    }

    fn control(&self, word: usize) -> &AtomicU64 {
        self.words.word(self.first + word)
    }

    fn offset(&self, position: u64) -> usize {
        (position % self.len as u64) as usize
    }

    fn word(&self, position: u64) -> &AtomicU64 {
        self.words.word(self.first + CONTROL + self.offset(position))
    }

    fn copy(&self, position: u64, parts: &[IoPart<'_>], bytes: usize) {
        let offset = self.offset(position);
        let first = bytes.min((self.len - offset) * WORD);
        for (offset, from, bytes) in [(offset, 0, first), (0, first, bytes - first)] {
            if bytes > 0 {
                copy_parts(parts, from, self.words.part(self.first + CONTROL + offset, bytes));
            }
        }
    }
}

/// A frame to be written.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) is_rx: bool,
    /// Its fate, as [`Fate::code`].
    pub(super) fate: u64,
    /// Nanoseconds since 1970.
    pub(super) time: u64,
    /// Length in bytes, header included.
    pub(super) len: usize,
    /// Maximum number of bytes to write.
    pub(super) snap: usize,
}

/// The writing end, for one thread at a time.
#[derive(Debug)]
pub(crate) struct RingWriter {
    ring: Ring,
    written: AtomicU64,
    /// Start of the held entry, or [`NOTHING`].
    held: AtomicU64,
    /// Code of the fate that a filter has noted for the next frame to the guest.
    noted: AtomicU64,
    frames: Counter,
    lost: Counter,
}

const NOTHING: u64 = u64::MAX;

impl RingWriter {
    /// Creates the writer of ring number `index` of `rings` in `words`.
    pub(super) fn new(words: &Arc<SharedWords>, index: usize, rings: usize) -> RingWriter {
        RingWriter {
            ring: Ring::new(words, index, rings),
            written: AtomicU64::new(0),
            held: AtomicU64::new(NOTHING),
            noted: AtomicU64::new(0),
            frames: Counter::default(),
            lost: Counter::default(),
        }
    }

    pub(super) fn frames(&self) -> u64 {
        self.frames.get()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Writes a frame if there is room.
    pub(super) fn write(&self, entry: &Entry, parts: &[IoPart<'_>]) {
        self.release();
        if self.put(entry, parts) {
            self.ring.control(HEAD).store(self.written.load(Relaxed), Release);
        }
    }

    /// Writes a frame that may still be dropped.
    pub(super) fn hold(&self, entry: &Entry, parts: &[IoPart<'_>]) {
        self.release();
        let at = self.written.load(Relaxed);
        if self.put(entry, parts) {
            self.held.store(at, Relaxed);
        }
    }

    /// Releases the held frame, which was not dropped.
    #[inline]
    pub(super) fn release(&self) {
        if self.held.load(Relaxed) != NOTHING {
            self.held.store(NOTHING, Relaxed);
            self.ring.control(HEAD).store(self.written.load(Relaxed), Release);
        }
    }

    /// Marks the held frame as dropped. Returns whether there is one that nobody has read.
    pub(super) fn mark_held(&self, reason: DropReason) -> bool {
        let held = self.held.load(Relaxed);
        let unread = held != NOTHING && self.ring.control(TAIL).load(Acquire) <= held;
        if unread {
            let word = self.ring.word(held);
            let others = word.load(Relaxed) & !FATE;
            word.store(others | Fate::Dropped(reason).code() << FATE_AT, Relaxed);
        }
        self.release();
        unread
    }

    /// Notes the fate of the frame that is held next.
    pub(super) fn note(&self, fate: Fate) {
        self.noted.store(fate.code(), Relaxed);
    }

    /// Takes the noted fate.
    pub(super) fn take_note(&self) -> Fate {
        let code = self.noted.load(Relaxed);
        self.noted.store(0, Relaxed);
        Fate::of(code)
    }

    fn put(&self, entry: &Entry, parts: &[IoPart<'_>]) -> bool {
        let (at, bytes) = (self.written.load(Relaxed), entry.len.min(entry.snap));
        let words = ENTRY + bytes.div_ceil(WORD);
        // A reader with an impossible position has read nothing.
        let used = at.checked_sub(self.ring.control(TAIL).load(Acquire));
        let room = used.and_then(|used| (self.ring.len as u64).checked_sub(used));
        if room.is_none_or(|room| room < words as u64) {
            self.lost.add(1);
            self.ring.control(LOST).store(self.lost.get(), Relaxed);
            return false;
        }
        let first = words as u64 | entry.fate << FATE_AT | u64::from(entry.is_rx) << 40;
        let lens = bytes as u64 | (entry.len as u64) << 32;
        for (word, value) in (at..).zip([first, entry.time, lens, self.lost.get()]) {
            self.ring.word(word).store(value, Relaxed);
        }
        self.ring.copy(at + ENTRY as u64, parts, bytes);
        self.written.store(at + words as u64, Relaxed);
        self.ring.control(WRITTEN).store(at + words as u64, Release);
        self.frames.add(1);
        true
    }
}

/// The error for a ring with invalid entries.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the daemon's memory of captured frames is invalid")]
pub struct Garbled;

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Whether it was a frame to the guest.
    pub is_rx: bool,
    /// Its fate.
    pub fate: Fate,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Length of the whole frame, header included.
    pub len: usize,
    /// The captured bytes. They begin with the header of [`HEADER_LEN`](crate::port::HEADER_LEN) bytes.
    pub bytes: Vec<u8>,
    /// Number of frames of the ring that were lost immediately before it.
    pub lost: u64,
}

/// The fate of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It was delivered.
    Passed,
    /// It was dropped.
    Dropped(DropReason),
    /// The filter refused it.
    Refused(Reason),
    /// It was delivered, and would be refused by a policy in force.
    Noted(Reason),
    /// It was dropped for a reason that this version does not know.
    DroppedSomehow,
}

/// Where an entry's first word has the fate.
const FATE_AT: u32 = 32;
const FATE: u64 = 0xff << FATE_AT;
/// First codes of fates.
const DROPPED: u64 = 1;
const REFUSED: u64 = 64;
const NOTED: u64 = 128;

impl Fate {
    /// Returns the code in an entry.
    #[inline(always)]
    pub(super) fn code(self) -> u64 {
        match self {
            Fate::Passed => 0,
            Fate::Dropped(reason) => DROPPED + reason as u64,
            Fate::Refused(reason) => REFUSED + reason as u64,
            Fate::Noted(reason) => NOTED + reason as u64,
            Fate::DroppedSomehow => REFUSED - 1,
        }
    }

    /// Returns the fate with this code.
    fn of(code: u64) -> Fate {
        let at = |first: u64| (code - first) as usize;
        let known = match code {
            0 => Some(Fate::Passed),
            DROPPED..REFUSED => DropReason::ALL.get(at(DROPPED)).copied().map(Fate::Dropped),
            REFUSED..NOTED => Reason::at(at(REFUSED)).map(Fate::Refused),
            _ => Reason::at(at(NOTED)).map(Fate::Noted),
        };
        known.unwrap_or(Fate::DroppedSomehow)
    }
}

/// The reading end.
#[derive(Debug)]
pub struct RingReader {
    ring: Ring,
    tail: u64,
    /// Number of frames lost before the last one.
    lost: u64,
    /// The end of the held entry, and the time since it is held.
    held: Option<(u64, Instant)>,
}

/// Opens readers for so many rings in the memory of a [`Capture`](super::Capture).
///
/// # Errors
///
/// Fails if the memory contains something else.
pub fn readers(memory: OwnedFd, rings: usize) -> Result<Vec<RingReader>, WordsError> {
    let words = Arc::new(SharedWords::open(memory, KIND)?);
    if words.len().checked_div(rings).is_none_or(|each| each <= CONTROL) {
        return Err(WordsError::Other("its length"));
    }
    let reader = |index| RingReader { ring: Ring::new(&words, index, rings), tail: 0, lost: 0, held: None };
    Ok((0..rings).map(reader).collect())
}

impl RingReader {
    /// Returns the time of the next frame, if there is one. A held frame counts only if `last`.
    pub fn next_time(&mut self, last: bool) -> Option<u64> {
        (self.tail != self.end(last)).then(|| self.ring.word(self.tail + 1).load(Relaxed))
    }

    /// Returns the end of the entries that can be read.
    fn end(&mut self, last: bool) -> u64 {
        let head = self.ring.control(HEAD).load(Acquire);
        if head > self.tail {
            self.held = None;
            return head;
        }
        let written = self.ring.control(WRITTEN).load(Acquire);
        match self.held {
            _ if written <= self.tail => self.tail,
            _ if last => written,
            Some((end, since)) if end == written && since.elapsed() >= PATIENCE => written,
            Some((end, _)) if end == written => self.tail,
            _ => {
                self.held = Some((written, Instant::now()));
                self.tail
            }
        }
    }

    /// Takes the next frame. [`RingReader::next_time`] must have returned its time.
    ///
    /// # Errors
    ///
    /// Fails if its entry is invalid.
    pub fn take(&mut self) -> Result<Captured, Garbled> {
        let word = |number: u64| self.ring.word(self.tail + number).load(Relaxed);
        let (first, time, lens, lost) = (word(0), word(1), word(2), word(3));
        let (words, bytes) = ((first & 0xffff_ffff) as usize, (lens & 0xffff_ffff) as usize);
        let written = self.ring.control(WRITTEN).load(Acquire).saturating_sub(self.tail);
        if words > self.ring.len || words as u64 > written || words != ENTRY + bytes.div_ceil(WORD) {
            return Err(Garbled);
        }
        let content = (ENTRY..words).flat_map(|number| word(number as u64).to_ne_bytes());
        let captured = Captured {
            is_rx: first >> 40 & 1 != 0,
            fate: Fate::of((first & FATE) >> FATE_AT),
            time,
            len: (lens >> 32) as usize,
            bytes: content.take(bytes).collect(),
            lost: lost.saturating_sub(self.lost),
        };
        self.lost = lost;
        self.tail += words as u64;
        self.ring.control(TAIL).store(self.tail, Release);
        Ok(captured)
    }

    /// Returns the number of frames for which there was no room so far.
    pub fn lost(&self) -> u64 {
        self.ring.control(LOST).load(Relaxed)
    }
}

#[cfg(test)]
mod tests;
