//! Descriptor chains: the rules for following one (virtio 1.2, sections 2.7.5 and 2.7.5.3).
//!
//! [`Ring::walk`](crate::ring::Ring::walk) reads descriptors, and [`Chains`] determines the next one. It
//! works on copies only, so that concurrent writes of the driver have no effect.

use thiserror::Error;

/// Maximum size of a ring, and so of a table of descriptors (virtio 1.2, 2.7).
pub const MAX_RING_SIZE: u16 = 32768;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// The reason why a chain is not used. It returns to the driver with length 0, and the ring continues.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// It killed the process that served it, twice.
    #[error("it killed the process that served it, twice")]
    Deadly,
    /// `next` is not a descriptor of the table.
    #[error("descriptor {number} has next descriptor {next} in a table of {size}")]
    Next {
        /// The descriptor.
        number: u16,
        /// Its `next`.
        next: u16,
        /// Entries of its table.
        size: u16,
    },
    /// More descriptors than the table has.
    #[error("chain loops: more than {0} descriptors")]
    Loop(u16),
    /// A buffer that is not guest memory.
    #[error("buffer of {len} bytes at {addr:#x} is not in guest memory")]
    Unmapped {
        /// Guest address.
        addr: u64,
        /// Bytes.
        len: u32,
    },
    /// An indirect table that is not guest memory.
    #[error("indirect table at {addr:#x} is not in guest memory")]
    Table {
        /// Guest address.
        addr: u64,
    },
    /// The length of an indirect table is not a multiple of an entry's, is 0, or exceeds the largest ring.
    #[error("indirect table of {0} bytes")]
    TableLength(u32),
    /// INDIRECT without the feature, inside a table, or together with NEXT.
    #[error("descriptor {number} is not allowed to be indirect (flags {flags:#x})")]
    Indirect {
        /// The descriptor.
        number: u16,
        /// Its flags.
        flags: u16,
    },
    /// A device-readable buffer instead of a writable one, or the reverse.
    #[error("a buffer of the wrong direction")]
    Direction,
    /// Fewer bytes than the queue needs.
    #[error("chain of {0} bytes is too short")]
    Short(usize),
    /// More bytes than the queue allows.
    #[error("chain of more than {0} bytes is too long")]
    Long(usize),
}

/// `struct virtq_desc`.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// Decodes the 16 little-endian bytes, passed as two words in memory order. This takes two loads instead
    /// of sixteen.
    #[inline]
    pub fn from_words(words: [u64; 2]) -> Descriptor {
        let [addr, rest] = words.map(u64::from_le);
        Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// Whether it is a chain by itself: one buffer without a next descriptor.
    #[inline]
    pub fn is_whole_chain(self) -> bool {
        self.flags & (F_NEXT | F_INDIRECT) == 0
    }

    /// Whether the device writes the buffer.
    pub fn is_writable(self) -> bool {
        self.flags & F_WRITE != 0
    }
}

/// The position of a walk along one chain.
#[derive(Debug)]
pub struct Chains {
    /// Number of entries of the current table.
    size: u16,
    /// Number of descriptors that may follow before the chain must be a loop.
    left: u16,
    /// Whether an indirect table may follow.
    indirect: bool,
    number: u16,
    bytes: u64,
}

/// Maximum number of bytes in a chain (virtio 1.2, 2.7.5.2).
const MAX_CHAIN_LEN: u64 = 1 << 32;

impl Chains {
    /// Creates a walk that begins in a ring's table of `size` entries.
    #[inline]
    pub fn new(size: u16, indirect: bool) -> Chains {
        Chains { size, left: size, indirect, number: 0, bytes: 0 }
    }

    /// Counts descriptor `number`. Returns it if it points to an indirect table, for [`Chains::enter`].
    ///
    /// # Errors
    ///
    /// Fails for a loop, for more bytes than a chain can have, and for a forbidden indirect descriptor.
    #[inline]
    pub fn follow(&mut self, number: u16, descriptor: Descriptor) -> Result<Option<Descriptor>, ChainError> {
        self.left = self.left.checked_sub(1).ok_or(ChainError::Loop(self.size))?;
        self.number = number;
        if descriptor.flags & F_INDIRECT == 0 {
            self.bytes += u64::from(descriptor.len);
            if self.bytes > MAX_CHAIN_LEN {
                return Err(ChainError::Long(MAX_CHAIN_LEN as usize));
            }
            return Ok(None);
        }
        if self.indirect && descriptor.flags & F_NEXT == 0 {
            return Ok(Some(descriptor));
        }
        Err(ChainError::Indirect { number, flags: descriptor.flags })
    }

    /// Continues in the table that `descriptor` points to. That table must not point to another.
    ///
    /// # Errors
    ///
    /// Fails if the table has an invalid length.
    pub fn enter(&mut self, descriptor: Descriptor) -> Result<(), ChainError> {
        let entries = u16::try_from(descriptor.len / 16).ok().filter(|n| (1..=MAX_RING_SIZE).contains(n));
        let entries = entries.filter(|_| descriptor.len.is_multiple_of(16));
        self.size = entries.ok_or(ChainError::TableLength(descriptor.len))?;
        self.left = self.size;
        self.indirect = false;
        Ok(())
    }

    /// Returns the number of the descriptor after `descriptor`, or `None` at the chain's end.
    ///
    /// # Errors
    ///
    /// Fails if it is outside the table.
    #[inline]
    pub fn next(&self, descriptor: Descriptor) -> Result<Option<u16>, ChainError> {
        if descriptor.flags & F_NEXT == 0 {
            return Ok(None);
        }
        if descriptor.next < self.size {
            return Ok(Some(descriptor.next));
        }
        Err(ChainError::Next { number: self.number, next: descriptor.next, size: self.size })
    }
}
