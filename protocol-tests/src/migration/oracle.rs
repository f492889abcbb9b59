//! Finds marks that are missing in a log of written pages.
//!
//! An [`Oracle`] keeps a copy of guest memory, as the destination of a migration does, and brings it up to
//! date with the marked pages only ([`Oracle::pass`]). Every published byte that differs from the copy must
//! be in a marked page ([`Oracle::check`]): otherwise the guest would lose it when it moves. Published bytes
//! are used rings, used buffers as far as they were written, and answers of a control queue. The driver's own
//! writes are its front-end's business, and buffers that were not used may differ.

use crate::memory::GuestMemory;
use crate::nic::Nic;
use crate::wire::feature;

use crate::dirty_log::{DirtyLog, PAGE, pages};

/// A range of guest memory whose pages are marked as if it was at another address.
#[derive(Clone, Copy, Debug)]
struct Range {
    at: u64,
    len: u64,
    /// Guest address in the log.
    log: u64,
}

impl Range {
    /// Returns the pieces of the range that have one page of the log each, with that page.
    fn pieces(self) -> impl Iterator<Item = (u64, u64, u64)> {
        pages(self.log, self.len).map(move |page| {
            let from = (page * PAGE).max(self.log);
            let to = ((page + 1) * PAGE).min(self.log + self.len);
            (page, self.at + (from - self.log), to - from)
        })
    }
}

/// A copy of guest memory that follows the log.
#[derive(Debug)]
pub struct Oracle {
    guest: GuestMemory,
    copy: GuestMemory,
    rings: Vec<Range>,
    /// Marked pages that [`Oracle::pass`] found.
    pub marked: u64,
    /// Those of them in which nothing had changed.
    pub idle: u64,
}

impl Oracle {
    /// Copies the memory of `nic`, whose used rings are logged at their own addresses plus `shift`. Logging
    /// must be on already: a migration copies all memory after that.
    ///
    /// # Errors
    ///
    /// Fails without memory for the copy.
    pub fn new(nic: &Nic, shift: u64) -> std::io::Result<Oracle> {
        let event = if nic.features & feature::EVENT_IDX != 0 { 2 } else { 0 };
        let ring = |layout: crate::ring::Layout| Range {
            at: layout.used,
            len: 4 + 8 * u64::from(layout.size) + event,
            log: layout.used + shift,
        };
        let rings = nic.queues.iter().map(|queue| ring(queue.ring.layout())).collect();
        let (guest, copy) = (nic.mem.clone(), GuestMemory::new(&nic.mem.specs())?);
        let oracle = Oracle { guest, copy, rings, marked: 0, idle: 0 };
        for spec in oracle.guest.specs() {
            oracle.renew(spec.guest, spec.size);
        }
        Ok(oracle)
    }

    /// Copies a range. Returns whether it had changed.
    fn renew(&self, at: u64, len: u64) -> bool {
        let changed = self.differs(at, len);
        if changed {
            self.copy.write(at, &self.guest.read(at, len as usize));
        }
        changed
    }

    fn differs(&self, at: u64, len: u64) -> bool {
        self.guest.read(at, len as usize) != self.copy.read(at, len as usize)
    }

    /// Copies what the driver itself wrote.
    pub fn driver_wrote(&self, at: u64, len: u64) {
        self.renew(at, len);
    }

    /// Takes the marks out of the log, and copies their pages.
    pub fn pass(&mut self, log: &DirtyLog) {
        let taken = log.take();
        self.marked += taken.len() as u64;
        for page in taken {
            let mut changed = false;
            for spec in self.guest.specs() {
                let (from, to) =
                    (spec.guest.max(page * PAGE), (spec.guest + spec.size).min((page + 1) * PAGE));
                changed |= from < to && self.renew(from, to - from);
            }
            for ring in &self.rings {
                for (_, at, len) in ring.pieces().filter(|(of, ..)| *of == page) {
                    changed |= self.renew(at, len);
                }
            }
            self.idle += u64::from(!changed);
        }
    }

    /// Returns the pages of the log whose marks are missing: for the used rings, and for the `published`
    /// ranges (guest address and length). Empty if a migration would lose nothing.
    pub fn missing(&self, log: &DirtyLog, published: &[(u64, u64)]) -> Vec<u64> {
        let published = published.iter().map(|&(at, len)| Range { at, len, log: at });
        let ranges = published.chain(self.rings.iter().copied());
        let changed = ranges.filter(|range| self.differs(range.at, range.len));
        let lost = |&(page, at, len): &(u64, u64, u64)| self.differs(at, len) && !log.has(page);
        changed.flat_map(Range::pieces).filter(lost).map(|(page, ..)| page).collect()
    }

    /// Whether a page of the log belongs to a used ring.
    pub fn is_ring(&self, page: u64) -> bool {
        self.rings.iter().any(|ring| pages(ring.log, ring.len).contains(&page))
    }

    /// Checks like [`Oracle::missing`], for a back-end that may be between the store of an index and its
    /// mark: waits for marks until `limit` has passed.
    ///
    /// # Errors
    ///
    /// Names the pages without a mark.
    pub fn check(
        &self,
        log: &DirtyLog,
        published: &[(u64, u64)],
        limit: std::time::Duration,
    ) -> Result<(), String> {
        let mut missing = self.missing(log, published);
        if !missing.is_empty() {
            let all = || Some(self.missing(log, published)).filter(Vec::is_empty);
            missing = crate::daemon::poll_until(limit, all).unwrap_or(missing);
        }
        if missing.is_empty() { Ok(()) } else { Err(format!("no mark for pages {missing:x?}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Setup;

    fn nic() -> Nic {
        Setup { size: 1024, ..Setup::default() }.nic(Setup::default().features).expect("a card")
    }

    /// Writes like a back-end.
    fn write(nic: &Nic, at: u64) {
        nic.mem.write(at, &[7]);
    }

    #[test]
    fn a_published_byte_without_a_mark_is_found() {
        let nic = nic();
        let (used, log) = (nic.queues[0].ring.layout().used, DirtyLog::covering(1 << 27).expect("a log"));
        let buffer = 0x80_0000;
        let mut oracle = Oracle::new(&nic, 0).expect("memory");
        assert!(oracle.missing(&log, &[(buffer, 0x3000)]).is_empty());
        write(&nic, buffer + 0x1000);
        assert!(oracle.missing(&log, &[]).is_empty(), "not published");
        assert_eq!(oracle.missing(&log, &[(buffer, 0x3000)]), [buffer / PAGE + 1]);
        assert!(oracle.missing(&log, &[(buffer, 0x1000)]).is_empty(), "not as far as that");
        write(&nic, used + 0x1002);
        assert_eq!(oracle.missing(&log, &[]), [(used + 0x1002) / PAGE]);
        assert!(oracle.is_ring((used + 0x1002) / PAGE) && !oracle.is_ring(buffer / PAGE));
        oracle.pass(&log);
        assert_eq!(oracle.missing(&log, &[]).len(), 1, "no mark, no copy");
        oracle.driver_wrote(used + 0x1002, 1);
        assert!(oracle.missing(&log, &[]).is_empty());
    }

    #[test]
    fn a_ring_is_looked_for_where_it_is_logged() {
        let nic = nic();
        let used = nic.queues[1].ring.layout().used;
        let shift = 1 << 26;
        let oracle = Oracle::new(&nic, shift).expect("memory");
        let log = DirtyLog::covering(1 << 28).expect("a log");
        write(&nic, used + 2);
        assert_eq!(oracle.missing(&log, &[]), [(used + 2 + shift) / PAGE]);
    }
}
