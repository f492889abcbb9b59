//! Captures of a device's frames.

use volt_virtio::part::IoPart;

use super::NetDevice;
use crate::capture::Capture;
use crate::counters::DropReason;

impl NetDevice {
    /// Sets or ends the capture of each pair's frames, from its next start.
    pub fn set_capture(&mut self, capture: Option<Capture>) {
        self.capture = capture;
    }

    /// Returns the capture in force.
    pub fn capture(&self) -> Option<&Capture> {
        self.capture.as_ref()
    }

    /// Drops the frames that were received but not delivered, and an announcement that waits, because their
    /// guest is gone. No pair may run.
    pub fn give_up_stashes(&mut self) {
        self.announcement = None;
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
