//! The memory of a queue to a peer: frames on their way, and notes for a process that continues after this
//! one died.
//!
//! ```text
//! outbox   frames of the guest that the socket has not taken, each behind its length
//! inbox    bytes of a stream that the guest has not got
//! note     whether a call is under way that moves an unknown number of a stream's bytes
//! ```
//!
//! Only the pair's thread uses it, and later its successor. Each range is one word, so that whoever reads it
//! sees it before or after a step and never between. A process that dies between a call and the word after it
//! leaves the note: nobody knows then at which byte the stream is.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use volt_virtio::part::{IoPart, copy_out, copy_parts, write_parts};

use crate::port::{HEADER_LEN, MAX_FRAME_LEN};
use crate::shared_words::{Kind, SharedWords, WordsError};
use crate::state::FdId;

/// Bytes of the length before each frame.
pub(super) const PREFIX: usize = 4;
/// Longest frame on the wire.
pub(super) const LONGEST: usize = MAX_FRAME_LEN - HEADER_LEN;
/// Bytes of the outbox: more than the segments of any frame.
pub(super) const OUTBOX: usize = 512 << 10;
/// Bytes of the inbox: at least three of the longest frames, so that a rest can move to the start without
/// overlap.
const INBOX: usize = 256 << 10;
const _: () = assert!(INBOX >= 3 * (PREFIX + LONGEST));

const WORD: usize = size_of::<u64>();
/// Word numbers.
const OUT: usize = 0;
const IN: usize = 1;
const NOTE: usize = 2;
const OUTBOX_AT: usize = 8;
const INBOX_AT: usize = OUTBOX_AT + OUTBOX / WORD;
const WORDS: usize = INBOX_AT + INBOX / WORD;

/// A call is under way.
const UNDER_WAY: u64 = 1;
/// The connection is not usable, now and later.
const BROKEN: u64 = 2;

const KIND: Kind = Kind { magic: *b"voltPEER", version: 1 };

/// A range of bytes in one of the boxes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: usize,
    pub(super) to: usize,
}

impl Span {
    pub(super) fn len(self) -> usize {
        self.to - self.from
    }

    pub(super) fn is_empty(self) -> bool {
        self.from == self.to
    }

    /// Returns the span without its first `count` bytes. An empty one begins at the start of its box again.
    pub(super) fn without(self, count: usize) -> Span {
        let from = self.from + count;
        if from == self.to { Span::default() } else { Span { from, ..self } }
    }

    fn word(self) -> u64 {
        (self.from as u64) << 32 | self.to as u64
    }

    /// Reads a span of a box of `size` bytes. Anything else than a span is empty.
    fn of(word: u64, size: usize) -> Span {
        let (from, to) = ((word >> 32) as usize, (word & u64::from(u32::MAX)) as usize);
        if from <= to && to <= size { Span { from, to } } else { Span::default() }
    }
}

/// Outbox, inbox and note.
#[derive(Debug)]
pub(super) struct PeerMemory {
    id: FdId,
    words: SharedWords,
}

impl PeerMemory {
    /// Creates empty boxes.
    pub(super) fn new() -> Result<PeerMemory, WordsError> {
        Ok(PeerMemory { id: FdId::fresh(), words: SharedWords::create("volt-peer", KIND, WORDS)? })
    }

    /// Opens the boxes of another process, which may still use them.
    pub(super) fn open(id: FdId, memory: OwnedFd) -> Result<PeerMemory, WordsError> {
        let words = SharedWords::open(memory, KIND)?;
        if words.len() != WORDS {
            return Err(WordsError::Other("its length"));
        }
        Ok(PeerMemory { id, words })
    }

    pub(super) fn id(&self) -> FdId {
        self.id
    }

    /// Returns the memory, for another process; `None` if no other process can map it.
    pub(super) fn file(&self) -> Option<&File> {
        self.words.file()
    }

    /// Whether the connection is not usable.
    #[inline]
    pub(super) fn is_broken(&self) -> bool {
        self.words.word(NOTE).load(Relaxed) & BROKEN != 0
    }

    /// Notes that the connection is not usable. Returns whether it was.
    pub(super) fn set_broken(&self) -> bool {
        self.words.word(NOTE).swap(BROKEN, Relaxed) & BROKEN == 0
    }

    /// Whether a process died while a call was under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.words.word(NOTE).load(Relaxed) & UNDER_WAY != 0
    }

    /// Makes a call that moves bytes of the stream, and records by `moved` how many.
    #[inline]
    pub(super) fn under_way<T>(&self, call: impl FnOnce() -> T, moved: impl FnOnce(&T)) -> T {
        let note = self.words.word(NOTE);
        note.store(UNDER_WAY, Release);
        let result = call();
        moved(&result);
        note.store(0, Release);
        result
    }

    #[inline]
    pub(super) fn outbox(&self) -> Span {
        Span::of(self.words.word(OUT).load(Acquire), OUTBOX)
    }

    #[inline]
    pub(super) fn set_outbox(&self, span: Span) {
        self.words.word(OUT).store(span.word(), Release);
    }

    #[inline]
    pub(super) fn inbox(&self) -> Span {
        Span::of(self.words.word(IN).load(Acquire), INBOX)
    }

    #[inline]
    pub(super) fn set_inbox(&self, span: Span) {
        self.words.word(IN).store(span.word(), Release);
    }

    /// Returns `len` bytes of the outbox, 1 or more.
    #[inline]
    pub(super) fn outgoing(&self, at: usize, len: usize) -> IoPart<'_> {
        self.bytes(OUTBOX_AT, OUTBOX, at, len)
    }

    /// Returns `len` bytes of the inbox, 1 or more.
    #[inline]
    pub(super) fn incoming(&self, at: usize, len: usize) -> IoPart<'_> {
        self.bytes(INBOX_AT, INBOX, at, len)
    }

    /// Returns the free bytes at the end of the inbox, as far as `span` leaves them.
    pub(super) fn room_in(&self, span: Span, most: usize) -> IoPart<'_> {
        self.incoming(span.to, most.min(INBOX - span.to))
    }

    /// Moves the rest of an inbox from `taken` on to its start, if another frame might not fit behind it.
    /// There is no whole frame in it. Returns the bytes in the inbox.
    pub(super) fn make_room(&self, taken: usize) -> Span {
        let span = self.inbox();
        let rest = Span { from: taken, to: span.to };
        if INBOX - span.to >= PREFIX + LONGEST {
            return span;
        }
        let moved = Span { from: 0, to: rest.len() };
        if !rest.is_empty() {
            copy_parts(&[self.incoming(rest.from, rest.len())], 0, self.incoming(0, rest.len()));
        }
        self.set_inbox(moved);
        moved
    }

    /// Writes the length of the frame behind byte `at` of the outbox.
    #[inline]
    pub(super) fn put_length(&self, at: usize, len: usize) {
        write_parts(&[self.outgoing(at, PREFIX)], 0, &(len as u32).to_be_bytes());
    }

    /// Reads the length in these bytes.
    #[inline]
    pub(super) fn length(prefix: IoPart<'_>) -> usize {
        let mut bytes = [0; PREFIX];
        copy_out(&[prefix], &mut bytes);
        u32::from_be_bytes(bytes) as usize
    }

    #[inline]
    fn bytes(&self, first: usize, size: usize, at: usize, len: usize) -> IoPart<'_> {
        assert!(len > 0 && at + len <= size, "{len} bytes from {at} of {size}");
        let within = at % WORD;
        let words = self.words.part(first + at / WORD, within + len);
        if within == 0 { words } else { words.skip(within).expect("len is not 0") }
    }
}
