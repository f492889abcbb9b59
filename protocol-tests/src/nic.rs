//! The driver half of a scripted network card: queues with kick and call descriptors, and frames.
//!
//! A [`Nic`] knows no messages: it lives in guest memory and outlasts connections, like a guest. A front-end
//! script names its queues to a back-end ([`crate::session`]); [`Queue::send`], [`Queue::post`] and
//! [`Queue::recv`] then move frames. Waiting uses the call descriptor only, so that a lost notification shows
//! as a time-out.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::EventfdFlags;

use crate::frame::{NET_HEADER_LEN, NetHeader};
use crate::memory::GuestMemory;
use crate::ring::{DriverRing, Layout, Part, RingError, Used};
use crate::wire::{feature, readable};

/// An event on a ring that should have happened and did not.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The device broke the ring, or the script overfilled it.
    #[error("vring {vring}: {error}")]
    Ring {
        /// Index of the vring.
        vring: u32,
        /// The error.
        error: RingError,
    },
    /// No used buffer, or no call for it, in time.
    #[error(
        "vring {vring}: no call with a used buffer in {limit:?} (used.idx {used}, \
         taken {taken}, available {avail})"
    )]
    Timeout {
        /// Index of the vring.
        vring: u32,
        /// Time waited.
        limit: Duration,
        /// The ring's used index: if it differs from `taken`, only the call is missing.
        used: u16,
        /// Used entries taken so far.
        taken: u16,
        /// The available index.
        avail: u16,
    },
    /// A frame that a device must not deliver.
    #[error("vring {vring}: {what}")]
    BadFrame {
        /// Index of the vring.
        vring: u32,
        /// The error.
        what: String,
    },
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A frame as the device delivered it.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// The header before it.
    pub header: NetHeader,
    /// The frame without header.
    pub bytes: Vec<u8>,
    /// The used entries it came in.
    pub chains: Vec<Used>,
}

/// A range of guest memory for buffers.
#[derive(Debug)]
struct Arena {
    start: u64,
    end: u64,
    next: u64,
}

impl Arena {
    fn alloc(&mut self, len: u64) -> u64 {
        let at = self.next.next_multiple_of(16);
        assert!(at + len <= self.end, "the script has more in flight than its arena holds");
        self.next = at + len;
        at
    }
}

/// One virtqueue with its descriptors and buffers.
#[derive(Debug)]
pub struct Queue {
    /// Index of the vring.
    pub vring: u32,
    /// The ring itself, for scripts that need more than frames.
    pub ring: DriverRing,
    /// Kicks the device: an eventfd, or a descriptor that the script put here.
    pub kick: OwnedFd,
    /// Signalled by the device's calls.
    pub call: OwnedFd,
    mem: GuestMemory,
    mergeable: bool,
    buffers: HashMap<u16, Vec<Part>>,
    arena: Arena,
}

