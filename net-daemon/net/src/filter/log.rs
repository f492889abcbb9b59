//! The list of refused frames, for people: who wanted to reach whom, how often, and since when.
//!
//! It is bounded, and entries give way to newer ones. Nothing waits for it: a thread that finds it in use
//! leaves its frame out. The counts of [`Filter::refused`](volt_filter::verdict::Filter::refused) include all
//! frames.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use volt_filter::Way;
use volt_filter::reason::Reason;
use volt_filter::summary::Summary;

/// Entries are sorted into so many sets by a hash, so that a look-up compares few entries.
const SETS: usize = 32;
/// Entries of a set.
const ENTRIES: usize = 8;

/// What entries differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The frames' way.
    pub way: Way,
    /// Why they were refused.
    pub reason: Reason,
    /// Whether they were refused; otherwise they passed and were noted.
    pub refused: bool,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// The other end: the destination of the guest's frames, the source of frames to the guest.
    pub peer: Option<IpAddr>,
    /// Destination port.
    pub port: Option<u16>,
}

/// Frames that are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What they have in common.
    pub subject: Subject,
    /// The last one of them.
    pub last_frame: Summary,
    /// Their number.
    pub count: u64,
    /// Time of the first and of the last one, in milliseconds since 1970.
    pub times: [u64; 2],
}

/// The list.
#[derive(Debug, Default)]
pub struct RefusalLog {
    hash: RandomState,
    sets: Mutex<Box<[[Option<Refused>; ENTRIES]; SETS]>>,
}

impl RefusalLog {
    /// Adds a frame, whose first bytes are in `frame`.
    pub(super) fn add(&self, way: Way, reason: Reason, refused: bool, frame: &[u8]) {
        let Ok(mut sets) = self.sets.try_lock() else { return };
        let frame = Summary::of(way, frame);
        let port = frame.ports.map(|(_, to)| to);
        let subject = Subject { way, reason, refused, protocol: frame.protocol, peer: frame.peer(), port };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let set = &mut sets[self.hash.hash_one(subject) as usize % SETS];
        if let Some(known) = set.iter_mut().flatten().find(|known| known.subject == subject) {
            known.count += 1;
            known.times[1] = now;
            known.last_frame = frame;
            return;
        }
        // The first of an empty place and the entry that was idle for longest.
        let oldest = set.iter_mut().min_by_key(|entry| entry.as_ref().map_or(0, |known| known.times[1]));
        if let Some(place) = oldest {
            *place = Some(Refused { subject, last_frame: frame, count: 1, times: [now; 2] });
        }
    }

    /// Returns the entries, that with the newest frame last.
    pub fn entries(&self) -> Vec<Refused> {
        let sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries: Vec<_> = sets.iter().flatten().copied().flatten().collect();
        drop(sets);
        entries.sort_by_key(|entry| entry.times[1]);
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Summary::of` sees nothing in an empty frame, so that entries differ by way and reason only.
    #[test]
    fn frames_that_are_alike_share_an_entry() {
        let log = RefusalLog::default();
        for _ in 0..3 {
            log.add(Way::Out, Reason::Vlan, true, &[]);
        }
        log.add(Way::In, Reason::Vlan, true, &[]);
        log.add(Way::Out, Reason::Vlan, false, &[]);
        let counts: Vec<_> = log.entries().iter().map(|entry| entry.count).collect();
        assert_eq!((counts.len(), counts.iter().sum::<u64>(), counts.contains(&3)), (3, 5, true));
        let entries = log.entries();
        assert!(entries.iter().all(|entry| entry.times[0] <= entry.times[1]));
        assert!(entries.is_sorted_by_key(|entry| entry.times[1]));
    }

    #[test]
    fn the_list_is_bounded_and_nobody_waits_for_it() {
        let log = RefusalLog::default();
        for reason in Reason::ALL.iter().cycle().take(3 * SETS * ENTRIES) {
            for way in Way::BOTH {
                log.add(way, *reason, true, &[]);
            }
        }
        assert!(log.entries().len() <= SETS * ENTRIES);
        let counted = log.entries().iter().map(|entry| entry.count).sum::<u64>();
        let held = log.sets.lock().unwrap();
        log.add(Way::Out, Reason::Vlan, true, &[]);
        drop(held);
        assert_eq!(log.entries().iter().map(|entry| entry.count).sum::<u64>(), counted);
    }
}
