//! Copies of a device's frames, in memory that another process reads them from.
//!
//! ```text
//! ring - CaptureQueue - ... - port         frame thread: copies, and makes no system call for it
//!             |
//!         RingWriter --> memory --> RingReader      another process: looks into it every few milliseconds
//! ```
//!
//! A [`Capture`] is made when somebody asks for one, and given to [`NetDevice::set_capture`]. Pairs that
//! start from then on have a [queue] in front of their port's that copies into the pair's own [ring],
//! and those of a device without a capture have nothing in the way. Nobody ever waits for the reader: what
//! finds no room is counted as lost, and only the copy is. What else decides that a frame goes nowhere says
//! so by [`PortQueue::dropped`].
//!
//! [`NetDevice::set_capture`]: crate::device::NetDevice::set_capture

use std::fs::File;
use std::sync::Arc;

use crate::port::PortQueue;
use crate::shared_words::{SharedWords, WordsError};

mod options;
mod queue;
pub mod ring;

pub use options::CaptureOptions;
use queue::CaptureQueue;
use ring::RingWriter;

/// A capture of a device's frames. Clones are one and the same.
#[derive(Clone, Debug)]
pub struct Capture {
    options: CaptureOptions,
    memory: Arc<SharedWords>,
    /// The pairs, each with its ring.
    rings: Vec<(usize, Arc<RingWriter>)>,
}

impl Capture {
    /// Room for frames of a device with so many queue pairs.
    ///
    /// # Errors
    ///
    /// When there is no memory that processes share.
    pub fn new(options: CaptureOptions, pairs: usize) -> Result<Capture, WordsError> {
        let captured: Vec<_> =
            (0..pairs).filter(|pair| options.pair.is_none_or(|only| only == *pair)).collect();
        let memory = Arc::new(ring::memory(captured.len())?);
        let ring = |(index, pair)| (pair, Arc::new(RingWriter::new(&memory, index, captured.len())));
        let rings = captured.iter().copied().enumerate().map(ring).collect();
        Ok(Capture { options, memory, rings })
    }

    /// What was asked for.
    pub fn options(&self) -> CaptureOptions {
        self.options
    }

    /// The queue pairs whose frames are captured, in the order of their rings.
    pub fn pairs(&self) -> Vec<usize> {
        self.rings.iter().map(|(pair, _)| *pair).collect()
    }

    /// The memory, for [`ring::readers`].
    pub fn file(&self) -> Option<&File> {
        self.memory.file()
    }

    /// Frames in the rings so far, whether they were read or not.
    pub fn frames(&self) -> u64 {
        self.rings.iter().map(|(_, ring)| ring.frames()).sum()
    }

    /// Frames for which there was no room.
    pub fn lost(&self) -> u64 {
        self.rings.iter().map(|(_, ring)| ring.lost()).sum()
    }

    /// `queue` of `pair` behind this capture, if the pair is captured.
    pub fn before(&self, pair: usize, queue: Arc<dyn PortQueue>) -> Arc<dyn PortQueue> {
        match self.rings.iter().find(|(captured, _)| *captured == pair) {
            Some((_, ring)) => Arc::new(CaptureQueue::new(queue, ring.clone(), self.options)),
            None => queue,
        }
    }
}

#[cfg(test)]
mod tests;
