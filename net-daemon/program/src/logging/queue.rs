//! Lines that wait for the thread that writes them.

use std::collections::VecDeque;
use std::time::Instant;

use log::Level;

use super::bounds::{Bounds, Kind};
use super::{Format, json};

/// Bytes that may wait: some ten thousand lines.
const ROOM: usize = 1 << 20;

/// What waits in a queue.
#[derive(Debug)]
enum Entry {
    Line(Vec<u8>),
    /// As many lines for which there was no room.
    Lost(u64),
}

/// The queue, and what may enter it.
#[derive(Debug)]
pub(super) struct Lines {
    entries: VecDeque<Entry>,
    /// Of the lines among them.
    bytes: usize,
    /// One is being written.
    writing: bool,
    /// How many could not be written, since the last one that could.
    failed: u64,
    /// A thread writes them.
    served: bool,
    bounds: Option<Bounds>,
    /// Of what this says of itself.
    pub(super) format: Format,
    /// What the thread that writes does before its next line.
    pub(super) task: Option<fn()>,
    /// It has done that.
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

    /// Bounds the lines in a time from now on.
    pub(super) fn bound(&mut self, bounds: Bounds) {
        self.bounds = Some(bounds);
    }

    /// Whether a line may be pushed. Asked before it is made, as one that may not costs nothing then.
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

    /// Adds a line that was admitted.
    pub(super) fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len();
        self.entries.push_back(Entry::Line(line));
    }

    /// Whether there is something to take.
    pub(super) fn is_waiting(&self) -> bool {
        !self.entries.is_empty()
    }

    /// Takes the next line, until [`Lines::taken`] is told whether it is written.
    pub(super) fn take(&mut self) -> Option<Vec<u8>> {
        let mut line = match self.entries.pop_front()? {
            Entry::Line(line) => {
                self.bytes -= line.len();
                line
            }
            Entry::Lost(count) => self.notice(count, "lost, as nobody has read them"),
        };
        if self.failed > 0 {
            line.splice(..0, self.notice(self.failed, "could not be written"));
        }
        self.writing = true;
        Some(line)
    }

    /// The line that was taken is written, or cannot be.
    pub(super) fn taken(&mut self, written: bool) {
        self.writing = false;
        self.failed = if written { 0 } else { self.failed + 1 };
    }

    /// Whether everything is written.
    pub(super) fn is_written(&self) -> bool {
        self.entries.is_empty() && !self.writing
    }

    /// Whether a thread writes what waits.
    pub(super) fn is_served(&self) -> bool {
        self.served
    }

    /// Whether a thread writes what waits from now on.
    pub(super) fn set_served(&mut self, served: bool) {
        self.served = served;
    }

    /// Forgets what waits, and the thread.
    pub(super) fn forget(&mut self) {
        *self = Lines { bounds: self.bounds.take(), format: self.format, ..Lines::new() };
    }

    /// A line of the log about the log.
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
        assert!(lines.admit(Kind::End, now), "the end is always told");
        lines.push(b"told to end".to_vec());
        for _ in 0..ROOM / line.len() {
            assert_eq!(take(&mut lines).len(), line.len());
        }
        assert_eq!(take(&mut lines), "(2 lines of this log lost, as nobody has read them)\n");
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
