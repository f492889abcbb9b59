//! The virtio network device (virtio 1.2, section 5.1).
//!
//! Frames go worker → [`pair`] → [`tx`] → port, and worker → [`pair`] → [`rx`] → ring → call; everything else
//! is set-up around that.

pub mod builder;
pub mod config;
pub mod counters;
pub mod ctrl;
pub mod ctrl_queue;
pub mod device;
pub mod health;
pub mod journal;
pub mod lifecycle;
pub mod limiter;
mod offloads;
pub mod pair;
pub mod rx;
pub mod tx;
pub mod unfilled;
pub mod vring;

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

#[cfg(test)]
pub(crate) mod testing;
