//! The memory of frames: a UMEM in a memfd, so that it outlives the process.
//!
//! ```text
//! page 0   words: what the memory is (`shared_words`), its layout, which transmit chunks the kernel has
//! then     RX chunks    each in the fill ring, with the kernel, or in the receive ring
//!          TX chunks    number N for the positions N, N + TX, N + 2 TX... of the transmit ring
//! ```
//!
//! Because a transmit chunk belongs to positions of its ring, no list of free chunks can be lost. The kernel
//! gives chunks back in any order, so that each has a bit: it is set before the kernel can have the chunk,
//! and cleared before the entry that gives it back is consumed. The position up to which bits are being set
//! is noted before, so that the next process can take back what the kernel did not get.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::fence;

use volt_virtio::part::IoPart;

use crate::shared_words::{Kind, SharedWords, WordsError};

/// Receive chunks, and entries of fill and receive ring.
pub(super) const RX: u32 = 1024;
/// Transmit chunks, and entries of transmit and completion ring: more than one frame has segments.
pub(super) const TX: u32 = 2048;
/// Bytes in front of a received frame (`XDP_PACKET_HEADROOM`).
pub(super) const HEADROOM: u32 = 256;
/// Sizes of a chunk.
const CHUNKS: [u32; 2] = [2048, 4096];

const KIND: Kind = Kind { magic: *b"voltUMEM", version: 1 };
const WORD: usize = size_of::<u64>();
const PAGE: usize = 4096;
/// Words of the first page. The two in front of them belong to `shared_words`.
const FIRST: usize = PAGE / WORD - 2;
/// Numbers of words: layout, then one bit for each transmit chunk.
const CHUNK: usize = 0;
const QUEUE: usize = 1;
const LONGEST: usize = 2;
const GIVEN: usize = 3;
const WITH_KERNEL: usize = 8;

const _: () = assert!(TX as usize > crate::segments::MAX_SEGMENTS);
const _: () = assert!(WITH_KERNEL + TX as usize / 64 <= FIRST);

/// The memory of one queue.
#[derive(Debug)]
pub(super) struct Umem {
    words: SharedWords,
    chunk: u32,
    longest: u32,
}

impl Umem {
    /// Returns the longest frame to the guest, in bytes, that any chunk holds.
    pub(super) fn longest_possible() -> u32 {
        CHUNKS[1] - HEADROOM
    }

    /// Creates memory for `queue` of an interface, for frames of up to `longest` bytes.
    ///
    /// # Errors
    ///
    /// See [`WordsError`]. Frames may be too long.
    pub(super) fn new(queue: u32, longest: u32) -> Result<Umem, WordsError> {
        let chunk = CHUNKS.into_iter().find(|chunk| longest + HEADROOM <= *chunk);
        let chunk = chunk.ok_or(WordsError::Other("frames longer than a chunk"))?;
        let bytes = (RX + TX) as usize * chunk as usize;
        let words = SharedWords::create_file("volt-umem", KIND, FIRST + bytes / WORD)?;
        for (word, value) in [(CHUNK, chunk), (QUEUE, queue), (LONGEST, longest)] {
            words.word(word).store(value.into(), Relaxed);
        }
        Ok(Umem { words, chunk, longest })
    }

    /// Maps the memory of another process.
    ///
    /// # Errors
    ///
    /// Fails if it is something else.
    pub(super) fn open(memory: OwnedFd) -> Result<Umem, WordsError> {
        let words = SharedWords::open(memory, KIND)?;
        if words.len() < FIRST {
            return Err(WordsError::Other("it is too short"));
        }
        let word = |word| words.word(word).load(Relaxed);
        let chunk = CHUNKS.into_iter().find(|chunk| u64::from(*chunk) == word(CHUNK));
        let chunk = chunk.ok_or(WordsError::Other("its size of chunks"))?;
        let longest = u32::try_from(word(LONGEST)).ok().filter(|longest| *longest <= chunk - HEADROOM);
        let longest = longest.ok_or(WordsError::Other("its longest frame"))?;
        if words.len() < FIRST + (RX + TX) as usize * chunk as usize / WORD {
            return Err(WordsError::Other("it is too short"));
        }
        Ok(Umem { words, chunk, longest })
    }

