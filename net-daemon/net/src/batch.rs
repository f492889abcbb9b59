//! Batches of a queue pair.

/// Maximum number of frames between two publications of a used index, and so the most that a crash can lose
/// or repeat.
pub const BATCH: usize = 64;

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more to do.
    More,
    /// Nothing to do until the other side notifies.
    Idle,
    /// The port accepts no more frames for now.
    PortFull,
    /// The guest has no receive buffers.
    NoBuffers,
}
