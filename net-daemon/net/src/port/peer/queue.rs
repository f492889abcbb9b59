//! The queue to a peer: frames of the guest are completed or cut, and collected until the end of the batch.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use volt_virtio::part::IoPart;

use super::connection::{Connection, Kind, gone};
use super::memory::{LONGEST, OUTBOX, PREFIX, Span};
use super::{datagram, stream};
use crate::port::{ETHERNET_LEN, PortQueue};
use crate::segments::{Outgoing, SegmentError, Segments, Whole};

/// Bytes in the outbox that are passed on before more are added: they are still in the processor's cache
/// then.
const FLUSH_AT: usize = 128 << 10;

/// A queue on a socket without virtio headers.
#[derive(Debug)]
pub(super) struct PeerQueue(pub(super) Connection);

impl PeerQueue {
    /// Returns `len` bytes at the end of the outbox.
    #[inline]
    fn room(&self, len: usize) -> io::Result<usize> {
        let span = self.0.memory.outbox();
        if span.len() < FLUSH_AT && OUTBOX - span.to >= len {
            return Ok(span.to);
        }
        match self.flush() {
            Err(error) if self.0.memory.is_broken() => return Err(error),
            // The socket is full, or refuses another frame.
            _ => {}
        }
        let span = self.0.memory.outbox();
        if OUTBOX - span.to >= len { Ok(span.to) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    /// Makes the frames up to `to` part of the outbox.
    #[inline]
    fn appended(&self, to: usize) {
        self.0.memory.set_outbox(Span { to, ..self.0.memory.outbox() });
    }

    #[inline]
    fn append(&self, whole: Whole, parts: &[IoPart<'_>]) -> io::Result<()> {
        if !(ETHERNET_LEN..=LONGEST).contains(&whole.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let at = self.room(PREFIX + whole.len)?;
        self.0.memory.put_length(at, whole.len);
        whole.write(parts, self.0.memory.outgoing(at + PREFIX, whole.len));
        self.appended(at + PREFIX + whole.len);
        Ok(())
    }

    /// Appends all segments of a frame, or none.
    fn append_segments(&self, segments: &Segments, parts: &[IoPart<'_>]) -> io::Result<()> {
        let mut at = self.room(segments.count() * (PREFIX + segments.longest()))?;
        for index in 0..segments.count() {
            let len = segments.len(index);
            self.0.memory.put_length(at, len);
            segments.write(index, parts, self.0.memory.outgoing(at + PREFIX, len));
            at += PREFIX + len;
        }
        self.appended(at);
        Ok(())
    }
}

/// The error for a frame that cannot be completed. Allocates nothing: a guest can cause any number.
fn refused(_: SegmentError) -> io::Error {
    io::ErrorKind::InvalidInput.into()
}

impl AsFd for PeerQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

impl PortQueue for PeerQueue {
    fn send(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        if self.0.memory.is_broken() {
            return Err(gone());
        }
        let len = parts.iter().map(|part| part.len()).sum();
        match Outgoing::new(parts, len).map_err(refused)? {
            Outgoing::Whole(whole) => self.append(whole, parts)?,
            Outgoing::Segmented(what) => {
                self.append_segments(&Segments::new(what, parts).map_err(refused)?, parts)?;
            }
        }
        Ok(len)
    }

    fn recv(&self, parts: &[IoPart<'_>]) -> io::Result<usize> {
        if self.0.memory.is_broken() {
            return Err(gone());
        }
        match self.0.kind {
            Kind::Stream => stream::recv(&self.0, parts),
            Kind::Datagram => datagram::recv(&self.0, parts),
        }
    }

    fn flush(&self) -> io::Result<()> {
        let span = self.0.memory.outbox();
        match self.0.kind {
            _ if span.is_empty() => Ok(()),
            _ if self.0.memory.is_broken() => Err(gone()),
            Kind::Stream => stream::flush(&self.0, span),
            Kind::Datagram => datagram::flush(&self.0, span),
        }
    }

    fn release(&self) {
        self.0.release();
    }

    fn probe(&self) -> io::Result<()> {
        match self.0.kind {
            _ if self.0.memory.is_broken() => Err(gone()),
            Kind::Stream => stream::probe(&self.0),
            Kind::Datagram => datagram::probe(&self.0),
        }
    }
}
