//! How often and how long the back-end was away, and when it is tried again.

use std::time::{Duration, Instant};

/// What an operator wants to know about the link to a back-end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Since when the back-end is away; `None` while it is there.
    pub away_since: Option<Instant>,
    /// How often it has gone since the device was made.
    pub losses: u64,
    /// How long it was away, all absences together but for one that lasts.
    pub away_total: Duration,
}

impl LinkState {
    /// Whether a back-end is there, after its handshake.
    pub fn is_connected(&self) -> bool {
        self.away_since.is_none()
    }

    /// The back-end has gone at `now`.
    pub(super) fn lost(&mut self, now: Instant) {
        self.away_since = Some(now);
        self.losses += 1;
    }

    /// The back-end is back at `now`; answers how long it was away.
    pub(super) fn found(&mut self, now: Instant) -> Duration {
        let away = self.away_since.take().map_or(Duration::ZERO, |since| now.duration_since(since));
        self.away_total += away;
        away
    }
}

/// The time between two attempts: none before the first, then longer each time.
#[derive(Default)]
pub(super) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    const SHORTEST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(1);

    /// How long to wait before the next attempt.
    pub(super) fn delay(&mut self) -> Duration {
        let delay = match self.last {
            None => Duration::ZERO,
            Some(last) => (2 * last).clamp(Self::SHORTEST, Self::LONGEST),
        };
        self.last = Some(delay);
        delay
    }

    /// The next attempt is a first one again.
    pub(super) fn reset(&mut self) {
        self.last = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_at_once_then_ever_more_slowly_up_to_a_second() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..9).map(|_| backoff.delay().as_millis()).collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 320, 640, 1000]);
        assert_eq!(backoff.delay(), Duration::from_secs(1));
        backoff.reset();
        assert_eq!(backoff.delay(), Duration::ZERO);
    }

    #[test]
    fn absences_are_counted_and_added_up() {
        let (mut state, start) = (LinkState::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(state.is_connected());
        state.lost(at(1));
        assert!(!state.is_connected());
        assert_eq!(state.found(at(3)), Duration::from_secs(2));
        state.lost(at(4));
        state.found(at(9));
        assert_eq!((state.losses, state.away_total), (2, Duration::from_secs(7)));
        assert!(state.is_connected());
    }
}
