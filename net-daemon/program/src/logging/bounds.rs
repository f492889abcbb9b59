//! The limit on the rate of lines.

use std::time::{Duration, Instant};

/// Highest number of lines of a kind in a [`WINDOW`].
const LINES: u32 = 200;
const WINDOW: Duration = Duration::from_secs(10);

/// Kinds of lines with separate limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Lines at the levels info, debug and trace.
    Story,
    /// Warnings and errors. Other lines cannot displace them.
    Warning,
    /// Lines about the program's end. They have no limit.
    End,
}

/// Number of lines in the current window.
#[derive(Debug)]
pub(super) struct Bounds {
    start: Instant,
    story: u32,
    warnings: u32,
    left_out: u64,
}

impl Bounds {
    pub(super) fn new(now: Instant) -> Bounds {
        Bounds { start: now, story: 0, warnings: 0, left_out: 0 }
    }

    /// Counts a line, and returns whether it is within the limit.
    pub(super) fn take(&mut self, kind: Kind, now: Instant) -> bool {
        if now.duration_since(self.start) >= WINDOW {
            *self = Bounds { left_out: self.left_out, ..Bounds::new(now) };
        }
        let lines = match kind {
            Kind::Story => &mut self.story,
            Kind::Warning => &mut self.warnings,
            Kind::End => return true,
        };
        *lines = lines.saturating_add(1);
        let fits = *lines <= LINES;
        self.left_out += u64::from(!fits);
        fits
    }

    /// Returns the number of lines left out since the last call, once a line of `kind` may report it: in the
    /// next window, or at the program's end.
    pub(super) fn left_out(&mut self, kind: Kind) -> Option<u64> {
        let tell = kind == Kind::End || (self.story <= LINES && self.warnings <= LINES);
        (tell && self.left_out > 0).then(|| std::mem::take(&mut self.left_out))
    }

    /// Returns the reason for left-out lines.
    pub(super) fn why() -> String {
        format!("left out: more than {LINES} in {} s", WINDOW.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(bounds: &mut Bounds, kind: Kind, lines: usize, now: Instant) -> usize {
        (0..lines).filter(|_| bounds.take(kind, now)).count()
    }

    #[test]
    fn a_flood_is_cut_off_and_told() {
        let start = Instant::now();
        let mut bounds = Bounds::new(start);
        assert_eq!(count(&mut bounds, Kind::Story, 1000, start), LINES as usize);
        assert_eq!(bounds.left_out(Kind::Story), None, "not in the middle of it");
        assert!(bounds.take(Kind::Story, start + WINDOW));
        assert_eq!(bounds.left_out(Kind::Story), Some(1000 - u64::from(LINES)));
        assert_eq!(bounds.left_out(Kind::Story), None, "told once");
        assert!(bounds.take(Kind::Story, start + 2 * WINDOW));
    }

    #[test]
    fn what_happens_leaves_no_warning_out() {
        let start = Instant::now();
        let mut bounds = Bounds::new(start);
        count(&mut bounds, Kind::Story, 1000, start);
        assert_eq!(
            count(&mut bounds, Kind::Warning, 1000, start),
            LINES as usize,
            "a guest can cause warnings in a loop"
        );
        assert_eq!(count(&mut bounds, Kind::End, 1000, start), 1000);
        assert_eq!(bounds.left_out(Kind::End), Some(2 * (1000 - u64::from(LINES))));
    }
}
