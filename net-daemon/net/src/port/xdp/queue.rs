//! A queue of an AF_XDP port: one copy each way between the guest's buffers and the UMEM.
//!
//! ```text
//! send     -> a chunk and a descriptor for each frame or segment
//! flush    -> descriptors published, the kernel told by one call for 32 of them
//! recv     <- a frame of the receive ring
//! release  <- its chunks to the fill ring, its entries to the kernel
//! ```
//!
//! All positions are in memory that outlives the process (`ring`, `umem`), except those of the batch in
//! progress. A crash can repeat the frames of that batch to the wire, and lose those to the guest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, fence};
use std::time::Duration;

use log::warn;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use volt_virtio::part::{IoPart, spread_part, write_parts};

use super::ring::Rings;
use super::umem::{RX, TX, Umem};
use crate::port::timer::Timer;
use crate::port::{HEADER_LEN, PortQueue};
use crate::segments::{Outgoing, Segmentation, Segments, Whole};
use crate::state::{Exporter, FdId, Numbered};

/// Most calls to pass on a full ring, at 32 descriptors each. A kernel that gets fewer makes the queue wait.
const CALLS: u32 = TX / 32;
/// How long a full queue waits. The kernel does not report each chunk that it gives back.
const PAUSE: Duration = Duration::from_micros(500);

/// A queue: a bound socket with its memory.
#[derive(Debug)]
pub(super) struct XdpQueue {
    socket: Numbered<OwnedFd>,
    umem: Umem,
    umem_id: FdId,
    /// `None`: the interface was deleted before this process could map them.
    rings: Option<Rings>,
    /// Position up to which frames were received. Those before it are released after the batch.
    received: AtomicU32,
    /// Position up to which frames were sent. Those before it are published after the batch.
    sent: AtomicU32,
    /// Error number with which the interface refuses all frames, as of the last attempt. 0: none.
    refuses: AtomicI32,
    /// Whether a frame that is too long was logged.
    too_long: AtomicBool,
    /// Ends the wait of a full queue.
    timer: Timer,
}

impl XdpQueue {
    /// Maps the rings of `socket`, whose memory is `umem`.
    pub(super) fn over(socket: Numbered<OwnedFd>, umem: Umem, umem_id: FdId) -> io::Result<XdpQueue> {
        let rings = Rings::map(&socket)?;
        let (received, sent, refuses) = match &rings {
            Some(rings) => (rings.rx.consumed(), rings.tx.produced(), 0),
            None => (0, 0, libc::ENODEV),
        };
        Ok(XdpQueue {
            socket,
            umem,
            umem_id,
            rings,
            received: AtomicU32::new(received),
            sent: AtomicU32::new(sent),
            refuses: AtomicI32::new(refuses),
            too_long: AtomicBool::new(false),
            timer: Timer::new()?,
        })
    }

    /// Whether the interface was deleted. Asks the kernel.
    pub(super) fn is_gone(&self) -> bool {
        self.rings.is_none() || self.tell() == Err(Errno::NODEV)
    }

    /// Whether the rings could be mapped.
    pub(super) fn is_mapped(&self) -> bool {
        self.rings.is_some()
    }

    #[inline]
    fn rings(&self) -> io::Result<&Rings> {
        match &self.rings {
            Some(rings) => Ok(rings),
            None => Err(Errno::NODEV.into()),
        }
    }

    /// Gives all receive chunks of a new socket to the kernel.
    pub(super) fn fill_up(&self) {
        if let Some(rings) = &self.rings {
            (0..RX).for_each(|index| rings.fill.set_address(index, self.umem.rx_address(index)));
            rings.fill.produce(RX);
        }
    }

    /// Continues where another process stopped, or died.
    pub(super) fn resume(&self) {
        let Some(rings) = &self.rings else { return };
        // As many chunks went to the fill ring as entries were given back. An entry whose chunk went alone
        // belongs to the batch that was lost, and the chunk may hold another frame by now.
        let released = rings.fill.produced().wrapping_sub(RX);
        rings.rx.consume(released);
        self.received.store(released, Relaxed);
        let published = rings.tx.produced();
        self.umem.take_back(published);
        self.sent.store(published, Relaxed);
        // Before anything is sent: an entry that was half taken must not free a chunk of a later frame.
        self.reap(rings);
    }

