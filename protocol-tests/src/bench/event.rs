//! The replacement of a daemon, and its cost.

use std::time::Duration;

/// A way to replace a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// No replacement: the gap that the bench itself causes
    None,
    /// `volt-netd --take-over`
    HandOver,
    /// kill -9 of the worker of `volt-netd --supervise`
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
    /// Extra arrivals of probes.
    pub repeated: [usize; 2],
    /// All probes.
    pub sent: [usize; 2],
    /// Longest time for which the bench itself did not run: it cannot see shorter gaps.
    pub stall: Duration,
}
