//! A port's queue that judges its frames.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use volt_filter::Way;
use volt_filter::reason::Reason;
use volt_filter::verdict::{Filter, JUDGED, Verdict};
use volt_virtio::part::{IoPart, copy_out, copy_parts, write_parts};

use super::DeviceFilter;
use super::clock::now;
use super::log::RefusalLog;
use crate::capture::JudgedCapture;
use crate::capture::ring::Fate;
use crate::counters::PairCounters;
use crate::port::inject::Injector;
use crate::port::queue::FdQueue;
use crate::port::{FILTERED, MAX_FRAME_LEN, PortQueue};

/// Parts of a long frame that are sent from where the guest has them. A frame in more parts is copied as a
/// whole. Drivers use at most 18: Linux has 17 fragments and a header.
const REST: usize = 32;

thread_local! {
    /// Room for the longest frame. It belongs to the thread of a pair, not to its queue, which must be usable
    /// from any thread: a lock there would take two atomic instructions for each frame.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends the thread's buffer, of [`MAX_FRAME_LEN`] bytes.
#[inline]
fn with_buffer<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.is_empty() {
            buffer.resize(MAX_FRAME_LEN, 0);
        }
        work(buffer)
    })
}

/// The queue behind: called directly if it is one on a descriptor.
#[derive(Debug)]
enum Behind {
    Descriptor(Arc<FdQueue>),
    Other(Arc<dyn PortQueue>),
}

impl Behind {
    fn new(queue: Arc<dyn PortQueue>) -> Behind {
        match queue.clone().on_descriptor() {
            Some(queue) => Behind::Descriptor(queue),
            None => Behind::Other(queue),
        }
    }

    fn any(&self) -> &dyn PortQueue {
        match self {
            Behind::Descriptor(queue) => &**queue,
            Behind::Other(queue) => &**queue,
        }
    }

    #[inline(always)]
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        match self {
            Behind::Descriptor(queue) => queue.send(parts),
            Behind::Other(queue) => queue.send(parts),
        }
    }

    #[inline(always)]
    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        match self {
            Behind::Descriptor(queue) => queue.recv(parts),
            Behind::Other(queue) => queue.recv(parts),
        }
    }
}

/// Stands between injected frames and rate limits: see [`crate::port`].
#[derive(Debug)]
pub(crate) struct FilterQueue {
    queue: Behind,
    filter: Arc<Filter>,
    log: Arc<RefusalLog>,
    /// Frames of the program itself, among them answers to refused frames. Delivered here and not by a queue
    /// in front of this one: each further queue takes a frame 40 ns, because calls and returns around a
    /// system call are predicted wrongly.
    injector: Option<Injector>,
    capture: Option<JudgedCapture>,
    counters: PairCounters,
}

impl FilterQueue {
    /// Puts `filter` in front of `queue`. The pair's worker counts refused frames in `counters`.
    pub(crate) fn new(
        filter: &DeviceFilter,
        queue: Arc<dyn PortQueue>,
        counters: PairCounters,
        injector: Option<Injector>,
        capture: Option<JudgedCapture>,
    ) -> FilterQueue {
        let (filter, log) = (filter.filter.clone(), filter.log.clone());
        FilterQueue { queue: Behind::new(queue), filter, log, injector, capture, counters }
    }

    /// Judges a frame to the guest that was received earlier, perhaps by a process without this filter.
    pub(crate) fn admits(&self, frame: &mut [u8]) -> bool {
        let len = frame.len();
        self.judge(Way::In, &mut frame[..len.min(JUDGED)], len).is_ok()
    }

    /// Judges a frame of `len` bytes by its first ones. Returns what a capture shows of a frame that passes.
    ///
    /// # Errors
    ///
    /// The error [`FILTERED`] for a frame that is refused.
    #[inline]
    fn judge(&self, way: Way, frame: &mut [u8], len: usize) -> io::Result<Fate> {
        let now = now();
        match self.filter.judge(way, frame, len, now) {
            Verdict::Pass => Ok(Fate::Passed),
            Verdict::Note(reason) => {
                self.log.add(way, reason, false, frame);
                Ok(Fate::Noted(reason))
            }
            Verdict::Refuse(reason) => Err(self.refuse(way, reason, frame, len, now)),
        }
    }

