//! The parts of chains that wait for a frame, kept with their ring between batches.
#![expect(unsafe_code, reason = "keeps parts for longer than a borrow can say")]

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::chain::ChainError;
use crate::memory::GuestMemory;
use crate::part::IoPart;
use crate::ring::{Head, Ring};

/// The result of gathering a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Bytes of the gathered parts: of the whole chain, or at least the requested number.
    pub len: usize,
    /// Whether there is a buffer that the device may only read.
    pub readable: bool,
    /// Whether there is a buffer that the device writes.
    pub writable: bool,
}

/// Parts of chains, in the order of gathering. They all belong to one guest memory, which this value keeps
/// mapped.
#[derive(Debug)]
pub struct Gathered {
    /// Parts of `memory`, despite their lifetime. They are visible only while this value is borrowed.
    parts: Vec<IoPart<'static>>,
    memory: Arc<GuestMemory>,
}

// SAFETY: plain pointers and lengths into memory that is kept with them. Another process shares that memory
// anyway. It is only copied: by system calls, volatile reads, and writes.
unsafe impl Send for Gathered {}

impl Gathered {
    /// Creates an empty collection with room for so many parts, for chains of `ring` and of other rings in
    /// the same memory.
    pub fn new(ring: &Ring, parts: usize) -> Gathered {
        Gathered { parts: Vec::with_capacity(parts), memory: ring.memory().clone() }
    }

    /// Appends the only buffer of chain `head` if it is a single descriptor (see [`Ring::single`]), has this
    /// direction, and has a length in `lens`. Returns its length. Otherwise use [`Gathered::chain`].
    ///
    /// # Panics
    ///
    /// Panics for a ring in another memory.
    #[inline(always)]
    pub fn single(
        &mut self,
        ring: &Ring,
        head: Head,
        lens: RangeInclusive<usize>,
        writable: bool,
    ) -> Option<usize> {
        match ring.single(head) {
            Some((part, write)) if write == writable && lens.contains(&part.len()) => {
                self.check(ring);
                // SAFETY: part of `memory` (checked), which is kept.
                self.parts.push(unsafe { part.unbound() });
                Some(part.len())
            }
            _ => None,
        }
    }

    /// Appends the parts of chain `head` until they have `enough` bytes. Joins adjacent parts.
    ///
    /// # Errors
    ///
    /// Fails if the chain is malformed. Some parts may be appended then.
    ///
    /// # Panics
    ///
    /// Panics for a ring in another memory.
    pub fn chain(&mut self, ring: &Ring, head: Head, enough: usize) -> Result<Chain, ChainError> {
        self.check(ring);
        let start = self.parts.len();
        let parts = &mut self.parts;
        let mut chain = Chain { len: 0, readable: false, writable: false };
        ring.walk(head, |part, write| {
            chain.readable |= !write;
            chain.writable |= write;
            if chain.len >= enough {
                return;
            }
            // A chain has at most 4 GiB.
            chain.len += part.len();
            // SAFETY: part of `memory` (checked), which is kept.
            let part = unsafe { part.unbound() };
            let joined = parts.len() > start && parts.last_mut().is_some_and(|last| last.extend(part));
            if !joined {
                parts.push(part);
            }
        })?;
        Ok(chain)
    }

    /// Costs a few instructions for each frame. Prevents safe code from gathering parts of memory that
    /// nothing keeps.
    #[inline(always)]
    fn check(&self, ring: &Ring) {
        assert!(Arc::ptr_eq(&self.memory, ring.memory()), "a ring in another memory");
    }

    /// Returns the number of parts.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "not needed")]
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Returns the number of parts that there is room for.
    pub fn capacity(&self) -> usize {
        self.parts.capacity()
    }

    /// Returns the parts from number `first` on.
    ///
    /// # Panics
    ///
    /// Panics if there are fewer, like [`Gathered::with_tail`].
    #[inline(always)]
    pub fn from(&self, first: usize) -> &[IoPart<'_>] {
        &self.parts[first..]
    }

    /// Calls `each` with the parts from number `first` on, followed by one for `tail`.
    #[inline(always)]
    pub fn with_tail<T>(
        &mut self,
        first: usize,
        tail: &mut [u8],
        each: impl FnOnce(&[IoPart<'_>]) -> T,
    ) -> T {
        /// Removes the tail even after a panic.
        struct Whole<'a>(&'a mut Vec<IoPart<'static>>);
        impl Drop for Whole<'_> {
            fn drop(&mut self) {
                self.0.pop();
            }
        }
        // SAFETY: removed before the borrow of `tail` ends.
        self.parts.push(unsafe { IoPart::from_slice(tail).unbound() });
        let whole = Whole(&mut self.parts);
        each(&whole.0[first..])
    }

    /// Keeps the first `len` parts.
    #[inline(always)]
    pub fn truncate(&mut self, len: usize) {
        self.parts.truncate(len);
    }

    /// Removes all parts.
    #[inline(always)]
    pub fn clear(&mut self) {
        self.parts.clear();
    }

    /// Removes the first `count` parts.
    pub fn remove_first(&mut self, count: usize) {
        self.parts.drain(..count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::Features;
    use crate::part::write_parts;
    use crate::testing::{BUFFERS, Driver};

    #[test]
    fn chains_are_gathered_one_behind_the_other() {
        let mut driver = Driver::new(16, Features::empty());
        driver.add(&[(BUFFERS, 10, true), (BUFFERS + 10, 20, true), (BUFFERS + 100, 5, true)]);
        driver.add(&[(BUFFERS + 105, 7, true)]);
        let mut ring = driver.ring();
        let mut gathered = Gathered::new(&ring, 4);
        let first = ring.pop().unwrap().unwrap();
        let chain = Chain { len: 35, readable: false, writable: true };
        assert_eq!(gathered.chain(&ring, first, 100), Ok(chain));
        assert_eq!(gathered.len(), 2, "adjoining buffers are one part");
        let second = ring.pop().unwrap().unwrap();
        assert_eq!(gathered.single(&ring, second, 8..=100, true), None);
        assert_eq!(gathered.single(&ring, second, 7..=100, false), None);
        assert_eq!(gathered.single(&ring, second, 7..=100, true), Some(7));
        assert_eq!(gathered.len(), 3, "chains stay apart");
        let mut tail = [0; 4];
        gathered.with_tail(2, &mut tail, |parts| write_parts(parts, 0, &[1; 9]));
        assert_eq!((tail, gathered.len()), ([1, 1, 0, 0], 3));
        gathered.truncate(2);
        assert_eq!(gathered.chain(&ring, first, 30), Ok(Chain { len: 30, ..chain }));
        gathered.remove_first(2);
        assert_eq!(gathered.from(0).iter().map(|part| part.len()).collect::<Vec<_>>(), [30]);
    }

    #[test]
    #[should_panic(expected = "another memory")]
    fn parts_of_another_memory_are_refused() {
        let (mut driver, other) = (Driver::new(16, Features::empty()), Driver::new(16, Features::empty()));
        driver.add(&[(BUFFERS, 10, true)]);
        let mut ring = driver.ring();
        let head = ring.pop().unwrap().unwrap();
        let _ = Gathered::new(&other.ring(), 4).single(&ring, head, 0..=100, true);
    }

    #[test]
    fn a_tail_does_not_stay_after_a_panic() {
        let driver = Driver::new(16, Features::empty());
        let mut gathered = Gathered::new(&driver.ring(), 4);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            gathered.with_tail(0, &mut [0; 4], |_| panic!("a port's"));
        }));
        assert!(panicked.is_err());
        assert_eq!(gathered.len(), 0);
    }
}
