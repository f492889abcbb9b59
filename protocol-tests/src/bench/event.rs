//! The replacement of a daemon, and what it cost.

use std::time::Duration;

/// How a daemon is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Not at all: what the bench itself takes for a gap
    None,
    /// `volt-netd --take-over`
    HandOver,
    /// kill -9 of the worker below `volt-netd --supervise`
    Crash,
    /// kill -9, then the same command again; the front-end reconnects
    Restart,
}

/// One replacement; each pair is guest to wire, wire to guest.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Longest time between two probes that arrived.
    pub gaps: [Duration; 2],
    /// Probes that never arrived.
    pub lost: [usize; 2],
    /// Probes that arrived once too often.
    pub repeated: [usize; 2],
    /// Probes in all.
    pub sent: [usize; 2],
    /// Longest time for which the bench itself did not run: no gap below it is known.
    pub stall: Duration,
}
