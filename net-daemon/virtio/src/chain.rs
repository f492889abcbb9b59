//! Descriptor chains: the rules for following one (virtio 1.2, sections 2.7.5 and 2.7.5.3).
//!
//! [`Ring::walk`](crate::ring::Ring::walk) reads descriptors, [`Chains`] says where to go next. Pure
//! arithmetic on copies, so nothing here depends on what the driver writes meanwhile.

use thiserror::Error;

/// Largest ring, and so largest table of descriptors (virtio 1.2, 2.7).
pub const MAX_RING_SIZE: u16 = 32768;

const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// Why a chain is not used. It goes back to the driver with length 0 and the ring goes on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// The process that served it died, twice.
    #[error("the process that served it died of it, twice")]
    Deadly,
    /// `next` is no descriptor of the table.
    #[error("descriptor {number} names {next} as the next of {size}")]
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
    /// An indirect table of no whole number of entries, none, or more than the largest ring's.
    #[error("indirect table of {0} bytes")]
    TableLength(u32),
    /// INDIRECT without the feature, in a table, or together with NEXT.
    #[error("descriptor {number} is indirect where it must not be (flags {flags:#x})")]
    Indirect {
        /// The descriptor.
        number: u16,
        /// Its flags.
        flags: u16,
    },
    /// A device-readable buffer where only writable ones belong, or the reverse.
    #[error("a buffer of the wrong direction")]
    Direction,
    /// Too few bytes for what the queue carries.
    #[error("chain of {0} bytes is too short")]
    Short(usize),
    /// More bytes than the queue carries.
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
    /// Decodes the 16 little-endian bytes, given as two words as they stand in memory: two loads, where
    /// single bytes would be sixteen.
    #[inline]
    pub fn from_words(words: [u64; 2]) -> Descriptor {
        let [addr, rest] = words.map(u64::from_le);
        Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
    }

    /// Whether it is a chain by itself: one buffer and nothing behind it.
    #[inline]
    pub fn is_whole_chain(self) -> bool {
        self.flags & (F_NEXT | F_INDIRECT) == 0
    }

    /// Whether the device writes the buffer.
    pub fn is_writable(self) -> bool {
        self.flags & F_WRITE != 0
    }
}

/// Where the walk along one chain is.
#[derive(Debug)]
pub struct Chains {
    /// Entries of the table that is being followed.
    size: u16,
    /// Descriptors that may still come before it must be a loop.
    left: u16,
    /// Whether a table may follow.
    indirect: bool,
    number: u16,
    bytes: u64,
}

/// Most bytes in a chain (virtio 1.2, 2.7.5.2).
const MAX_CHAIN_LEN: u64 = 1 << 32;

impl Chains {
    /// A walk that begins in a ring's table of `size` entries.
    #[inline]
    pub fn new(size: u16, indirect: bool) -> Chains {
        Chains { size, left: size, indirect, number: 0, bytes: 0 }
    }

    /// Counts descriptor `number`. Returns it when it stands for a table, to be given to [`Chains::enter`].
    ///
    /// # Errors
    ///
    /// For a loop, for more bytes than a chain can have, and for an indirect descriptor that must not be one.
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

    /// Goes on in the table that `descriptor` points to, in which no other may be named.
    ///
    /// # Errors
    ///
    /// When its length is no table's.
    pub fn enter(&mut self, descriptor: Descriptor) -> Result<(), ChainError> {
        let entries = u16::try_from(descriptor.len / 16).ok().filter(|n| (1..=MAX_RING_SIZE).contains(n));
        let entries = entries.filter(|_| descriptor.len.is_multiple_of(16));
        self.size = entries.ok_or(ChainError::TableLength(descriptor.len))?;
        self.left = self.size;
        self.indirect = false;
        Ok(())
    }

    /// The number of the descriptor behind `descriptor`, or `None` at the chain's end.
    ///
    /// # Errors
    ///
    /// When it is outside the table.
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
