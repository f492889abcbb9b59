//! How much a queue pair does in one go.

/// Most frames between two publications of a used index, and so the most that a crash can lose or repeat.
pub const BATCH: usize = 64;

/// How a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There may be more to do at once.
    More,
    /// Nothing to do until the other side says so.
    Idle,
    /// The port takes no more for now.
    PortFull,
    /// The guest has no receive buffers.
    NoBuffers,
}
