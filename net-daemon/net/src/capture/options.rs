//! Options of a capture.

use serde::{Deserialize, Serialize};

/// Which frames to capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureOptions {
    /// The queue pair to capture. `None`: all pairs.
    pub pair: Option<usize>,
    /// Maximum number of bytes of each frame, from its Ethernet header on.
    pub snap: u32,
    /// Whether to capture frames to the guest.
    pub rx: bool,
    /// Whether to capture frames from the guest.
    pub tx: bool,
}
