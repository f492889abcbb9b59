//! What a capture is asked for.

use serde::{Deserialize, Serialize};

/// What is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureOptions {
    /// One queue pair; otherwise all.
    pub pair: Option<usize>,
    /// Most bytes of each frame, from its Ethernet header on.
    pub snap: u32,
    /// Frames for the guest.
    pub rx: bool,
    /// Frames of the guest.
    pub tx: bool,
}
