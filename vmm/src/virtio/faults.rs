//! Complaints about a guest, a peer or an image: all counted, few logged.

use std::error::Error;
use std::time::{Duration, Instant};

use log::warn;

/// Least time between two lines of one counter.
const QUIET: Duration = Duration::from_secs(5);

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
        self.last_line = Some(Instant::now());
        warn!("{}: {} ({} so far)", self.label, chain(fault), self.total);
    }
}

/// An error and its sources in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
