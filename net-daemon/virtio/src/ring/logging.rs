//! What a ring marks in the log of written pages, if its memory has one.
//!
//! Buffers are marked by the device, with [`Ring::mark_written`], before it publishes them. The ring marks
//! used elements before the store of the index, and the index after it. A device that dies between the two
//! leaves an index without a mark. So a ring marks its whole used ring when it starts
//! ([`Ring::log_used_at`]). Buffers that are popped and not published need no mark: the driver has not seen
//! them as used.

use std::cell::Cell;
use std::sync::Arc;

use super::{HEADER, Ring, USED_ELEMENT};
use crate::dirty_log::DirtyLog;
use crate::part::IoPart;

/// The log of one ring.
#[derive(Debug)]
pub(super) struct RingLog {
    log: Arc<DirtyLog>,
    /// Address of the used ring in the log. `None`: it is not logged.
    used: Option<u64>,
    /// Region of the last buffer that was marked.
    hint: Cell<usize>,
    /// Number of marks since the last [`Ring::take_marked`].
    marked: Cell<u64>,
}

impl RingLog {
    pub(super) fn new(log: Arc<DirtyLog>) -> RingLog {
        RingLog { log, used: None, hint: Cell::new(0), marked: Cell::new(0) }
    }

    /// Marks `len` bytes of the used ring at `offset`.
    fn mark_used(&self, offset: usize, len: usize) {
        if let Some(used) = self.used {
            self.count(self.log.mark(used.saturating_add(offset as u64), len as u64));
        }
    }

    #[inline(always)]
    fn count(&self, pages: u64) {
        self.marked.set(self.marked.get() + pages);
    }

    /// Marks the elements from index `old` up to `new`, in a ring of `mask` + 1 entries. Then stores the
    /// index by `store`, and marks it.
    #[cold]
    pub(super) fn around(&self, old: u16, new: u16, mask: u16, store: impl FnOnce()) {
        let (first, count) = (usize::from(old & mask), usize::from(new.wrapping_sub(old)));
        let before_end = count.min(usize::from(mask) + 1 - first);
        self.mark_used(HEADER + first * USED_ELEMENT, before_end * USED_ELEMENT);
        self.mark_used(HEADER, (count - before_end) * USED_ELEMENT);
        store();
        self.header();
    }

    /// Marks the flags and the index.
    #[cold]
    pub(super) fn header(&self) {
        self.mark_used(0, HEADER);
    }

    /// Marks the field by which the device asks for kicks.
    #[cold]
    pub(super) fn wish(&self, event_idx: bool, mask: u16) {
        match event_idx {
            true => self.mark_used(HEADER + (usize::from(mask) + 1) * USED_ELEMENT, 2),
            false => self.header(),
        }
    }
}

impl Ring {
    /// Whether written pages are logged. Decided when the ring starts.
    #[inline(always)]
    pub fn is_logged(&self) -> bool {
        self.log.is_some()
    }

    /// Logs the used ring at guest address `address`, which may differ from its own (`log_guest_addr` of
    /// SET_VRING_ADDR), and marks all of it. Without a log in the ring's memory, does nothing.
    pub fn log_used_at(&mut self, address: u64) {
        let len = self.used_len();
        if let Some(log) = &mut self.log {
            log.used = Some(address);
            log.mark_used(0, len);
        }
    }

    /// Returns the length of the used ring in bytes.
    fn used_len(&self) -> usize {
        HEADER + usize::from(self.size()) * USED_ELEMENT + if self.event_idx { 2 } else { 0 }
    }

