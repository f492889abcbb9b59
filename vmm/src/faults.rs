//! Complaints about a guest, a peer or an image. All are counted, few are logged.

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use volt_virtio::error_chain;

/// Least time between two lines of one counter.
const QUIET: Duration = Duration::from_secs(5);

/// Most lines that a guest can cause in that time, by any means.
const LINES: u32 = 20;

/// The budget of the whole process.
static BUDGET: LogBudget = LogBudget::new();

/// Returns whether to log a line that the guest caused, and could cause again by a reset of its device. The
/// limit is 20 lines in 5 s.
pub fn may_log() -> bool {
    BUDGET.take()
}

/// The lines logged in the present window of time.
pub(crate) struct LogBudget(Mutex<Option<(Instant, u32)>>);

impl LogBudget {
    /// Returns a full budget.
    pub(crate) const fn new() -> LogBudget {
        LogBudget(Mutex::new(None))
    }

    /// Takes a line from the budget. Returns whether there was one.
    pub(crate) fn take(&self) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (start, lines) =
            window.filter(|(start, _)| now.duration_since(*start) < QUIET).unwrap_or((now, 0));
        *window = Some((start, lines.saturating_add(1)));
        lines < LINES
    }
}

/// Counts faults of one kind. Logs the first one, and then at most one every five seconds, so that a hostile
/// guest cannot fill the host's log.
pub struct Faults {
    label: String,
    total: u64,
    last_line: Option<Instant>,
}

impl Faults {
    /// Returns a counter at zero. `label` starts each line.
    pub fn new(label: impl Into<String>) -> Faults {
        Faults { label: label.into(), total: 0, last_line: None }
    }

    /// Returns the number of faults so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Counts `fault`. Logs it with its sources, if the limits allow.
    pub fn report(&mut self, fault: &dyn Error) {
        self.total += 1;
        if self.last_line.is_some_and(|last| last.elapsed() < QUIET) {
            return;
        }
        if !may_log() {
            return;
        }
        self.last_line = Some(Instant::now());
        warn!(
            event = "device_fault", device:% = self.label, total = self.total;
            "{}: {} ({} so far)", self.label, error_chain(fault), self.total
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off() {
        let budget = LogBudget::new();
        assert_eq!((0..1000).filter(|_| budget.take()).count(), LINES as usize);
    }

    #[test]
    fn all_faults_are_counted() {
        let mut faults = Faults::new("test");
        for _ in 0..3 {
            faults.report(&std::fmt::Error);
        }
        assert_eq!(faults.total(), 3);
    }
}