    /// Returns the socket alone.
    pub(super) fn into_socket(self) -> OwnedFd {
        self.socket.into_inner()
    }

    /// Adds socket and memory to a state.
    pub(super) fn export<'a>(&'a self, out: &mut Exporter<'a>) -> (FdId, FdId) {
        if let Some(file) = self.umem.file() {
            out.fd(self.umem_id, file);
        }
        (self.socket.export(out), self.umem_id)
    }

    /// Returns the interface's queue.
    pub(super) fn number(&self) -> u32 {
        self.umem.queue()
    }

    /// Takes the chunks that the kernel has given back.
    fn reap(&self, rings: &Rings) {
        let (mut position, end) = (rings.done.consumed(), rings.done.produced());
        while position != end {
            self.umem.has_back(rings.done.address(position));
            position = position.wrapping_add(1);
        }
        rings.done.consume(end);
    }

    /// Whether the next `count` positions and their chunks are free.
    #[inline]
    fn is_free(&self, rings: &Rings, count: u32) -> bool {
        let sent = self.sent.load(Relaxed);
        let room = TX - sent.wrapping_sub(rings.tx.consumed()).min(TX);
        count <= room && (0..count).all(|index| !self.umem.is_with_kernel(sent.wrapping_add(index)))
    }

    /// Returns the first of `count` free positions.
    #[inline]
    fn room(&self, rings: &Rings, count: u32) -> io::Result<u32> {
        match self.refuses.load(Relaxed) {
            0 if self.is_free(rings, count) => {}
            0 => self.make_room(rings, count)?,
            number => return Err(io::Error::from_raw_os_error(number)),
        }
        Ok(self.sent.load(Relaxed))
    }

    #[cold]
    fn make_room(&self, rings: &Rings, count: u32) -> io::Result<()> {
        self.reap(rings);
        if !self.is_free(rings, count) {
            match self.pass_on(rings) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ => self.reap(rings),
            }
        }
        if !self.is_free(rings, count) {
            // A driver without copies may give chunks back only if it is asked.
            if rings.tx.needs_wakeup() {
                let _ = self.tell();
            }
            self.timer.arm(PAUSE)?;
            return Err(Errno::AGAIN.into());
        }
        Ok(())
    }

    #[inline]
    fn send_whole(&self, frame: Whole, parts: &[IoPart<'_>]) -> io::Result<()> {
        let rings = self.rings()?;
        self.check_length(frame.len)?;
        let position = self.room(rings, 1)?;
        let (address, len) = (self.umem.tx_address(position), frame.len as u32);
        frame.write(parts, self.umem.part(address, len));
        rings.tx.set_descriptor(position, address, len);
        self.sent.store(position.wrapping_add(1), Relaxed);
        Ok(())
    }

    #[inline(never)]
    fn send_segments(&self, what: Segmentation, parts: &[IoPart<'_>]) -> io::Result<()> {
        let rings = self.rings()?;
        let segments = Segments::new(what, parts).map_err(|_| Errno::INVAL)?;
        self.check_length(segments.longest())?;
        let position = self.room(rings, segments.count() as u32)?;
        for index in 0..segments.count() {
            let position = position.wrapping_add(index as u32);
            let (address, len) = (self.umem.tx_address(position), segments.len(index) as u32);
            segments.write(index, parts, self.umem.part(address, len));
            rings.tx.set_descriptor(position, address, len);
        }
        self.sent.store(position.wrapping_add(segments.count() as u32), Relaxed);
        Ok(())
    }

    #[inline]
    fn check_length(&self, len: usize) -> io::Result<()> {
        let longest = self.umem.longest() as usize;
        if len <= longest {
            return Ok(());
        }
        if !self.too_long.swap(true, Relaxed) {
            warn!(
                event = "frame_too_long", len, longest;
                "the guest sends frames of {len} bytes, the interface takes {longest}: longer ones are \
                 dropped"
            );
        }
        Err(Errno::MSGSIZE.into())
    }

    /// Publishes the frames of the batch, and tells the kernel until it has taken all of them.
    fn pass_on(&self, rings: &Rings) -> io::Result<()> {
        let (published, sent) = (rings.tx.produced(), self.sent.load(Relaxed));
        if published != sent {
            self.umem.give(published, sent);
            rings.tx.produce(sent);
            // A driver first says that it must be told, and then looks for frames.
            fence(SeqCst);
        }
        for _ in 0..CALLS {
            let taken = rings.tx.consumed();
            let refuses = self.refuses.load(Relaxed) != 0;
            if !refuses && (taken == sent || !rings.tx.needs_wakeup()) {
                return Ok(());
            }
            match self.tell() {
                Ok(()) => return Ok(()),
                // It has taken a frame, which the interface has dropped.
                Err(Errno::BUSY) => {}
                // It takes 32 frames in one call, or fewer if memory is short.
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::INTR) => {
                    if rings.tx.consumed() == taken {
                        break;
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(Errno::AGAIN.into())
    }

    /// Tells the kernel of new frames to send.
    fn tell(&self) -> Result<(), Errno> {
        let told = match send(&*self.socket, &[], SendFlags::DONTWAIT) {
            // Not bound any more: the interface was deleted.
            Err(Errno::NXIO) => Err(Errno::NODEV),
            told => told.map(drop),
        };
        let refuses = match told {
            Err(errno @ (Errno::NETDOWN | Errno::NODEV)) => errno.raw_os_error(),
            _ => 0,
        };
        self.refuses.store(refuses, Relaxed);
        told
    }

    /// Tells a driver without copies that it has chunks again. An error shows when sending.
    #[cold]
    fn tell_of_chunks(&self) {
        let _ = recv(&*self.socket, &mut [0; 0], RecvFlags::DONTWAIT);
    }
}

impl AsFd for XdpQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl PortQueue for XdpQueue {
    #[inline]
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        let len = parts.iter().map(|part| part.len()).sum();
        match Outgoing::new(parts, len).map_err(|_| Errno::INVAL)? {
            Outgoing::Whole(frame) => self.send_whole(frame, parts)?,
            Outgoing::Segmented(what) => self.send_segments(what, parts)?,
        }
        Ok(len)
    }

    fn flush(&self) -> io::Result<()> {
        let rings = self.rings()?;
        if self.sent.load(Relaxed) == rings.tx.consumed() && self.refuses.load(Relaxed) == 0 {
            return Ok(());
        }
        match self.pass_on(rings) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.timer.arm(PAUSE)?;
                Err(error)
            }
            passed => passed,
        }
    }

    #[inline]
    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        let rings = self.rings()?;
        let position = self.received.load(Relaxed);
        if position == rings.rx.produced() {
            if rings.fill.needs_wakeup() {
                self.tell_of_chunks();
            }
            return Err(Errno::AGAIN.into());
        }
        let (address, len) = rings.rx.descriptor(position);
        let frame = self.umem.part(address, len);
        write_parts(parts, 0, &[0; HEADER_LEN]);
        spread_part(frame, parts, HEADER_LEN);
        self.received.store(position.wrapping_add(1), Relaxed);
        Ok(HEADER_LEN + len as usize)
    }

    fn release(&self) {
        let Some(rings) = &self.rings else { return };
        let (mut position, end) = (rings.rx.consumed(), self.received.load(Relaxed));
        if position == end {
            return;
        }
        let mut filled = rings.fill.produced();
        while position != end {
            let (address, _) = rings.rx.descriptor(position);
            rings.fill.set_address(filled, self.umem.chunk_of(address));
            (position, filled) = (position.wrapping_add(1), filled.wrapping_add(1));
        }
        rings.fill.produce(filled);
        rings.rx.consume(end);
        fence(SeqCst);
        if rings.fill.needs_wakeup() {
            self.tell_of_chunks();
        }
    }

    fn probe(&self) -> io::Result<()> {
        Ok(self.tell()?)
    }

    /// The kernel would report each chunk that it gives back, which takes it 100 ns.
    fn tells_room(&self) -> bool {
        false
    }

    fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.timer.as_fd()]
    }
}

#[cfg(test)]
mod tests;