    /// Records a refused frame, and answers the guest. Returns the error for the caller.
    #[cold]
    fn refuse(&self, way: Way, reason: Reason, frame: &mut [u8], len: usize, now: u32) -> io::Error {
        self.log.add(way, reason, true, frame);
        match way {
            Way::Out => self.counters.tx_filtered.add(1),
            Way::In => self.counters.rx_filtered.add(1),
        }
        if way == Way::Out
            && let Some(injector) = &self.injector
            && let Some(answer) = self.filter.reply(frame, reason, now)
        {
            // Without room, the guest takes no frames anyway.
            let _ = injector.push(answer);
        }
        if let Some(capture) = &self.capture {
            capture.refused(way, reason, frame, len);
        }
        io::Error::from_raw_os_error(FILTERED)
    }

    /// Receives a frame, and delivers it to `parts` if it passes.
    #[inline(always)]
    pub(super) fn receive(&self, way: Way, parts: &[IoPart<'_>]) -> io::Result<usize> {
        with_buffer(|buffer| self.receive_into(buffer, way, parts))
    }

    #[inline(always)]
    fn receive_into(&self, buffer: &mut [u8], way: Way, parts: &[IoPart<'_>]) -> io::Result<usize> {
        let len = self.queue.recv(&[IoPart::from_slice(buffer)])?.min(MAX_FRAME_LEN);
        let frame = &mut buffer[..len];
        let fate = self.judge(way, &mut frame[..len.min(JUDGED)], len)?;
        write_parts(parts, 0, frame);
        if let Some(capture) = &self.capture {
            capture.received(fate);
        }
        Ok(len)
    }

    /// Judges a copy of the first bytes of a frame, and sends it with the rest.
    #[inline(always)]
    fn send_from(&self, buffer: &mut [u8], parts: &[IoPart<'_>]) -> io::Result<usize> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let copied = copy_out(parts, &mut buffer[..JUDGED]);
        let fate = self.judge(Way::Out, &mut buffer[..copied], len)?;
        if copied == len {
            return self.pass(fate, &[IoPart::from_slice(&mut buffer[..copied])]);
        }
        self.send_long(fate, buffer, copied, parts)
    }

    /// Passes `parts` on, and shows them to a capture. `inline(always)`: a return right after a system call
    /// is predicted wrongly on processors that clear their predictions there, which takes 20 ns and more.
    #[inline(always)]
    fn pass(&self, fate: Fate, parts: &[IoPart<'_>]) -> io::Result<usize> {
        let len = self.queue.send(parts)?;
        if let Some(capture) = &self.capture {
            capture.sent(fate, parts, len);
        }
        Ok(len)
    }

    /// Sends the first `copied` bytes of a frame from `buffer`, and the others from the guest's `parts`.
    fn send_long(
        &self,
        fate: Fate,
        buffer: &mut [u8],
        copied: usize,
        parts: &[IoPart<'_>],
    ) -> io::Result<usize> {
        let (first, room) = buffer.split_at_mut(copied);
        let count = 1 + rest(parts, copied).count();
        let mut all = [IoPart::from_slice(first); 1 + REST];
        if count > all.len() {
            let left: usize = rest(parts, copied).map(IoPart::len).sum();
            let room = room.get_mut(..left).ok_or(io::ErrorKind::InvalidInput)?;
            // Nothing is decided by these bytes.
            copy_parts(parts, copied, IoPart::from_slice(room));
            all[1] = IoPart::from_slice(room);
            return self.pass(fate, &all[..2]);
        }
        all[1..].iter_mut().zip(rest(parts, copied)).for_each(|(slot, part)| *slot = part);
        self.pass(fate, &all[..count])
    }
}

/// Returns `parts` without their first `skip` bytes.
fn rest<'m>(parts: &[IoPart<'m>], mut skip: usize) -> impl Iterator<Item = IoPart<'m>> {
    parts.iter().filter_map(move |part| {
        let now = skip.min(part.len());
        skip -= now;
        part.skip(now)
    })
}

impl AsFd for FilterQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.queue.any().as_fd()
    }
}

impl PortQueue for FilterQueue {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        with_buffer(|buffer| self.send_from(buffer, parts))
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        match self.injector.as_ref().and_then(|injector| injector.deliver(parts)) {
            Some(len) => Ok(len),
            None => self.receive(Way::In, parts),
        }
    }

    fn flush(&self) -> io::Result<()> {
        self.queue.any().flush()
    }

    fn release(&self) {
        self.queue.any().release();
    }

    fn probe(&self) -> io::Result<()> {
        self.queue.any().probe()
    }

    fn tells_room(&self) -> bool {
        self.queue.any().tells_room()
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        let own = self.injector.iter().map(Injector::waker);
        self.queue.any().wakers().into_iter().chain(own).collect()
    }
}
