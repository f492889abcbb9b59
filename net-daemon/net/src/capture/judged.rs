//! What a filter shows to a capture: the copies that it judged, not the guest's memory.

use std::sync::Arc;

use volt_filter::Way;
use volt_filter::reason::Reason;
use volt_virtio::part::IoPart;

use super::options::CaptureOptions;
use super::queue::entry;
use super::ring::{Fate, RingWriter};

/// The capture of a pair, for its filter. The pair's thread calls it, as it calls the queue of the capture.
#[derive(Debug)]
pub(crate) struct JudgedCapture {
    ring: Arc<RingWriter>,
    options: CaptureOptions,
}

impl JudgedCapture {
    pub(super) fn new(ring: Arc<RingWriter>, options: CaptureOptions) -> JudgedCapture {
        JudgedCapture { ring, options }
    }

    /// Shows a frame of `len` bytes that was sent.
    pub(crate) fn sent(&self, fate: Fate, parts: &[IoPart<'_>], len: usize) {
        if self.options.tx {
            self.ring.write(&entry(&self.options, false, fate, len), parts);
        }
    }

    /// Notes the fate of the received frame that the capture's queue is about to show.
    pub(crate) fn received(&self, fate: Fate) {
        self.ring.note(fate);
    }

    /// Shows a refused frame of `len` bytes, of which `frame` was judged.
    pub(crate) fn refused(&self, way: Way, reason: Reason, frame: &mut [u8], len: usize) {
        let is_rx = way == Way::In;
        if if is_rx { self.options.rx } else { self.options.tx } {
            let mut entry = entry(&self.options, is_rx, Fate::Refused(reason), len);
            entry.snap = entry.snap.min(frame.len());
            self.ring.write(&entry, &[IoPart::from_slice(frame)]);
        }
    }
}
