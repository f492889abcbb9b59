//! Whether queue pairs make progress, for status, metrics and the watchdog.
//!
//! Each look asks the threads of the pairs to report, and compares what they have counted with the look
//! before. A thread that has not answered, or a transmit ring that has frames, waits for nobody and has not
//! moved, for [`PATIENCE`] and over [`LOOKS`] looks, makes no progress. Receive rings are tried with each
//! report, so that only a thread that does not answer leaves a frame there.
//!
//! Nobody looks where nobody asks: an idle daemon does not wake up for it.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use log::{info, warn};
use volt_net::counters::Counters;
use volt_net::report::{PairReport, RingReport};

use super::Server;

/// How long all threads together may take to report before a look goes on without those that have not. Each
/// answers between two batches of frames.
const LIMIT: Duration = Duration::from_millis(200);
/// How long a pair may not move before that is told.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many looks in a row must have seen it so: the time between two may have passed without this process,
/// as where the machine was suspended.
const LOOKS: u32 = 3;

/// What is known of all pairs.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pairs: Vec<PairProgress>,
}

impl Progress {
    /// What is known of the data vring of this number.
    pub(super) fn of(&self, vring: usize) -> Option<&Half> {
        self.pairs.get(vring / 2).map(|pair| &pair.halves[vring % 2])
    }
}

/// What is known of a pair.
#[derive(Debug, Default)]
struct PairProgress {
    /// A report that was asked for.
    asked: Option<Receiver<PairReport>>,
    /// Receive and transmit.
    halves: [Half; 2],
    told: bool,
}

/// What is known of one vring.
#[derive(Debug, Default)]
pub(super) struct Half {
    /// As its thread reported last.
    pub(super) report: Option<RingReport>,
    /// What was counted at the last look, and when it had moved since the one before.
    count: u64,
    moved: Option<Instant>,
    /// Looks in a row, and since when, that have seen it not move although it should.
    stuck: Option<(u32, Instant)>,
}

impl Half {
    /// For how long it has not moved, as far as looks have seen.
    pub(super) fn idle(&self, now: Instant) -> Option<Duration> {
        self.moved.map(|moved| now.saturating_duration_since(moved))
    }

    /// Whether it should move, and does not.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.is_some_and(|(looks, since)| looks >= LOOKS && since.elapsed() >= PATIENCE)
    }

    /// A look at `now` sees this `count`, and whether it `should` move.
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
    /// Takes what `counters` and its thread say at `now`; `silent` if that has not answered.
    fn seen(&mut self, counters: &Counters, silent: bool, now: Instant) {
        let counts = [counters.rx_served(), counters.tx_served()];
        let has_frames = self.halves[1].report.is_some_and(|report| report.available > 0 && !report.waits);
        for ((half, count), should) in self.halves.iter_mut().zip(counts).zip([silent, silent || has_frames])
        {
            half.seen(count, should, now);
        }
    }

    /// Says that it does not move any more, or does again.
    fn tell(&mut self, pair: usize, silent: bool) {
        let stuck = self.halves.iter().any(Half::is_stuck);
        if stuck && !self.told {
            let why = if silent { "its thread does not answer" } else { "its transmit ring has frames" };
            warn!(
                event = "no_progress", pair;
                "queue pair {pair} makes no progress: {why}; a restart of the daemon serves it again"
            );
        } else if self.told && !stuck {
            info!(event = "progress_again", pair; "queue pair {pair} makes progress again");
        }
        self.told = stuck;
    }
}

impl Server {
    /// Looks at all pairs that run.
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

    /// Not once, not after a pause in which nobody looked, but when it goes on.
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
