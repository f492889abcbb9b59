//! Reports of a running queue pair on its rings, for status, metrics and the watchdog.
//!
//! The pair's thread answers between two batches. So no frame costs any bookkeeping.

/// The state of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingReport {
    /// Number of the virtqueue in the device.
    pub vring: usize,
    /// Number of entries.
    pub size: u16,
    /// Chains that the driver made available and that are not used yet: free receive buffers, or frames to be
    /// sent.
    pub available: u16,
    /// Whether the ring waits for something: for buffers of the guest for a received frame, for room in the
    /// port, or for a rate limit.
    pub waits: bool,
}

/// The running rings of a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairReport {
    /// The receive queue.
    pub rx: Option<RingReport>,
    /// The transmit queue.
    pub tx: Option<RingReport>,
}

impl PairReport {
    /// Returns the rings that run.
    pub fn rings(&self) -> impl Iterator<Item = &RingReport> {
        self.rx.iter().chain(&self.tx)
    }
}
