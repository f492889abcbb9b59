//! Wire to guest: frames from the port directly into the guest's receive buffers.
//!
//! Buffers are taken off the ring before frames arrive, as many as recent frames needed. They stay gathered
//! until frames fill them. Behind them stands a private spill buffer, so that a frame of any length is read
//! as a whole. A frame that is longer than the gathered buffers is completed by one copy. From then on more
//! buffers are gathered.

use std::io;

use log::debug;
use volt_virtio::chain::ChainError;
use volt_virtio::features::Features;
use volt_virtio::gather::{Chain, Gathered};
use volt_virtio::part::{IoPart, read_parts, read_two, write_parts, write_two};
use volt_virtio::ring::{Head, RingError};

use crate::batch::{BATCH, Turn};
use crate::counters::{Counters, DropReason};
use crate::health::{Health, Verdict};
use crate::offloads::Offloads;
use crate::port::queue::MAX_PARTS;
use crate::port::{HEADER_LEN, MAX_FRAME_LEN, MIN_FRAME_LEN, PortQueue};
use crate::vring::Vring;

/// Offset of `num_buffers` in the header.
const NUM_BUFFERS: usize = 10;

/// A chain that waits for a frame.
#[derive(Clone, Copy, Debug)]
struct Buffer {
    head: Head,
    /// How many of the gathered parts belong to it.
    parts: usize,
    len: usize,
}

/// Why gathering stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum GatherEnd {
    Enough,
    /// The guest has made no more buffers available.
    Empty,
    /// The next chain is malformed.
    BadChain,
    /// Too many malformed chains in one go: another ring's turn.
    Pause,
}

/// The receive half of a queue pair.
#[derive(Debug)]
pub struct Rx {
    pub(crate) vring: Vring,
    mergeable: bool,
    offloads: Offloads,
    /// Gathered buffers, from `next` on. Those before it are used.
    buffers: Vec<Buffer>,
    next: usize,
    /// Parts of the gathered buffers, from `first` on.
    parts: Gathered,
    first: usize,
    /// Bytes of the gathered buffers.
    capacity: usize,
    /// Bytes that recent frames needed.
    wanted: usize,
    /// Holds the bytes that do not fit into the gathered buffers.
    spill: Box<[u8]>,
    /// Length of a complete frame in `spill` that waits for buffers.
    stashed: Option<usize>,
}

impl Rx {
    /// Creates the receive half over `vring`, for a driver with these `features` in force.
    pub fn new(vring: Vring, features: Features) -> Rx {
        Rx {
            parts: Gathered::new(&vring.ring, MAX_PARTS),
            vring,
            mergeable: features.contains(Features::NET_MRG_RXBUF),
            offloads: Offloads::new(features),
            buffers: Vec::with_capacity(MAX_PARTS),
            next: 0,
            first: 0,
            capacity: 0,
            wanted: 1,
            spill: vec![0; MAX_FRAME_LEN].into(),
            stashed: None,
        }
    }

    /// Returns the used index as the driver sees it.
    pub fn base(&self) -> u16 {
        self.vring.ring.base()
    }

    /// Receives up to [`BATCH`] frames, but at most half a ring, and publishes them.
    ///
    /// # Errors
    ///
    /// Fails if the driver broke the ring. Frames that were received before are published.
    pub fn run(
        &mut self,
        port: &dyn PortQueue,
        health: &mut Health,
        counters: &Counters,
    ) -> Result<Turn, RingError> {
        let turn = match self.vring.ring.is_logged() {
            true => self.batch::<true>(port, health, counters),
            false => self.batch::<false>(port, health, counters),
        };
        self.vring.idle();
        // Not later: after a crash, no frame that the guest has must come again.
        port.release();
        self.vring.publish(counters);
        match turn? {
            // Only a guest that was out of buffers needs to notify about new ones.
            Turn::NoBuffers if self.vring.ring.enable_kicks()? => Ok(Turn::More),
            turn => Ok(turn),
        }
    }

    /// The gathered buffers.
    #[inline(always)]
    fn gathered(&self) -> &[Buffer] {
        &self.buffers[self.next..]
    }

