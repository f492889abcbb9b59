//! Frames that the program itself creates for its guest: a queue in front of a port's receive side.
//!
//! [`Injector::push`] adds a frame and wakes the pair's worker, from any thread and without blocking. The
//! queue is bounded: frames that the guest does not take are dropped and counted. A device has such a queue
//! only if it is given one ([`NetDevice::inject`](crate::device::NetDevice::inject)).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use volt_virtio::notify::Notifier;
use volt_virtio::part::{IoPart, write_parts};

use crate::port::{MAX_FRAME_LEN, MIN_FRAME_LEN, PortQueue};

/// The reason why a frame is not accepted.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InjectError {
    /// Shorter than a header and an Ethernet header, or longer than the longest frame.
    #[error("a frame of {0} bytes with its header: must be {MIN_FRAME_LEN} to {MAX_FRAME_LEN} bytes")]
    Length(usize),
    /// The guest has not taken the previous frames.
    #[error("{0} frames wait for the guest already")]
    Full(usize),
}

/// A queue of frames for the guest. Clones share it.
#[derive(Clone, Debug)]
pub struct Injector(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    frames: Mutex<VecDeque<Vec<u8>>>,
    /// Number of frames, for a check without the lock.
    waiting: AtomicUsize,
    most: usize,
    dropped: AtomicU64,
    /// Notified of each frame.
    filled: Notifier,
}

impl Injector {
    /// Creates a queue for up to `most` frames that the guest has not taken.
    ///
    /// # Errors
    ///
    /// Fails if the process has no descriptor left.
    pub fn new(most: usize) -> io::Result<Injector> {
        Ok(Injector(Arc::new(Shared {
            frames: Mutex::default(),
            waiting: AtomicUsize::new(0),
            most,
            dropped: AtomicU64::new(0),
            filled: Notifier::eventfd()?,
        })))
    }

    /// Adds `frame`, header first, for the guest.
    ///
    /// # Errors
    ///
    /// See [`InjectError`]. A frame that is dropped for lack of room is counted.
    pub fn push(&self, frame: Vec<u8>) -> Result<(), InjectError> {
        if !(MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&frame.len()) {
            return Err(InjectError::Length(frame.len()));
        }
        let mut frames = self.0.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if frames.len() >= self.0.most {
            self.0.dropped.fetch_add(1, Relaxed);
            return Err(InjectError::Full(frames.len()));
        }
        frames.push_back(frame);
        self.0.waiting.store(frames.len(), Relaxed);
        drop(frames);
        self.0.filled.notify();
        Ok(())
    }

    /// Returns the number of frames for which there was no room.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }

    /// Puts these frames in front of `queue`.
    pub(crate) fn before(&self, queue: Arc<dyn PortQueue>) -> Arc<dyn PortQueue> {
        Arc::new(InjectedQueue { queue, injector: self.clone() })
    }

    /// Writes the next frame to `parts`, if there is one. Returns its length.
    #[inline]
    pub(crate) fn deliver(&self, parts: &[IoPart<'_>]) -> Option<usize> {
        if self.0.waiting.load(Relaxed) == 0 {
            return None;
        }
        let frame = self.take()?;
        write_parts(parts, 0, &frame);
        Some(frame.len())
    }

    /// Returns the descriptor that is readable when there may be a frame: see [`PortQueue::wakers`].
    pub(crate) fn waker(&self) -> BorrowedFd<'_> {
        self.0.filled.as_fd()
    }

    fn take(&self) -> Option<Vec<u8>> {
        let mut frames = self.0.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let frame = frames.pop_front();
        self.0.waiting.store(frames.len(), Relaxed);
        frame
    }
}

/// A port's queue, and the frames in front of it.
#[derive(Debug)]
struct InjectedQueue {
    queue: Arc<dyn PortQueue>,
    injector: Injector,
}

impl AsFd for InjectedQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl PortQueue for InjectedQueue {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        self.queue.send(parts)
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        match self.injector.deliver(parts) {
            Some(len) => Ok(len),
            None => self.queue.recv(parts),
        }
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

    fn tells_room(&self) -> bool {
        self.queue.tells_room()
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        let mut wakers = self.queue.wakers();
        wakers.push(self.injector.waker());
        wakers
    }
}

#[cfg(test)]
mod tests {
    use volt_virtio::features::Features;
    use volt_virtio::testing::{BUFFERS, Driver};

    use super::*;
    use crate::rx::Rx;
    use crate::testing::{Rig, frame};

    #[test]
    fn frames_come_in_order_and_before_the_ports_own() {
        let (mut rig, wire) = Rig::new();
        let injector = Injector::new(2).unwrap();
        let queue = injector.before(rig.queue.clone());
        let mut driver = Driver::new(8, Features::empty());
        let mut rx = Rx::new(Rig::vring(&driver, 0), Features::empty());
        for number in 0..3 {
            driver.add(&[(BUFFERS + number * 2048, 2048, true)]);
        }
        wire.send(&frame(60, 9));
        for seed in [1, 2] {
            injector.push(frame(60, seed)).unwrap();
        }
        assert_eq!(injector.push(frame(60, 3)), Err(InjectError::Full(2)));
        assert_eq!(injector.push(vec![0; 25]), Err(InjectError::Length(25)));
        assert_eq!(injector.push(vec![0; MAX_FRAME_LEN + 1]), Err(InjectError::Length(MAX_FRAME_LEN + 1)));
        assert_eq!(injector.dropped(), 1);
        rx.run(&*queue, &mut rig.health, &rig.counters).unwrap();
        assert_eq!(driver.take_used().len(), 3);
        for (number, seed) in [(0, 1), (1, 2), (2, 9)] {
            // After the header, which the device completes.
            assert_eq!(driver.read_vec(BUFFERS + number * 2048 + 12, 60), frame(60, seed)[12..]);
        }
        injector.push(frame(60, 3)).unwrap();
        // A probe takes no frame.
        assert_eq!(queue.probe().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(injector.take(), Some(frame(60, 3)));
    }
}
