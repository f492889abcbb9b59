//! Complaints about a guest, a peer or an image: all counted, few logged.

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use volt_virtio::error_chain;

/// Least time between two lines of one counter.
const QUIET: Duration = Duration::from_secs(5);

/// Most lines in that time that a guest brings about, by any means.
const LINES: u32 = 20;

/// The lines of the whole process.
static BUDGET: LogBudget = LogBudget::new();

/// Whether a line that the guest brought about, and can bring about again by resetting its device, may be
/// logged: twenty may in five seconds.
pub fn may_log() -> bool {
    BUDGET.take()
}

/// Lines in the present window of time.
pub(crate) struct LogBudget(Mutex<Option<(Instant, u32)>>);

impl LogBudget {
    /// A whole one.
    pub(crate) const fn new() -> LogBudget {
        LogBudget(Mutex::new(None))
    }

    /// Whether there is another line in it, which is spent then.
    pub(crate) fn take(&self) -> bool {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (start, lines) =
            window.filter(|(start, _)| now.duration_since(*start) < QUIET).unwrap_or((now, 0));
        *window = Some((start, lines.saturating_add(1)));
        lines < LINES
    }
}

/// Counts faults of one kind, and logs the first and then at most one every five seconds, so that a
/// hostile guest cannot fill the host's log.
pub struct Faults {
    label: String,
    total: u64,
    last_line: Option<Instant>,
}

impl Faults {
    /// A counter at zero; `label` begins each line.
    pub fn new(label: impl Into<String>) -> Faults {
        Faults { label: label.into(), total: 0, last_line: None }
    }

    /// Faults so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Counts `fault`, and perhaps logs it with its sources.
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