    /// `LOGGED`: whether written pages are logged. A ring without a log has no instruction for it. What both
    /// kinds call is `inline(always)`: with two callers it would cost 28 instructions a frame more.
    fn batch<const LOGGED: bool>(
        &mut self,
        port: &dyn PortQueue,
        health: &mut Health,
        counters: &Counters,
    ) -> Result<Turn, RingError> {
        self.vring.ring.disable_kicks();
        let mut end = Turn::Idle;
        for _ in 0..BATCH {
            if self.vring.ring.is_due() {
                return Ok(Turn::More);
            }
            if let Some(len) = self.stashed {
                if let Some(turn) = self.unstash::<LOGGED>(len, port, counters)? {
                    return Ok(turn);
                }
                end = Turn::More;
                continue;
            }
            let gathered = self.gather(self.wanted, counters)?;
            if self.gathered().is_empty() {
                return Ok(if gathered == GatherEnd::Pause { Turn::More } else { Turn::NoBuffers });
            }
            match self.receive(port) {
                Ok(len) => {
                    health.works();
                    self.deliver::<LOGGED>(len, port, counters);
                    end = Turn::More;
                }
                Err(error) => match health.failed(&error) {
                    Some(Verdict::Refused) => {
                        self.failed(&error, counters);
                        // EFAULT consumed a frame, so this ends. Other errors may not.
                        if error.raw_os_error() == Some(libc::EFAULT) {
                            end = Turn::More;
                        }
                    }
                    None => end = Turn::More,
                    Some(Verdict::NoPort) if error.kind() == io::ErrorKind::InvalidData => {
                        self.failed(&error, counters);
                        return Ok(Turn::Idle);
                    }
                    Some(Verdict::Wait | Verdict::NoPort) => return Ok(Turn::Idle),
                },
            }
        }
        Ok(end)
    }

    #[cold]
    fn failed(&self, error: &io::Error, counters: &Counters) {
        counters.rx_failed.add(1);
        debug!("vring {}: receiving a frame: {error}", self.vring.index);
    }

    /// Takes buffers off the ring until they hold `wanted` bytes. One buffer is enough if frames are not
    /// merged.
    #[inline(always)]
    fn gather(&mut self, wanted: usize, counters: &Counters) -> Result<GatherEnd, RingError> {
        let mut bad_chains = 0;
        while self.capacity < wanted && (self.mergeable || self.gathered().is_empty()) {
            let index = self.vring.ring.next_index();
            let Some(head) = self.vring.ring.pop()? else { return Ok(GatherEnd::Empty) };
            let start = self.parts.len();
            match self.vring.begin(index).and_then(|()| self.collect(head)) {
                Ok(len) => {
                    self.capacity += len;
                    self.buffers.push(Buffer { head, parts: self.parts.len() - start, len });
                }
                Err(error) => {
                    self.parts.truncate(start);
                    // Chains complete in order, so it must wait for the buffers before it.
                    if !self.gathered().is_empty() {
                        self.vring.ring.unpop();
                        return Ok(GatherEnd::BadChain);
                    }
                    self.vring.bad_chain(error, &counters.rx_bad_chain, counters);
                    self.vring.ring.push_used(head, 0);
                    bad_chains += 1;
                    if bad_chains == BATCH {
                        return Ok(GatherEnd::Pause);
                    }
                }
            }
        }
        Ok(GatherEnd::Enough)
    }

    /// Appends the chain's parts. Returns their length, at most that of the longest frame.
    #[inline]
    fn collect(&mut self, head: Head) -> Result<usize, ChainError> {
        match self.parts.single(&self.vring.ring, head, HEADER_LEN..=usize::MAX, true) {
            Some(len) => Ok(len),
            None => self.collect_chain(head),
        }
    }

    #[inline(never)]
    fn collect_chain(&mut self, head: Head) -> Result<usize, ChainError> {
        // No frame needs more.
        match self.parts.chain(&self.vring.ring, head, MAX_FRAME_LEN)? {
            Chain { readable: true, .. } => Err(ChainError::Direction),
            Chain { len, .. } if len < HEADER_LEN => Err(ChainError::Short(len)),
            Chain { len, .. } => Ok(len),
        }
    }

    /// Reads one frame into the gathered buffers. The rest goes to `spill`, at its offset in the frame.
    #[inline(always)]
    fn receive(&mut self, port: &dyn PortQueue) -> io::Result<usize> {
        let parts = self.parts.len() - self.first;
        if self.capacity >= MAX_FRAME_LEN && parts <= MAX_PARTS {
            return port.recv(self.parts.from(self.first));
        }
        if parts < MAX_PARTS {
            let rest = &mut self.spill[self.capacity.min(MAX_FRAME_LEN - 1)..];
            return self.parts.with_tail(self.first, rest, |parts| port.recv(parts));
        }
        // More parts than one call accepts: read into the spill buffer, and copy.
        let len = port.recv(&[IoPart::from_slice(&mut self.spill)])?;
        write_parts(self.parts.from(self.first), 0, &self.spill[..len.min(self.capacity)]);
        Ok(len)
    }

