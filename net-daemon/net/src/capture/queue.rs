//! A port's queue that copies its frames into a ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use volt_virtio::part::IoPart;

use super::options::CaptureOptions;
use super::ring::{Entry, Fate, RingWriter};
use crate::counters::DropReason;
use crate::port::{HEADER_LEN, PortQueue};

/// Stands in front of all other queues, so that it sees the frames that the guest sends and gets.
///
/// A frame from the guest is copied from guest memory after it was sent. If the guest changes it meanwhile,
/// the capture shows a frame that nobody got.
///
/// `FILTERED`: a filter behind this queue shows the frames from the guest itself, from its own copy.
#[derive(Debug)]
pub(super) struct CaptureQueue<const FILTERED: bool> {
    queue: Arc<dyn PortQueue>,
    ring: Arc<RingWriter>,
    options: CaptureOptions,
}

impl<const FILTERED: bool> CaptureQueue<FILTERED> {
    pub(super) fn new(
        queue: Arc<dyn PortQueue>,
        ring: Arc<RingWriter>,
        options: CaptureOptions,
    ) -> CaptureQueue<FILTERED> {
        CaptureQueue { queue, ring, options }
    }
}

/// Returns the entry of a frame of `len` bytes.
#[inline(always)]
pub(super) fn entry(options: &CaptureOptions, is_rx: bool, fate: Fate, len: usize) -> Entry {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // A snapshot has the frame's header besides.
    Entry {
        is_rx,
        fate: fate.code(),
        time: time.as_nanos() as u64,
        len,
        snap: HEADER_LEN + options.snap as usize,
    }
}

impl<const FILTERED: bool> AsFd for CaptureQueue<FILTERED> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl<const FILTERED: bool> PortQueue for CaptureQueue<FILTERED> {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        let len = self.queue.send(parts)?;
        if !FILTERED && self.options.tx {
            self.ring.write(&entry(&self.options, false, Fate::Passed, len), parts);
        }
        Ok(len)
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        // The previous frame was not dropped.
        self.ring.release();
        let len = self.queue.recv(parts)?;
        if self.options.rx {
            let fate = if FILTERED { self.ring.take_note() } else { Fate::Passed };
            self.ring.hold(&entry(&self.options, true, fate, len), parts);
        }
        Ok(len)
    }

    fn flush(&self) -> io::Result<()> {
        self.queue.flush()
    }

    fn release(&self) {
        self.queue.release();
    }

    fn probe(&self) -> io::Result<()> {
        self.queue.probe()
    }

    fn dropped(&self, reason: DropReason, parts: &[IoPart<'_>], len: usize) {
        let is_rx = reason.is_rx();
        let wanted = if is_rx { self.options.rx } else { self.options.tx };
        if wanted && !(is_rx && self.ring.mark_held(reason)) {
            self.ring.write(&entry(&self.options, is_rx, Fate::Dropped(reason), len), parts);
        }
    }

    fn tells_room(&self) -> bool {
        self.queue.tells_room()
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        self.queue.wakers()
    }
}
