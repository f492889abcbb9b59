//! Copies of a device's frames, in memory that another process reads.
//!
//! ```text
//! ring - CaptureQueue - ... - port         worker: copies without a system call
//!             |
//!         RingWriter --> memory --> RingReader      another process: reads every few milliseconds
//! ```
//!
//! A [`Capture`] is created on request and given to [`NetDevice::set_capture`]. Pairs that start afterwards
//! have a [queue] in front of their port's queue. It copies frames into the pair's own [ring]. A device
//! without a capture does not have this queue. Nothing ever waits for the reader: without room, only the copy
//! is lost and counted. Code that drops a frame reports that by [`PortQueue::dropped`]. A
//! [filter](crate::filter) shows what it sends and refuses by itself.
//!
//! [`NetDevice::set_capture`]: crate::device::NetDevice::set_capture

use std::fs::File;
use std::sync::Arc;

use crate::port::PortQueue;
use crate::shared_words::{SharedWords, WordsError};

mod judged;
mod options;
mod queue;
pub mod ring;

pub(crate) use judged::JudgedCapture;
pub use options::CaptureOptions;
use queue::CaptureQueue;
use ring::RingWriter;

/// A capture of a device's frames. Clones share it.
#[derive(Clone, Debug)]
pub struct Capture {
    options: CaptureOptions,
    memory: Arc<SharedWords>,
    /// The captured pairs, each with its ring.
    rings: Vec<(usize, Arc<RingWriter>)>,
}

impl Capture {
    /// Creates a capture for a device with so many queue pairs.
    ///
    /// # Errors
    ///
    /// Fails if shared memory is not available.
    pub fn new(options: CaptureOptions, pairs: usize) -> Result<Capture, WordsError> {
        let captured: Vec<_> =
            (0..pairs).filter(|pair| options.pair.is_none_or(|only| only == *pair)).collect();
        let memory = Arc::new(ring::memory(captured.len())?);
        let ring = |(index, pair)| (pair, Arc::new(RingWriter::new(&memory, index, captured.len())));
        let rings = captured.iter().copied().enumerate().map(ring).collect();
        Ok(Capture { options, memory, rings })
    }

    /// Returns the options.
    pub fn options(&self) -> CaptureOptions {
        self.options
    }

    /// Returns the captured queue pairs, in the order of their rings.
    pub fn pairs(&self) -> Vec<usize> {
        self.rings.iter().map(|(pair, _)| *pair).collect()
    }

    /// Returns the memory, for [`ring::readers`].
    pub fn file(&self) -> Option<&File> {
        self.memory.file()
    }

    /// Returns the number of captured frames so far, whether they were read or not.
    pub fn frames(&self) -> u64 {
        self.rings.iter().map(|(_, ring)| ring.frames()).sum()
    }

    /// Returns the number of frames for which there was no room.
    pub fn lost(&self) -> u64 {
        self.rings.iter().map(|(_, ring)| ring.lost()).sum()
    }

    /// Puts this capture in front of `queue` of `pair`, if the pair is captured.
    pub fn before(&self, pair: usize, queue: Arc<dyn PortQueue>) -> Arc<dyn PortQueue> {
        match self.ring(pair) {
            Some(ring) => Arc::new(CaptureQueue::<false>::new(queue, ring.clone(), self.options)),
            None => queue,
        }
    }

    /// Like [`Capture::before`], for a queue with a filter that has the [`Capture::judged`] of the pair.
    pub(crate) fn before_filter(&self, pair: usize, queue: Arc<dyn PortQueue>) -> Arc<dyn PortQueue> {
        match self.ring(pair) {
            Some(ring) => Arc::new(CaptureQueue::<true>::new(queue, ring.clone(), self.options)),
            None => queue,
        }
    }

    /// Returns the capture of `pair` for its filter, if the pair is captured.
    pub(crate) fn judged(&self, pair: usize) -> Option<JudgedCapture> {
        Some(JudgedCapture::new(self.ring(pair)?.clone(), self.options))
    }

    fn ring(&self, pair: usize) -> Option<&Arc<RingWriter>> {
        self.rings.iter().find(|(captured, _)| *captured == pair).map(|(_, ring)| ring)
    }
}

#[cfg(test)]
mod tests;