    /// Marks the first `len` bytes of `parts`, which must be parts of the ring's memory, as written. Call it
    /// after the write, and before [`Ring::publish`].
    #[inline]
    pub fn mark_written(&self, parts: &[IoPart<'_>], len: usize) {
        if let Some(log) = &self.log {
            log.count(self.memory.mark(&log.log, parts, len, &log.hint));
        }
    }

    /// Returns the number of marks since the last call, for a counter.
    pub fn take_marked(&self) -> u64 {
        self.log.as_ref().map_or(0, |log| log.marked.take())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use vm_memory::{Bytes, MmapRegion, VolatileMemory};

    use super::*;
    use crate::dirty_log::LOG_PAGE;
    use crate::features::Features;
    use crate::ring::RingLayout;
    use crate::testing::{BUFFERS, Driver};

    /// Number of entries: the used ring has more than two pages.
    const SIZE: u16 = 1024;
    /// Address of the used ring in the log, outside of guest memory.
    const USED: u64 = 0x80_0000;

    struct Logged {
        driver: Driver,
        log: Arc<MmapRegion>,
        ring: Ring,
    }

    impl Logged {
        fn new(features: Features) -> Logged {
            let mut driver = Driver::new(SIZE, features);
            // On a page boundary.
            driver.layout = RingLayout { used: 0x1_0000, ..driver.layout };
            let log = Arc::new(MmapRegion::new(0x1000).unwrap());
            let dirty = Arc::new(DirtyLog::new(log.clone(), 0, 0x1000).unwrap());
            driver.memory = Arc::new(driver.memory.logged(dirty));
            let mut ring = driver.ring();
            ring.log_used_at(USED);
            Logged { driver, log, ring }
        }

        /// Returns the marked pages, and clears them.
        fn take(&self) -> BTreeSet<u64> {
            let slice = self.log.as_volatile_slice();
            let mut bytes = [0; 0x1000];
            slice.read_slice(&mut bytes, 0).unwrap();
            slice.write_slice(&[0; 0x1000], 0).unwrap();
            (0..0x8000)
                .filter(|page| bytes[page / 8] >> (page % 8) & 1 == 1)
                .map(|page| page as u64)
                .collect()
        }

        /// Returns the marked pages of the used ring, counted from its start.
        fn take_used(&self) -> Vec<u64> {
            let first = USED / LOG_PAGE;
            self.take().into_iter().map(|page| page.checked_sub(first).expect("the used ring's")).collect()
        }
    }

    #[test]
    fn a_start_marks_the_whole_used_ring() {
        for (features, pages) in [(Features::empty(), 3), (Features::EVENT_IDX, 3)] {
            let logged = Logged::new(features);
            assert_eq!(logged.take_used(), (0..pages).collect::<Vec<_>>());
            assert_eq!(logged.ring.take_marked(), pages);
            assert_eq!(logged.ring.take_marked(), 0);
        }
    }

    #[test]
    fn elements_and_index_are_marked_by_their_publication() {
        let mut logged = Logged::new(Features::EVENT_IDX);
        logged.take();
        for number in 0..1500u32 {
            logged.driver.add(&[(BUFFERS, 8, true)]);
            let head = logged.ring.pop().unwrap().unwrap();
            logged.ring.push_used(head, 8);
            assert!(logged.take().is_empty(), "not before its publication");
            logged.ring.publish();
            let slot = u64::from(number) % u64::from(SIZE);
            let element = [4 + slot * 8, 4 + slot * 8 + 7].map(|at| at / LOG_PAGE);
            let expected: BTreeSet<_> = element.into_iter().chain([0]).collect();
            assert_eq!(logged.take_used(), Vec::from_iter(expected), "element {slot}");
        }
    }

    #[test]
    fn a_batch_around_the_end_marks_both_ends() {
        let mut logged = Logged::new(Features::empty());
        for count in [SIZE - 10, 20] {
            logged.take();
            for _ in 0..count {
                logged.driver.add(&[(BUFFERS, 8, true)]);
                let head = logged.ring.pop().unwrap().unwrap();
                logged.ring.push_used(head, 8);
            }
            logged.ring.publish();
        }
        assert_eq!(logged.take_used(), [0, 1, 2]);
    }

    #[test]
    fn wishes_for_kicks_are_marked_where_they_are() {
        for (features, page) in [(Features::empty(), 0), (Features::EVENT_IDX, 2)] {
            let mut logged = Logged::new(features);
            logged.take();
            logged.ring.enable_kicks().unwrap();
            assert_eq!(logged.take_used(), [page]);
            logged.ring.disable_kicks();
            let written = if page == 0 { vec![0] } else { vec![] };
            assert_eq!(logged.take_used(), written);
        }
    }

    #[test]
    fn buffers_are_marked_as_far_as_they_are_written() {
        let mut logged = Logged::new(Features::empty());
        logged.take();
        logged.driver.add(&[(BUFFERS + 0xff0, 0x20, true), (BUFFERS + 0x8000, 0x3000, true)]);
        let head = logged.ring.pop().unwrap().unwrap();
        let mut parts = Vec::new();
        logged.ring.walk(head, |part, _| parts.push(part)).unwrap();
        let page = |offset: u64| (BUFFERS + offset) / LOG_PAGE;
        for (len, pages) in [
            (0, vec![]),
            (0x10, vec![page(0)]),
            (0x11, vec![page(0), page(0x1000)]),
            (0x20, vec![page(0), page(0x1000)]),
            (0x21, vec![page(0), page(0x1000), page(0x8000)]),
            (0x1021, vec![page(0), page(0x1000), page(0x8000), page(0x9000)]),
        ] {
            logged.ring.mark_written(&parts, len);
            assert_eq!(Vec::from_iter(logged.take()), pages, "{len:#x} bytes");
        }
    }

    #[test]
    fn without_a_log_nothing_is_marked() {
        let mut driver = Driver::new(4, Features::empty());
        let mut ring = driver.ring();
        ring.log_used_at(USED);
        driver.add(&[(BUFFERS, 8, true)]);
        let head = ring.pop().unwrap().unwrap();
        ring.push_used(head, 8);
        ring.publish();
        assert!(!ring.is_logged());
        assert_eq!(ring.take_marked(), 0);
    }
}
