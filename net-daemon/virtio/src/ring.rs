//! The device's side of a split virtqueue (virtio 1.2, section 2.7) over cached pointers.
//!
//! Life cycle: [`Ring::start`] translates the addresses of the three areas once, and continues at the used
//! index. For each batch, [`Ring::pop`] and [`Ring::walk`] chains, [`Ring::push_used`] them in the order of
//! their popping, and [`Ring::publish`] once. All progress is in guest memory: dropping a ring returns every
//! chain that was popped and not published, and a new `start` finds it again.
//!
//! The restart rule: `next_avail = next_used = used.idx`. Chains complete strictly in order, so `[used.idx,
//! avail.idx)` is exactly the range that the driver waits for, regardless of the previous server of the ring
//! and of its end. An index from a front-end could only be wrong.
#![expect(unsafe_code, reason = "the ring lies in memory shared with the guest")]

use std::cell::Cell;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use thiserror::Error;

pub use crate::chain::MAX_RING_SIZE;
use crate::features::Features;
use crate::memory::{Area, AreaError, GuestMemory};

const DESCRIPTOR: usize = 16;
const USED_ELEMENT: usize = 8;
/// Offset of `ring` in the available and in the used ring: after `flags` and `idx`.
const HEADER: usize = 4;

const AVAIL_F_NO_INTERRUPT: u16 = 1;
const USED_F_NO_NOTIFY: u16 = 1;

/// The place of a ring in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Entries, a power of two, 1 to [`MAX_RING_SIZE`].
    pub size: u16,
    /// Guest address of the descriptor table.
    pub desc: u64,
    /// Guest address of the available ring.
    pub avail: u64,
    /// Guest address of the used ring.
    pub used: u64,
}

/// The reason why a ring cannot start.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StartError {
    /// Not a power of two of 1 to [`MAX_RING_SIZE`].
    #[error("ring size {0} is not a power of two from 1 to {MAX_RING_SIZE}")]
    Size(u16),
    /// One of the three areas is not in usable memory.
    #[error("{area} cannot be used")]
    Area {
        /// The area.
        area: &'static str,
        /// The reason.
        source: AreaError,
    },
}

/// The reason why a ring cannot continue. The driver broke it. Only a new set-up by the driver repairs it.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum RingError {
    /// The driver made more chains available than the ring has entries.
    #[error("available index went from {from} to {to}, more than the ring's {size} entries")]
    AvailIndex {
        /// The next index to pop.
        from: u16,
        /// The index that the driver wrote.
        to: u16,
        /// Entries.
        size: u16,
    },
    /// The head is not a descriptor, so the chain cannot be returned.
    #[error("available entry names descriptor {head} of {size}")]
    Head {
        /// Descriptor number.
        head: u16,
        /// Entries.
        size: u16,
    },
}

/// The head of a chain from [`Ring::pop`]: a number below that ring's size.
///
/// A head of another ring, or one kept beyond [`Ring::push_used`], leads to some descriptor of the ring that
/// it is passed to, but never out of it. It cannot be created from a number:
///
/// ```compile_fail,E0423
/// volt_virtio::ring::Head(7);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head(u16);

impl Head {
    /// Returns the number of its descriptor.
    pub fn number(self) -> u16 {
        self.0
    }
}

/// The device's side of one split virtqueue.
#[derive(Debug)]
pub struct Ring {
    /// Number of entries, less one. An index AND this mask is a position in the ring.
    mask: u16,
    event_idx: bool,
    indirect: bool,
    desc: Area,
    avail: Area,
    used: Area,
    memory: Arc<GuestMemory>,
    /// Region of the last buffer, for [`GuestMemory::parts`].
    hint: Cell<usize>,
    /// The index at which it started.
    first: u16,
    /// The driver's index as last read.
    avail_idx: Wrapping<u16>,
    next_avail: Wrapping<u16>,
    /// The index of the next used element. It is ahead of `published` within a batch.
    next_used: Wrapping<u16>,
    published: Wrapping<u16>,
    /// Logs written pages, if the memory has a log.
    log: Option<Box<RingLog>>,
}

// SAFETY: the areas' pointers lead to mappings that `memory` keeps alive, on any thread.
unsafe impl Send for Ring {}

