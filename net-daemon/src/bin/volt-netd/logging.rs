//! The log, to standard error: bounded, because guests and front-ends bring about what it says.
//!
//! A front-end that connects in a loop, or a guest that resets its device in a loop, would otherwise fill the
//! host's disk with lines that are each of interest.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};

/// Most lines in a [`WINDOW`].
const LINES: u32 = 200;
const WINDOW: Duration = Duration::from_secs(10);

/// Lines in the present window of time.
#[derive(Debug)]
struct Budget {
    start: Instant,
    lines: u32,
}

/// What to do with a line.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Write,
    /// Write it after saying how many were left out before.
    WriteAfter(u32),
    LeaveOut,
}

impl Budget {
    fn take(&mut self, now: Instant) -> Verdict {
        if now.duration_since(self.start) >= WINDOW {
            let left_out = self.lines.saturating_sub(LINES);
            *self = Budget { start: now, lines: 1 };
            return if left_out > 0 { Verdict::WriteAfter(left_out) } else { Verdict::Write };
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines <= LINES { Verdict::Write } else { Verdict::LeaveOut }
    }
}

/// A logger that leaves out what is too much.
struct Bounded {
    logger: env_logger::Logger,
    budget: Mutex<Budget>,
}

impl Log for Bounded {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.logger.matches(record) {
            return;
        }
        let verdict =
            self.budget.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take(Instant::now());
        match verdict {
            Verdict::LeaveOut => return,
            Verdict::WriteAfter(count) => {
                let arguments =
                    format_args!("{count} lines left out: more than {LINES} in {} s", WINDOW.as_secs());
                self.logger.log(&Record::builder().level(log::Level::Warn).args(arguments).build());
            }
            Verdict::Write => {}
        }
        self.logger.log(record);
    }

    fn flush(&self) {
        self.logger.flush();
    }
}

/// Logs from now on what `level` lets through; without bound from debug on, which is for somebody who looks.
pub(crate) fn init(level: LevelFilter) {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).format_target(false);
    if level >= LevelFilter::Debug {
        return builder.init();
    }
    let budget = Mutex::new(Budget { start: Instant::now(), lines: 0 });
    let logger = Bounded { logger: builder.build(), budget };
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_and_told() {
        let start = Instant::now();
        let mut budget = Budget { start, lines: 0 };
        let written = (0..1000).filter(|_| budget.take(start) == Verdict::Write).count();
        assert_eq!(written, LINES as usize);
        assert_eq!(budget.take(start + WINDOW), Verdict::WriteAfter(1000 - LINES));
        assert_eq!(budget.take(start + WINDOW), Verdict::Write);
        assert_eq!(budget.take(start + 2 * WINDOW), Verdict::Write);
    }
}
