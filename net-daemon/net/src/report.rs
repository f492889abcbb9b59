//! What a running queue pair says of its rings when it is asked: for status, metrics and whoever looks
//! whether it still moves.
//!
//! Its thread answers between two batches, so that nothing is written down for it by the frame.

/// One ring, as its pair sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingReport {
    /// Number of the virtqueue in the device.
    pub vring: usize,
    /// Entries.
    pub size: u16,
    /// Chains that the driver has made available and has not got back: receive buffers that are free, frames
    /// that wait to be sent.
    pub available: u16,
    /// It goes on when the other side says so: the guest with buffers for a frame that has come, the port
    /// with room, a limit that is over.
    pub waits: bool,
}

/// The rings of a pair that run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairReport {
    /// The receive queue.
    pub rx: Option<RingReport>,
    /// The transmit queue.
    pub tx: Option<RingReport>,
}

impl PairReport {
    /// Both, as far as they run.
    pub fn rings(&self) -> impl Iterator<Item = &RingReport> {
        self.rx.iter().chain(&self.tx)
    }
}
