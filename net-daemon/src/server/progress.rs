//! Checks whether queue pairs make progress, for status, metrics and the watchdog.
//!
//! Each check asks the pairs' threads for a report, and compares their counters with those of the last check.
//! A pair makes no progress if, for [`PATIENCE`] and over [`LOOKS`] checks, a counter does not move while its
//! thread does not answer, or while its transmit ring has frames and waits for nothing. With each report, a
//! thread also tries its receive ring, so only a thread that does not answer leaves a frame there.
//!
//! Checks happen only on request: an idle daemon does not wake up for them.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use log::{info, warn};
use volt_net::counters::Counters;
use volt_net::report::{PairReport, RingReport};

use super::Server;

/// Total time for all threads to report; a check continues without the missing reports. Each thread answers
/// between two batches of frames.
const LIMIT: Duration = Duration::from_millis(200);
/// Time without progress after which a pair counts as stuck.
const PATIENCE: Duration = Duration::from_secs(5);
/// Number of checks in a row that must see no progress: the process may not have run between two of them, for
/// instance because the machine was suspended.
const LOOKS: u32 = 3;

/// The progress of all pairs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pairs: Vec<PairProgress>,
}

impl Progress {
    /// Returns the progress of the data vring with this number.
    pub(super) fn of(&self, vring: usize) -> Option<&Half> {
        self.pairs.get(vring / 2).map(|pair| &pair.halves[vring % 2])
    }
}

/// The progress of a pair.
#[derive(Debug, Default)]
struct PairProgress {
    /// A pending report.
    asked: Option<Receiver<PairReport>>,
    /// Receive and transmit.
    halves: [Half; 2],
    told: bool,
}

/// The progress of one vring.
#[derive(Debug, Default)]
pub(super) struct Half {
    /// The last report of its thread.
    pub(super) report: Option<RingReport>,
    /// The counter at the last check.
    count: u64,
    /// The last check that saw the counter move.
    moved: Option<Instant>,
    /// The number of checks in a row that saw no progress where they should, and the time of the first.
    stuck: Option<(u32, Instant)>,
}

impl Half {
    /// Returns the time since a check last saw the counter move.
    pub(super) fn idle(&self, now: Instant) -> Option<Duration> {
        self.moved.map(|moved| now.saturating_duration_since(moved))
    }

    /// Returns whether the vring should make progress and does not.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.is_some_and(|(looks, since)| looks >= LOOKS && since.elapsed() >= PATIENCE)
    }

    /// Records a check at `now` with this `count`; `should` tells whether the counter should move.
    fn seen(&mut self, count: u64, should: bool, now: Instant) {
        let first = self.moved.is_none();
        if first || count != self.count {
            (self.count, self.moved) = (count, Some(now));
        } else if should {
            let (looks, since) = self.stuck.unwrap_or((0, now));
            self.stuck = Some((looks + 1, since));
            return;
        }
        self.stuck = None;
    }
}

impl PairProgress {
    /// Records a check at `now` with these `counters`; `silent` if the thread has not answered.
    fn seen(&mut self, counters: &Counters, silent: bool, now: Instant) {
        let counts = [counters.rx_served(), counters.tx_served()];
        let has_frames = self.halves[1].report.is_some_and(|report| report.available > 0 && !report.waits);
        for ((half, count), should) in self.halves.iter_mut().zip(counts).zip([silent, silent || has_frames])
        {
            half.seen(count, should, now);
        }
    }

    /// Logs that the pair has stopped making progress, or makes progress again.
    fn tell(&mut self, pair: usize, silent: bool) {
        let stuck = self.halves.iter().any(Half::is_stuck);
        if stuck && !self.told {
            let why = if silent { "its thread does not answer" } else { "its transmit ring holds frames" };
            warn!(
                event = "no_progress", pair;
                "queue pair {pair} makes no progress: {why}; restart the daemon to serve it again"
            );
        } else if self.told && !stuck {
            info!(event = "progress_again", pair; "queue pair {pair} makes progress again");
        }
        self.told = stuck;
    }
}

impl Server {
    /// Checks all running pairs.
    pub(super) fn look(&mut self) {
        let pairs = self.device.pairs();
        self.progress.pairs.resize_with(pairs, PairProgress::default);
        let known = self.progress.pairs.iter_mut();
        for (pair, known) in known.enumerate() {
            if !self.device.runs(pair) {
                *known = PairProgress::default();
            } else if known.asked.is_none() {
                known.asked = self.device.ask_report(pair);
            }
        }
        let deadline = Instant::now() + LIMIT;
        for (pair, known) in self.progress.pairs.iter_mut().enumerate() {
            let Some(asked) = &known.asked else { continue };
            let answer = asked.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            let silent = answer.is_err();
            if !matches!(answer, Err(RecvTimeoutError::Timeout)) {
                known.asked = None;
            }
            if let Ok(PairReport { rx, tx }) = answer {
                (known.halves[0].report, known.halves[1].report) = (rx, tx);
            }
            known.seen(self.device.counters(pair), silent, Instant::now());
            known.tell(pair, silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vring counts as stuck after several checks over some time: not after one check, nor after a pause
    /// without checks.
    #[test]
    fn what_does_not_move_for_some_time_is_stuck() {
        let began = Instant::now().checked_sub(10 * PATIENCE).unwrap();
        let mut half = Half::default();
        half.seen(7, true, began);
        assert!(!half.is_stuck() && half.idle(began) == Some(Duration::ZERO));
        half.seen(7, true, began + PATIENCE);
        half.seen(7, true, began + 2 * PATIENCE);
        assert!(!half.is_stuck(), "seen twice");
        half.seen(7, true, began + 3 * PATIENCE);
        assert!(half.is_stuck());
        assert_eq!(half.idle(began + 3 * PATIENCE), Some(3 * PATIENCE));
        half.seen(8, true, began + 4 * PATIENCE);
        assert!(!half.is_stuck(), "it moved");
        for look in 0..3 {
            half.seen(8, look != 1, began + (5 + look) * PATIENCE);
        }
        assert!(!half.is_stuck(), "it had nothing to do in between");
        let now = Instant::now();
        (0..9).for_each(|_| half.seen(8, true, now));
        half.seen(9, false, now);
        (0..9).for_each(|_| half.seen(9, true, now));
        assert!(!half.is_stuck(), "seen often in a short time");
    }
}