/// Makes a non-blocking eventfd.
pub fn eventfd() -> io::Result<OwnedFd> {
    Ok(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

impl Queue {
    /// Makes a queue whose ring is at `layout` and whose buffers come from `arena` (guest addresses).
    pub fn new(
        mem: &GuestMemory,
        vring: u32,
        layout: Layout,
        arena: (u64, u64),
        features: u64,
        start: u16,
    ) -> io::Result<Queue> {
        let event_idx = features & feature::EVENT_IDX != 0;
        Ok(Queue {
            vring,
            ring: DriverRing::new(mem.clone(), layout, event_idx, start),
            kick: eventfd()?,
            call: eventfd()?,
            mem: mem.clone(),
            mergeable: features & feature::MRG_RXBUF != 0,
            buffers: HashMap::new(),
            arena: Arena { start: arena.0, end: arena.1, next: arena.0 },
        })
    }

    /// Allocates a buffer for the script's own use.
    pub fn alloc(&mut self, len: usize) -> u64 {
        self.arena.alloc(len as u64)
    }

    /// Makes one receive chain of buffers of these lengths available; [`Queue::kick`] follows.
    pub fn post(&mut self, lens: &[u32]) -> Result<u16, NicError> {
        let parts: Vec<Part> =
            lens.iter().map(|len| Part::into(self.arena.alloc(u64::from(*len)), *len)).collect();
        self.submit(&parts)
    }

    /// Makes `count` receive chains available and kicks if the device wants it.
    pub fn fill(&mut self, count: usize, lens: &[u32]) -> Result<(), NicError> {
        for _ in 0..count {
            self.post(lens)?;
        }
        self.kick()
    }

    /// Makes a chain of these parts available, and remembers them for [`Queue::recv`].
    pub fn submit(&mut self, parts: &[Part]) -> Result<u16, NicError> {
        let head = self.ring.add(parts).map_err(|error| NicError::Ring { vring: self.vring, error })?;
        self.buffers.insert(head, parts.to_vec());
        Ok(head)
    }

    /// Like `submit`, in an indirect table.
    pub fn submit_indirect(&mut self, parts: &[Part]) -> Result<u16, NicError> {
        let table = self.alloc(16 * parts.len());
        let added = self.ring.add_indirect(parts, table);
        let head = added.map_err(|error| NicError::Ring { vring: self.vring, error })?;
        self.buffers.insert(head, parts.to_vec());
        Ok(head)
    }

    /// Writes header and frame to memory and returns them as parts of these lengths, the rest last. With no
    /// chain in flight, allocation starts again at the beginning.
    pub fn place(&mut self, header: &NetHeader, frame: &[u8], cuts: &[usize]) -> Vec<Part> {
        if self.ring.outstanding() == 0 {
            self.arena.next = self.arena.start;
        }
        let bytes = [header.encode().as_slice(), frame].concat();
        let mut at = self.alloc(bytes.len());
        self.mem.write(at, &bytes);
        let mut left = bytes.len();
        let mut parts = Vec::new();
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let len = cut.min(left);
            if len > 0 {
                parts.push(Part::out(at, len as u32));
            }
            (at, left) = (at + len as u64, left - len);
        }
        parts
    }

    /// Offers a frame in the given parts, without a kick.
    pub fn offer(&mut self, header: &NetHeader, frame: &[u8], cuts: &[usize]) -> Result<u16, NicError> {
        let parts = self.place(header, frame, cuts);
        self.submit(&parts)
    }

    /// Sends one frame in one buffer and waits until the device has used it.
    pub fn send(&mut self, frame: &[u8], limit: Duration) -> Result<Used, NicError> {
        self.send_cut(&NetHeader::default(), frame, &[], limit)
    }

    /// Sends one frame in the given parts and waits until the device has used it.
    pub fn send_cut(
        &mut self,
        header: &NetHeader,
        frame: &[u8],
        cuts: &[usize],
        limit: Duration,
    ) -> Result<Used, NicError> {
        self.offer(header, frame, cuts)?;
        self.kick()?;
        self.used(limit)
    }

    /// Publishes the offered chains and kicks if the device asked for it.
    pub fn kick(&mut self) -> Result<(), NicError> {
        if self.ring.publish() { self.kick_always() } else { Ok(()) }
    }

    /// Publishes and kicks, even if the device does not want it.
    pub fn kick_always(&mut self) -> Result<(), NicError> {
        self.ring.publish();
        match rustix::io::write(&self.kick, &1u64.to_ne_bytes()) {
            // A full counter or pipe also wakes its reader.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(errno) => Err(NicError::Io(errno.into())),
        }
    }

    /// Waits for calls until the device has used a chain, and takes it.
    pub fn used(&mut self, limit: Duration) -> Result<Used, NicError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(used) = self.try_used()? {
                return Ok(used);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !readable(&self.call, left)? {
                let (used, taken) = (self.ring.used_idx(), self.ring.last_used());
                return Err(NicError::Timeout {
                    vring: self.vring,
                    limit,
                    used,
                    taken,
                    avail: self.ring.avail_idx(),
                });
            }
            self.drain_call();
        }
    }

    /// Takes a used chain if there is one.
    pub fn try_used(&mut self) -> Result<Option<Used>, NicError> {
        self.ring.pop_used().map_err(|error| NicError::Ring { vring: self.vring, error })
    }

    /// Returns the number of calls since the last query.
    pub fn drain_call(&mut self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(&self.call, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(_) => 0,
        }
    }

    /// Returns the parts of a chain that is in flight or used; none for another head.
    pub fn parts_of(&self, head: u16) -> &[Part] {
        self.buffers.get(&head).map_or(&[], Vec::as_slice)
    }

    /// Returns the parts of a used chain.
    pub fn parts(&mut self, used: Used) -> Vec<Part> {
        self.buffers.remove(&used.head).unwrap_or_default()
    }

    /// Sends one command on a control queue and returns the answer, 0 for success (virtio 1.2, 5.1.6.5).
    pub fn command(&mut self, class: u8, command: u8, data: &[u8], limit: Duration) -> Result<u8, NicError> {
        let (out, ack) = (self.alloc(2 + data.len()), self.alloc(1));
        self.mem.write(out, &[&[class, command], data].concat());
        self.mem.write(ack, &[0xaa]);
        self.submit(&[Part::out(out, 2), Part::out(out + 2, data.len() as u32), Part::into(ack, 1)])?;
        self.kick()?;
        let used = self.used(limit)?;
        if used.len != 1 {
            let what = format!("used length {} of a command whose answer is one byte", used.len);
            return Err(NicError::BadFrame { vring: self.vring, what });
        }
        Ok(self.mem.read(ack, 1)[0])
    }

    /// Waits for a frame, and makes its buffers available again.
    pub fn recv(&mut self, limit: Duration) -> Result<Frame, NicError> {
        let frame = self.recv_only(limit, true)?;
        self.kick()?;
        Ok(frame)
    }

    /// Waits for a frame. Makes its buffers available again if `again` is set, but without a kick.
    pub fn recv_only(&mut self, limit: Duration, again: bool) -> Result<Frame, NicError> {
        let first = self.used(limit)?;
        let mut bytes = self.take(first, again)?;
        let bad = |vring, what: String| NicError::BadFrame { vring, what };
        let Some((head, rest)) = bytes.split_first_chunk::<NET_HEADER_LEN>() else {
            return Err(bad(self.vring, format!("used length {} is shorter than a header", first.len)));
        };
        let header = NetHeader::decode(head);
        bytes = rest.to_vec();
        let mut chains = vec![first];
        if header.num_buffers == 0 || (!self.mergeable && header.num_buffers != 1) {
            return Err(bad(self.vring, format!("num_buffers is {}", header.num_buffers)));
        }
        for _ in 1..header.num_buffers {
            // All buffers of a frame are published together (5.1.6.4): no waiting here.
            let next = self.try_used()?;
            let next =
                next.ok_or_else(|| bad(self.vring, "a frame's buffers were not published together".into()))?;
            bytes.extend(self.take(next, again)?);
            chains.push(next);
        }
        Ok(Frame { header, bytes, chains })
    }

    /// Takes the chains that were returned unserved, with nothing written, and makes them available again.
    /// Returns their number.
    pub fn take_unserved(&mut self) -> Result<usize, NicError> {
        let mut count = 0;
        while let Some(used) = self.try_used()? {
            let bytes = self.take(used, true)?;
            if !bytes.is_empty() {
                let what = format!("{} unexpected bytes", bytes.len());
                return Err(NicError::BadFrame { vring: self.vring, what });
            }
            count += 1;
        }
        self.kick()?;
        Ok(count)
    }

    /// Returns the bytes that the device wrote to a chain.
    fn take(&mut self, used: Used, again: bool) -> Result<Vec<u8>, NicError> {
        let parts = self.parts(used);
        let room: u32 = parts.iter().map(|part| part.len).sum();
        if used.len > room {
            let what = format!("used length {} of a chain of {room} bytes", used.len);
            return Err(NicError::BadFrame { vring: self.vring, what });
        }
        let mut bytes = Vec::with_capacity(used.len as usize);
        for part in &parts {
            let len = (part.len as usize).min(used.len as usize - bytes.len());
            bytes.extend(self.mem.read(part.addr, len));
        }
        if again {
            self.submit(&parts)?;
        }
        Ok(bytes)
    }
}