    /// Delivers a frame of `len` bytes to the guest, or sets it aside if the buffers do not hold it.
    #[inline]
    fn deliver<const LOGGED: bool>(&mut self, len: usize, port: &dyn PortQueue, counters: &Counters) {
        // Follows long frames at once, and forgets them slowly.
        self.wanted = len.max(self.wanted - self.wanted / 256);
        if len < MIN_FRAME_LEN {
            return self.dropped(DropReason::RxFailed, len, port, counters);
        }
        if len > self.capacity {
            self.stash(len);
        } else {
            self.complete::<LOGGED>(len, port, counters);
        }
    }

    /// Drops the frame of `len` bytes that lies in the buffers.
    #[cold]
    fn dropped(&self, reason: DropReason, len: usize, port: &dyn PortQueue, counters: &Counters) {
        counters.dropped(reason).add(1);
        port.dropped(reason, self.parts.from(self.first), len);
    }

    #[cold]
    fn stash(&mut self, len: usize) {
        // The rest is in place already.
        let here = self.capacity;
        read_parts(self.parts.from(self.first), &mut self.spill[..here]);
        self.stashed = Some(len);
    }

    /// Delivers the stashed frame to the guest, or drops it if the guest's whole ring cannot hold it. Returns
    /// how the batch ends if the frame has to stay.
    #[cold]
    fn unstash<const LOGGED: bool>(
        &mut self,
        len: usize,
        port: &dyn PortQueue,
        counters: &Counters,
    ) -> Result<Option<Turn>, RingError> {
        let gathered = self.gather(len, counters)?;
        if len <= self.capacity {
            write_parts(self.parts.from(self.first), 0, &self.spill[..len]);
            self.complete::<LOGGED>(len, port, counters);
        } else {
            let full = self.gathered().len() == usize::from(self.vring.ring.size());
            match gathered {
                GatherEnd::Pause => return Ok(Some(Turn::More)),
                GatherEnd::Empty if !full => return Ok(Some(Turn::NoBuffers)),
                _ => {}
            }
            counters.dropped(DropReason::RxTooLong).add(1);
            port.dropped(DropReason::RxTooLong, &[IoPart::from_slice(&mut self.spill)], len);
            // Frames that are too long for this guest are no reason to gather more buffers.
            self.wanted = 1;
        }
        self.stashed = None;
        Ok(None)
    }

    /// Takes the frame that was set aside, for the next server of the ring.
    pub fn take_stash(&mut self) -> Option<Vec<u8>> {
        self.stashed.take().and_then(|len| self.spill.get(..len)).map(<[u8]>::to_vec)
    }

    /// Takes over a frame that [`Rx::take_stash`] returned. Ignores one that is longer than any frame.
    pub fn put_stash(&mut self, frame: &[u8]) {
        if let Some(room) = self.spill.get_mut(..frame.len()) {
            room.copy_from_slice(frame);
            self.stashed = Some(frame.len());
        }
    }

    /// Completes the header of a frame in the buffers, and pushes the buffers that it fills.
    #[inline]
    fn complete<const LOGGED: bool>(&mut self, len: usize, port: &dyn PortQueue, counters: &Counters) {
        let parts = self.parts.from(self.first);
        // The spill buffer is free when a frame is in place.
        if read_two(parts) != [0, 0] && !self.offloads.finish(parts, len, &mut self.spill) {
            return self.dropped(DropReason::RxNotOffloaded, len, port, counters);
        }
        let (mut left, mut count) = (len, 0);
        for buffer in &self.buffers[self.next..] {
            let written = left.min(buffer.len);
            self.vring.ring.push_used(buffer.head, written as u32);
            count += 1;
            left -= written;
            self.capacity -= buffer.len;
            self.first += buffer.parts;
            if left == 0 {
                break;
            }
        }
        self.next += count;
        // 1 if frames are not merged: only one buffer is gathered then.
        write_two(parts, NUM_BUFFERS, (count as u16).to_le_bytes());
        if LOGGED {
            self.vring.ring.mark_written(parts, len);
        }
        self.compact();
        counters.rx_frames.add(1);
        counters.rx_bytes.add(len as u64);
    }

    /// Keeps the vectors from growing. Free if nothing is gathered, otherwise needed once in many frames.
    #[inline]
    fn compact(&mut self) {
        if self.gathered().is_empty() {
            self.buffers.clear();
            self.parts.clear();
            (self.next, self.first) = (0, 0);
        } else if self.first >= MAX_PARTS / 2 {
            self.buffers.drain(..self.next);
            self.parts.remove_first(self.first);
            (self.next, self.first) = (0, 0);
        }
    }
}

#[cfg(test)]
mod tests;
