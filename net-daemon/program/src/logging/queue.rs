//! The queue of lines for the log's thread.

use std::collections::VecDeque;
use std::time::Instant;

use log::Level;

use super::bounds::{Bounds, Kind};
use super::{Format, json};

/// Number of bytes in the queue: some ten thousand lines.
const ROOM: usize = 1 << 20;

/// An entry of the queue.
#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// This number of lines was lost because the queue was full.
    Lost(u64),
}

/// The queue and its limits.
#[derive(Debug)]
pub(super) struct Lines {
    entries: VecDeque<Entry>,
    /// Number of bytes of all lines in `entries`.
    bytes: usize,
    /// A line is being written.
    writing: bool,
    /// Number of lines that could not be written since the last successful one.
    failed: u64,
    /// The log's thread runs.
    served: bool,
    bounds: Option<Bounds>,
    /// Format of notices about missing lines.
    pub(super) format: Format,
    /// A task for the log's thread before its next line.
    pub(super) task: Option<fn()>,
    /// The thread has run its task.
    pub(super) settled: bool,
}

impl Lines {
    pub(super) const fn new() -> Lines {
        Lines {
            entries: VecDeque::new(),
            bytes: 0,
            writing: false,
            failed: 0,
            served: false,
            bounds: None,
            format: Format::Text,
            task: None,
            settled: false,
        }
    }

    /// Limits the rate of lines from now on.
    pub(super) fn bound(&mut self, bounds: Bounds) {
        self.bounds = Some(bounds);
    }

    /// Returns whether a line may be pushed. Call it before formatting the line, to save that for a line that
    /// is left out.
    pub(super) fn admit(&mut self, kind: Kind, now: Instant) -> bool {
        if self.bounds.as_mut().is_some_and(|bounds| !bounds.take(kind, now)) {
            return false;
        }
        if self.bytes >= ROOM && kind != Kind::End {
            match self.entries.back_mut() {
                Some(Entry::Lost(count)) => *count += 1,
                _ => self.entries.push_back(Entry::Lost(1)),
            }
            return false;
        }
        if let Some(count) = self.bounds.as_mut().and_then(|bounds| bounds.left_out(kind)) {
            self.push(self.notice(count, &Bounds::why()));
        }
        true
    }

    /// Adds an admitted line.
    pub(super) fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.entries.push_back(Entry::Line(line));
    }

    /// Returns whether there is an entry to take.
    pub(super) fn is_waiting(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Takes the next line. Call [`Lines::taken`] after writing it.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        let mut line = match self.entries.pop_front()? {
            Entry::Line(line) => {
                self.bytes -= line.len();
                line
            }
            Entry::Lost(count) => self.notice(count, "lost, because standard error was not read"),
        };
        if self.failed > 0 {
            line.splice(..0, self.notice(self.failed, "could not be written"));
        }
        self.writing = true;
        Some(line)
    }

    /// Records whether the taken line was written.
    pub(super) fn taken(&mut self, written: bool) {
        self.writing = false;
        self.failed = if written { 0 } else { self.failed + 1 };
    }

    /// Returns whether all lines are written.
    pub(super) fn is_written(&self) -> bool {
        self.entries.is_empty() && !self.writing
    }

    /// Returns whether the log's thread runs.
    pub(super) fn is_served(&self) -> bool {
        self.served
    }

    /// Records that the log's thread runs.
    pub(super) fn set_served(&mut self) {
        self.served = true;
    }

    /// Forgets all entries and the thread.
    pub(super) fn forget(&mut self) {
        *self = Lines { bounds: self.bounds.take(), format: self.format, ..Lines::new() };
    }

    /// Formats a notice about missing lines.
    fn notice(&self, count: u64, what: &str) -> Vec<u8> {
        let text = format!("({count} lines of this log {what})");
        match self.format {
            Format::Text => (text + "\n").into_bytes(),
            Format::Json => json::line(Level::Warn, Some("log_lines_missing"), &text, &[("lines", count)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(lines: &mut Lines) -> String {
        let line = lines.take().map(|line| String::from_utf8(line).unwrap());
        lines.taken(true);
        line.unwrap_or_default()
    }

    #[test]
    fn lines_without_room_are_counted_in_their_place() {
        let (mut lines, now) = (Lines::new(), Instant::now());
        let line = [b'x'; 1024];
        for _ in 0..ROOM / line.len() {
            assert!(lines.admit(Kind::Warning, now));
            lines.push(line.to_vec());
        }
        assert!(!lines.admit(Kind::Warning, now));
        assert!(!lines.admit(Kind::Story, now));
        assert!(lines.admit(Kind::End, now), "the end is always logged");
        lines.push(b"told to end".to_vec());
        for _ in 0..ROOM / line.len() {
            assert_eq!(take(&mut lines).len(), line.len());
        }
        assert_eq!(take(&mut lines), "(2 lines of this log lost, because standard error was not read)\n");
        assert_eq!(take(&mut lines), "told to end");
        assert!(lines.is_written());
        assert!(lines.admit(Kind::Story, now), "there is room again");
    }

    #[test]
    fn what_is_being_written_is_not_written() {
        let mut lines = Lines::new();
        lines.push(b"x".to_vec());
        assert!(lines.is_waiting());
        lines.take();
        assert!(!lines.is_waiting() && !lines.is_written());
        lines.taken(true);
        assert!(lines.is_written());
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted() {
        let mut lines = Lines::new();
        (0..3).for_each(|_| lines.push(b"x\n".to_vec()));
        for _ in 0..2 {
            lines.take();
            lines.taken(false);
        }
        assert_eq!(take(&mut lines), "(2 lines of this log could not be written)\nx\n");
    }

    #[test]
    fn what_is_missing_is_told_as_the_log_is() {
        let mut lines = Lines { format: Format::Json, ..Lines::new() };
        lines.entries.push_back(Entry::Lost(7));
        let notice: serde_json::Value = serde_json::from_str(&take(&mut lines)).unwrap();
        assert_eq!((&notice["event"], &notice["lines"]), (&"log_lines_missing".into(), &7.into()));
    }
}
