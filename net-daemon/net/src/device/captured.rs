//! A device whose frames are captured.

use volt_virtio::part::IoPart;

use super::NetDevice;
use crate::capture::Capture;
use crate::counters::DropReason;

impl NetDevice {
    /// Captures the frames of each pair from its next start on, or no more.
    pub fn set_capture(&mut self, capture: Option<Capture>) {
        self.capture = capture;
    }

    /// The capture in force.
    pub fn capture(&self) -> Option<&Capture> {
        self.capture.as_ref()
    }

    /// Gives up the frames that were received and not delivered: the guest they were for has gone. Only while
    /// no pair runs.
    pub fn give_up_stashes(&mut self) {
        for (pair, stash) in self.stashes.iter_mut().enumerate() {
            let Some(mut frame) = stash.take() else { continue };
            self.counters.of(pair).rx_failed.add(1);
            if let Some(capture) = &self.capture {
                let len = frame.len();
                let queue = capture.before(pair, self.port.queue(pair));
                queue.dropped(DropReason::RxFailed, &[IoPart::from_slice(&mut frame)], len);
            }
        }
    }
}