    /// Returns the memfd.
    pub(super) fn file(&self) -> Option<&std::fs::File> {
        self.words.file()
    }

    /// Returns the interface's queue.
    pub(super) fn queue(&self) -> u32 {
        self.words.word(QUEUE).load(Relaxed) as u32
    }

    /// Returns the length in bytes of the longest frame.
    pub(super) fn longest(&self) -> u32 {
        self.longest
    }

    /// Returns the size of a chunk in bytes.
    pub(super) fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Returns all chunks, for the kernel.
    pub(super) fn all(&self) -> IoPart<'_> {
        self.words.part(FIRST, (RX + TX) as usize * self.chunk as usize)
    }

    /// Returns the address of receive chunk number `index`.
    pub(super) fn rx_address(&self, index: u32) -> u64 {
        u64::from(index) * u64::from(self.chunk)
    }

    /// Returns the address of the chunk for `position` of the transmit ring.
    #[inline]
    pub(super) fn tx_address(&self, position: u32) -> u64 {
        u64::from(RX + position % TX) * u64::from(self.chunk)
    }

    /// Returns the address of the chunk that a frame begins in.
    #[inline]
    pub(super) fn chunk_of(&self, address: u64) -> u64 {
        address & !u64::from(self.chunk - 1)
    }

    /// Returns `len` bytes at `address`, which the kernel or [`Umem::tx_address`] has given.
    ///
    /// # Panics
    ///
    /// Panics if they are not within the chunks.
    #[inline]
    pub(super) fn part(&self, address: u64, len: u32) -> IoPart<'_> {
        // Frames begin anywhere, words do not.
        let (word, skip) = (address as usize / WORD, address as usize % WORD);
        let part = self.words.part(FIRST + word, skip + len as usize);
        if skip == 0 { part } else { part.skip(skip).unwrap_or(part) }
    }

    /// Whether the kernel has the chunk for `position`.
    #[inline]
    pub(super) fn is_with_kernel(&self, position: u32) -> bool {
        let (word, bit) = bit(position % TX);
        self.words.word(word).load(Relaxed) & bit != 0
    }

    /// Notes that the kernel gets the chunks for the positions from `from` to `to`.
    #[inline]
    pub(super) fn give(&self, from: u32, to: u32) {
        self.words.word(GIVEN).store(to.into(), Relaxed);
        // The next process must see the note if it sees a bit.
        fence(Release);
        self.set(from, to, true);
    }

    /// Takes back the chunks that the kernel did not get because the process ended before it published
    /// `position`.
    pub(super) fn take_back(&self, position: u32) {
        let given = self.words.word(GIVEN).load(Relaxed) as u32;
        if given.wrapping_sub(position) <= TX {
            self.set(position, given, false);
        }
    }

    fn set(&self, from: u32, to: u32, given: bool) {
        let mut position = from;
        while position != to {
            let (word, bit) = bit(position % TX);
            let word = self.words.word(word);
            let others = word.load(Relaxed) & !bit;
            word.store(if given { others | bit } else { others }, Relaxed);
            position = position.wrapping_add(1);
        }
    }

    /// Notes that the kernel has given back the chunk at `address`.
    #[inline]
    pub(super) fn has_back(&self, address: u64) {
        let number = (address >> self.chunk.trailing_zeros()).wrapping_sub(u64::from(RX));
        if number < u64::from(TX) {
            let (word, bit) = bit(number as u32);
            let word = self.words.word(word);
            word.store(word.load(Relaxed) & !bit, Relaxed);
        }
    }
}

/// Returns word and bit of a transmit chunk.
#[inline]
fn bit(chunk: u32) -> (usize, u64) {
    (WITH_KERNEL + chunk as usize / 64, 1 << (chunk % 64))
}
