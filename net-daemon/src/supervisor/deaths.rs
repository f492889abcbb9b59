//! What a supervisor learns from the deaths of its workers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::warn;
use volt_net::crash_note::REQUESTS;

/// A worker that lived at least so long, or has ended a request, has not died at once.
const SETTLED: Duration = Duration::from_millis(200);
/// A second violation of the sandbox within this time is the last one.
const VIOLATIONS: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);
/// A note of the same index counts as the same chain only for a worker that has served fewer than the largest
/// ring holds.
const SAME: u32 = 32768;

/// What is known of deaths.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    pub(super) restarts: u64,
    /// How long to wait before the next worker.
    pub(super) backoff: Duration,
    /// Indexes that were being served when the last worker died, by vring.
    suspects: BTreeMap<usize, u16>,
    /// Indexes of chains that were being served when two workers died.
    pub(super) deadly: BTreeMap<usize, u16>,
    /// Two workers died of the same request.
    pub(super) bad_request: bool,
    /// The worker has ended a request.
    pub(super) worked: bool,
    /// When a worker violated its sandbox last.
    violated: Option<Instant>,
}

impl Deaths {
    /// Adds one, of a worker that has left these notes (vring, index, chains served before) and lived so
    /// long.
    pub(super) fn add(&mut self, notes: Vec<(usize, u16, u32)>, lived: Duration) {
        self.restarts += 1;
        for (vring, index, served) in &notes {
            let again = self.suspects.get(vring) == Some(index);
            if *vring == REQUESTS {
                // The first one of a worker is the one that the last worker died of.
                self.bad_request = again && *served == 0;
            } else if again && *served < SAME {
                self.deadly.insert(*vring, *index);
            }
        }
        self.suspects = notes.into_iter().map(|(vring, index, _)| (vring, index)).collect();
        self.backoff = match self.backoff {
            _ if lived >= SETTLED || self.worked => Duration::ZERO,
            Duration::ZERO if self.restarts == 1 => Duration::ZERO,
            last => (2 * last).clamp(SHORTEST, LONGEST),
        };
    }

    /// A worker has violated its sandbox. Whether one has shortly before: whoever does it on purpose would
    /// try for ever.
    pub(super) fn violates_again(&mut self) -> bool {
        self.violated.replace(Instant::now()).is_some_and(|last| last.elapsed() < VIOLATIONS)
    }

    /// Tells the log what is done about them.
    pub(super) fn tell(&self) {
        for (vring, index) in &self.deadly {
            warn!(
                event = "deadly_chain", vring, index;
                "vring {vring}: the chain at index {index} ended two workers: it will be returned unserved"
            );
        }
        if self.bad_request {
            warn!(
                event = "deadly_request";
                "a request of the front-end ended two workers: its connection is closed"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(1);
    const SHORT: Duration = Duration::from_millis(1);

    #[test]
    fn a_chain_is_deadly_the_second_time_and_only_if_it_can_be_the_same() {
        let mut deaths = Deaths::default();
        deaths.add(vec![(1, 7, 100)], LONG);
        assert!(deaths.deadly.is_empty());
        deaths.add(vec![(1, 8, 1), (3, 7, 1)], LONG);
        assert!(deaths.deadly.is_empty());
        deaths.add(vec![(1, 8, SAME)], LONG);
        assert!(deaths.deadly.is_empty(), "65536 chains later");
        deaths.add(vec![(1, 8, 3)], LONG);
        assert_eq!(deaths.deadly, BTreeMap::from([(1, 8)]));
    }

    #[test]
    fn a_request_is_bad_if_the_next_worker_dies_of_its_first_one() {
        let mut deaths = Deaths::default();
        for (served, bad) in [(5, false), (4, false), (0, true)] {
            deaths.add(vec![(REQUESTS, 0, served)], LONG);
            assert_eq!(deaths.bad_request, bad, "{served}");
        }
    }

    #[test]
    fn only_workers_that_did_nothing_are_waited_for() {
        let mut deaths = Deaths::default();
        let mut wait = |lived, worked| {
            deaths.worked = worked;
            deaths.add(Vec::new(), lived);
            deaths.backoff.as_millis()
        };
        assert_eq!([wait(SHORT, false), wait(SHORT, false), wait(SHORT, false)], [0, 10, 20]);
        assert_eq!([wait(SHORT, true), wait(SHORT, false), wait(LONG, false)], [0, 10, 0]);
        let last = (0..20).map(|_| wait(SHORT, false)).last();
        assert_eq!(last, Some(1000));
    }
}
