//! The supervisor's record of its workers' deaths.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use log::warn;
use volt_net::crash_note::REQUESTS;

/// A worker that lived this long, or has ended a request, has not died at once.
const SETTLED: Duration = Duration::from_millis(200);
/// After a second sandbox violation within this time, no new worker starts.
const VIOLATIONS: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);
/// A note with the same index means the same chain only if the worker has served fewer chains than the
/// largest ring holds.
const SAME: u32 = 32768;

/// The record of deaths.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    pub(super) restarts: u64,
    /// Time to wait before the next worker.
    pub(super) backoff: Duration,
    /// Indexes of the chains that the last worker served when it died, by vring.
    suspects: BTreeMap<usize, u16>,
    /// Indexes of the chains that two workers served when they died, by vring.
    pub(super) deadly: BTreeMap<usize, u16>,
    /// The same request has killed two workers.
    pub(super) bad_request: bool,
    /// The worker has ended a request.
    pub(super) worked: bool,
    /// Time of the last sandbox violation.
    violated: Option<Instant>,
}

impl Deaths {
    /// Adds the death of a worker with these notes (vring, index, chains served before) and this lifetime.
    pub(super) fn add(&mut self, notes: Vec<(usize, u16, u32)>, lived: Duration) {
        self.restarts += 1;
        for (vring, index, served) in &notes {
            let again = self.suspects.get(vring) == Some(index);
            if *vring == REQUESTS {
                // A worker's first request is the one that killed the last worker.
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

    /// Records a sandbox violation. Returns whether another one happened shortly before: an attacker would
    /// otherwise retry for ever.
    pub(super) fn violates_again(&mut self) -> bool {
        self.violated.replace(Instant::now()).is_some_and(|last| last.elapsed() < VIOLATIONS)
    }

    /// Logs how the next worker treats deadly chains and requests.
    pub(super) fn tell(&self) {
        for (vring, index) in &self.deadly {
            warn!(
                event = "deadly_chain", vring, index;
                "vring {vring}: the chain at index {index} killed two workers: it is returned unserved"
            );
        }
        if self.bad_request {
            warn!(
                event = "deadly_request";
                "a request of the front-end killed two workers: its connection is closed"
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
