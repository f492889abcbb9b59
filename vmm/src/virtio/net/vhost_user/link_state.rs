//! Counters of the back-end's absences, and the delays between attempts to reconnect.

use std::time::{Duration, Instant};

/// The state of the link to a back-end, for an operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Start of the present absence. `None` while the back-end is connected.
    pub away_since: Option<Instant>,
    /// How often the back-end disconnected since the device was created.
    pub losses: u64,
    /// Total time of all absences, without the present one.
    pub away_total: Duration,
}

impl LinkState {
    /// Returns whether a back-end is connected, and its handshake is done.
    pub fn is_connected(&self) -> bool {
        self.away_since.is_none()
    }

    /// Records that the back-end disconnected at `now`.
    pub(super) fn lost(&mut self, now: Instant) {
        self.away_since = Some(now);
        self.losses += 1;
    }

    /// Records that the back-end is back at `now`. Returns the length of the absence.
    pub(super) fn found(&mut self, now: Instant) -> Duration {
        let away = self.away_since.take().map_or(Duration::ZERO, |since| now.duration_since(since));
        self.away_total += away;
        away
    }
}

/// The delay between two attempts: none before the first, then longer each time.
#[derive(Default)]
pub(super) struct Backoff {
    last: Option<Duration>,
}

impl Backoff {
    const SHORTEST: Duration = Duration::from_millis(10);
    const LONGEST: Duration = Duration::from_secs(1);

    /// Returns the delay before the next attempt.
    pub(super) fn delay(&mut self) -> Duration {
        let delay = match self.last {
            None => Duration::ZERO,
            Some(last) => (2 * last).clamp(Self::SHORTEST, Self::LONGEST),
        };
        self.last = Some(delay);
        delay
    }

    /// Makes the next attempt count as a first one.
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