impl Ring {
    /// Translates the ring's addresses in `memory`, and continues at the used index.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub fn start(
        memory: Arc<GuestMemory>,
        layout: RingLayout,
        features: Features,
    ) -> Result<Ring, StartError> {
        let size = layout.size;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(StartError::Size(size));
        }
        let entries = usize::from(size);
        let event_idx = features.contains(Features::EVENT_IDX);
        let event = if event_idx { 2 } else { 0 };
        let area = |area, address, len, align| {
            memory.area(address, len, align).map_err(|source| StartError::Area { area, source })
        };
        let desc = area("descriptor table", layout.desc, entries * DESCRIPTOR, 16)?;
        let avail = area("available ring", layout.avail, HEADER + entries * 2 + event, 2)?;
        let used = area("used ring", layout.used, HEADER + entries * USED_ELEMENT + event, 4)?;
        let mut ring = Ring {
            mask: size - 1,
            event_idx,
            indirect: features.contains(Features::INDIRECT_DESC),
            desc,
            avail,
            used,
            memory,
            hint: Cell::new(0),
            first: 0,
            avail_idx: Wrapping(0),
            next_avail: Wrapping(0),
            next_used: Wrapping(0),
            published: Wrapping(0),
            log: None,
        };
        let base = Wrapping(ring.index(&ring.used).load(Ordering::Acquire));
        ring.first = base.0;
        (ring.avail_idx, ring.next_avail, ring.next_used, ring.published) = (base, base, base, base);
        ring.log = ring.memory.log().map(|log| Box::new(RingLog::new(log.clone())));
        Ok(ring)
    }

    /// Returns the guest memory of the ring.
    #[inline(always)]
    pub(crate) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Returns the number of entries.
    pub fn size(&self) -> u16 {
        self.mask + 1
    }

    /// Returns the used index as the driver sees it. It is also the answer to GET_VRING_BASE.
    pub fn base(&self) -> u16 {
        self.published.0
    }

    /// Takes the next available chain's head.
    ///
    /// # Errors
    ///
    /// Fails if the driver broke the ring. The ring must not be used any more.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Head>, RingError> {
        if self.next_avail == self.avail_idx && !self.refresh()? {
            return Ok(None);
        }
        let head = self.avail_entry(self.next_avail);
        if head > self.mask {
            return Err(RingError::Head { head, size: self.size() });
        }
        self.next_avail += 1;
        Ok(Some(Head(head)))
    }

    /// Returns the index in the available ring of the chain that [`Ring::pop`] takes next.
    #[inline]
    pub fn next_index(&self) -> u16 {
        self.next_avail.0
    }

    /// Puts back the chain that was popped last.
    #[inline]
    pub fn unpop(&mut self) {
        self.next_avail -= 1;
    }

    /// Returns the number of chains that are popped and not yet pushed.
    pub fn outstanding(&self) -> u16 {
        (self.next_avail - self.next_used).0
    }

    /// Reads the driver's index. Returns whether there is something to pop.
    fn refresh(&mut self) -> Result<bool, RingError> {
        // Acquire: the ring entries and descriptors before the index are read after it.
        let now = Wrapping(self.index(&self.avail).load(Ordering::Acquire));
        // The driver cannot have more than `size` chains outstanding, including popped ones, and cannot take
        // one of those back.
        if (now - self.next_avail).0 > self.size() - self.outstanding() {
            return Err(RingError::AvailIndex { from: self.next_avail.0, to: now.0, size: self.size() });
        }
        self.avail_idx = now;
        Ok(now != self.next_avail)
    }

    /// Writes the next used element: chain `head`, with `written` bytes written. The driver sees it after the
    /// next [`Ring::publish`].
    #[inline]
    pub fn push_used(&mut self, head: Head, written: u32) {
        debug_assert_ne!(self.next_used, self.next_avail, "more pushed than popped");
        let slot = usize::from(self.next_used.0 & self.mask);
        let element = HEADER + slot * USED_ELEMENT;
        // One field at a time: the ring is aligned to 4, so a region's border may lie between the two.
        for (offset, field) in [(element, u32::from(head.0)), (element + 4, written)] {
            // SAFETY: slot <= mask, so both fields are inside the used ring. `area` checked all of it, and
            // refused a border within 4 bytes.
            unsafe { self.used.at::<u32>(offset).write_volatile(field.to_le()) };
        }
        self.next_used += 1;
    }

    /// Makes all pushed elements visible by one store of the index. Returns whether the driver wants a
    /// notification (virtio 1.2, 2.7.7.2).
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        // Release: the elements are visible before the index.
        let store = || self.index(&self.used).store(new.0, Ordering::Release);
        match &self.log {
            None => store(),
            Some(log) => log.around(old.0, new.0, self.mask, store),
        }
        self.published = new;
        // The driver writes its wish and then reads the index. The order here is the reverse.
        fence(Ordering::SeqCst);
        if self.event_idx {
            needs_event(self.used_event(), new, old)
        } else {
            self.field(&self.avail, 0).load(Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Whether half the ring is pushed and not published: the driver can refill that half while the device
    /// works on the other.
    #[inline]
    pub fn is_due(&self) -> bool {
        (self.next_used - self.published).0 > self.mask / 2
    }

    /// Asks the driver for a kick when it makes the next chain available. Returns whether one is available
    /// already, which may have come without a kick.
    ///
    /// # Errors
    ///
    /// As [`Ring::pop`].
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        if self.event_idx {
            self.avail_event().store(self.next_avail.0, Ordering::Relaxed);
        } else {
            self.field(&self.used, 0).store(0, Ordering::Relaxed);
        }
        if let Some(log) = &self.log {
            log.wish(self.event_idx, self.mask);
        }
        fence(Ordering::SeqCst);
        self.refresh()
    }

    /// Whether the driver seems to have made a chain available. [`Ring::pop`] verifies that.
    #[inline]
    pub fn has_available(&self) -> bool {
        self.index(&self.avail).load(Ordering::Relaxed) != self.next_avail.0
    }

    /// Returns the number of chains that the driver made available and that are not used yet, including
    /// popped ones. At most the ring's size, even if the driver broke the ring.
    pub fn available(&self) -> u16 {
        let available = Wrapping(self.index(&self.avail).load(Ordering::Relaxed)) - self.published;
        available.0.min(self.size())
    }

    /// Whether the driver's index has changed since the ring started.
    pub fn has_moved(&self) -> bool {
        self.index(&self.avail).load(Ordering::Relaxed) != self.first
    }

    /// Tells the driver that kicks are not needed at the moment.
    pub fn disable_kicks(&mut self) {
        // With EVENT_IDX the old avail_event is behind the index already, which has the same effect.
        if !self.event_idx {
            self.field(&self.used, 0).store(USED_F_NO_NOTIFY, Ordering::Relaxed);
            if let Some(log) = &self.log {
                log.header();
            }
        }
    }

    #[inline]
    fn avail_entry(&self, index: Wrapping<u16>) -> u16 {
        let slot = usize::from(index.0 & self.mask);
        self.field(&self.avail, HEADER + slot * 2).load(Ordering::Relaxed)
    }

    fn used_event(&self) -> Wrapping<u16> {
        let offset = HEADER + usize::from(self.size()) * 2;
        Wrapping(self.field(&self.avail, offset).load(Ordering::Relaxed))
    }

    fn avail_event(&self) -> Le16<'_> {
        self.field(&self.used, HEADER + usize::from(self.size()) * USED_ELEMENT)
    }

    fn index<'a>(&self, area: &'a Area) -> Le16<'a> {
        self.field(area, 2)
    }

    #[inline(always)]
    fn field<'a>(&self, area: &'a Area, offset: usize) -> Le16<'a> {
        // SAFETY: all callers' offsets are even and inside the area. `start` had it checked completely, with
        // the alignment of its fields, and `memory` keeps it mapped. All accesses are atomic.
        Le16(unsafe { AtomicU16::from_ptr(area.at(offset)) })
    }
}

/// A little-endian 16-bit field in shared memory.
struct Le16<'a>(&'a AtomicU16);

impl Le16<'_> {
    #[inline(always)]
    fn load(&self, order: Ordering) -> u16 {
        u16::from_le(self.0.load(order))
    }

    #[inline(always)]
    fn store(&self, value: u16, order: Ordering) {
        self.0.store(value.to_le(), order);
    }
}

/// Whether the index passed `event` on its way from `old` to `new` (virtio 1.2, 2.7.7.1).
#[inline]
fn needs_event(event: Wrapping<u16>, new: Wrapping<u16>, old: Wrapping<u16>) -> bool {
    new - event - Wrapping(1) < new - old
}

mod logging;
mod walk;

use logging::RingLog;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod tests;