/// All queues of a card: receive 0, transmit 0, receive 1, ... and a control queue if there is one.
#[derive(Debug)]
pub struct Nic {
    /// The guest's memory.
    pub mem: GuestMemory,
    /// Features that the driver applies (EVENT_IDX, MRG_RXBUF).
    pub features: u64,
    /// The queues, by vring index.
    pub queues: Vec<Queue>,
}

impl Nic {
    /// Makes queues of `size` with these vring indices, with rings and buffers in `range` (guest addresses).
    /// All ring indices begin at `start`.
    pub fn new(
        mem: GuestMemory,
        range: (u64, u64),
        vrings: &[u32],
        size: u16,
        features: u64,
        start: u16,
    ) -> io::Result<Nic> {
        let share = (range.1 - range.0) / vrings.len() as u64 / 4096 * 4096;
        let queue = |(at, vring): (usize, &u32)| {
            let base = range.0 + at as u64 * share;
            let layout = Layout::at(base, size);
            let arena = (layout.end().next_multiple_of(4096), base + share);
            Queue::new(&mem, *vring, layout, arena, features, start)
        };
        let queues = vrings.iter().enumerate().map(queue).collect::<io::Result<_>>()?;
        Ok(Nic { mem, features, queues })
    }

    /// Returns the number of pairs.
    pub fn pairs(&self) -> u32 {
        self.queues.len() as u32 / 2
    }

    /// Returns the receive queue of a pair.
    pub fn rx(&mut self, pair: usize) -> &mut Queue {
        &mut self.queues[2 * pair]
    }

    /// Returns the transmit queue of a pair.
    pub fn tx(&mut self, pair: usize) -> &mut Queue {
        &mut self.queues[2 * pair + 1]
    }
}
