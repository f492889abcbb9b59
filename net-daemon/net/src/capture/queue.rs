//! A port's queue that copies its frames into a ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use volt_virtio::part::IoPart;

use super::options::CaptureOptions;
use super::ring::{Entry, RingWriter};
use crate::counters::DropReason;
use crate::port::{HEADER_LEN, PortQueue};

/// Stands in front of all other queues, so that it sees the frames that the guest sends and gets.
///
/// A frame from the guest is copied from guest memory after it was sent. If the guest changes it meanwhile,
/// the capture shows a frame that nobody got. Code that decides by a frame's bytes has its own copy.
#[derive(Debug)]
pub(super) struct CaptureQueue {
    queue: Arc<dyn PortQueue>,
    ring: Arc<RingWriter>,
    options: CaptureOptions,
}

impl CaptureQueue {
    pub(super) fn new(
        queue: Arc<dyn PortQueue>,
        ring: Arc<RingWriter>,
        options: CaptureOptions,
    ) -> CaptureQueue {
        CaptureQueue { queue, ring, options }
    }

    fn entry(&self, is_rx: bool, dropped: Option<DropReason>, len: usize) -> Entry {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Entry { is_rx, dropped, time: time.as_nanos() as u64, len, snap: self.snap() }
    }

    /// Returns the maximum length of a copy, header included.
    fn snap(&self) -> usize {
        HEADER_LEN + self.options.snap as usize
    }
}

impl AsFd for CaptureQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl PortQueue for CaptureQueue {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        let len = self.queue.send(parts)?;
        if self.options.tx {
            self.ring.write(&self.entry(false, None, len), parts);
        }
        Ok(len)
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        // The previous frame was not dropped.
        self.ring.release();
        let len = self.queue.recv(parts)?;
        if self.options.rx {
            self.ring.hold(&self.entry(true, None, len), parts);
        }
        Ok(len)
    }

    fn probe(&self) -> io::Result<()> {
        self.queue.probe()
    }

    fn dropped(&self, reason: DropReason, parts: &[IoPart<'_>], len: usize) {
        let is_rx = reason.is_rx();
        let wanted = if is_rx { self.options.rx } else { self.options.tx };
        if wanted && !(is_rx && self.ring.mark_held(reason)) {
            self.ring.write(&self.entry(is_rx, Some(reason), len), parts);
        }
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        self.queue.wakers()
    }
}
