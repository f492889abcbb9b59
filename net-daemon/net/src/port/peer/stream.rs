//! Frames in a stream of bytes, each behind its length in 32 bits, big-endian: QEMU's `-netdev stream`, passt
//! and gvproxy's QEMU protocol.
#![expect(unsafe_code, reason = "read and write on shared memory")]

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::Relaxed;

use volt_virtio::part::{IoPart, spread_part};

use super::connection::{Broken, Connection, put_header};
use super::memory::{LONGEST, PREFIX, PeerMemory, Span};
use crate::port::{ETHERNET_LEN, HEADER_LEN};

/// Most bytes of a read. More would leave the processor's cache before they are copied to the guest.
const READ: usize = 64 << 10;

/// Writes what waits in the outbox.
pub(super) fn flush(on: &Connection, mut span: Span) -> io::Result<()> {
    let memory = &on.memory;
    while !span.is_empty() {
        let part = memory.outgoing(span.from, span.len());
        let piece = IoPart::as_iovecs(&[part])[0];
        // SAFETY: the part is mapped memory, which is only read.
        let write = || unsafe { libc::write(on.socket.as_raw_fd(), piece.iov_base, piece.iov_len) };
        let written = memory.under_way(write, |written| {
            span = span.without((*written).max(0) as usize);
            memory.set_outbox(span);
        });
        if written < 0 {
            interpret(on)?;
        }
    }
    Ok(())
}

/// Delivers the next frame of the inbox, which is filled if it has none.
#[inline]
pub(super) fn recv(on: &Connection, parts: &[IoPart<'_>]) -> io::Result<usize> {
    loop {
        if let Some(frame) = next(on)? {
            put_header(parts);
            spread_part(on.memory.incoming(frame.from, frame.len()), parts, HEADER_LEN);
            on.taken.store(frame.to, Relaxed);
            return Ok(HEADER_LEN + frame.len());
        }
        fill(on)?;
    }
}

/// Looks whether the connection ended. Takes no frame.
pub(super) fn probe(on: &Connection) -> io::Result<()> {
    match next(on)? {
        Some(_) => Ok(()),
        None => fill(on),
    }
}

/// Returns the next whole frame in the inbox.
#[inline]
fn next(on: &Connection) -> io::Result<Option<Span>> {
    let rest = Span { from: on.taken.load(Relaxed), to: on.memory.inbox().to };
    if rest.len() < PREFIX {
        return Ok(None);
    }
    let len = PeerMemory::length(on.memory.incoming(rest.from, PREFIX));
    if !(ETHERNET_LEN..=LONGEST).contains(&len) {
        return Err(on.broken(Broken::Length(len)));
    }
    let from = rest.from + PREFIX;
    Ok((rest.len() >= PREFIX + len).then_some(Span { from, to: from + len }))
}

/// Reads more bytes into the inbox, which has no whole frame.
fn fill(on: &Connection) -> io::Result<()> {
    let memory = &on.memory;
    let (before, taken) = (memory.inbox(), on.taken.load(Relaxed));
    let span = memory.make_room(taken);
    if span != before {
        on.taken.store(0, Relaxed);
    }
    let part = memory.room_in(span, READ);
    let room = IoPart::as_iovecs(&[part])[0];
    // SAFETY: the part is mapped memory without references to it.
    let read = || unsafe { libc::read(on.socket.as_raw_fd(), room.iov_base, room.iov_len) };
    let bytes = memory.under_way(read, |bytes| {
        memory.set_inbox(Span { to: span.to + (*bytes).max(0) as usize, ..span });
    });
    match bytes {
        0 if on.taken.load(Relaxed) == span.to => Err(on.broken(Broken::Closed)),
        0 => Err(on.broken(Broken::MidFrame)),
        bytes if bytes > 0 => Ok(()),
        _ => interpret(on),
    }
}

/// Interprets the error of a call, which moved no byte. Returns `Ok` if it is to be repeated.
#[cold]
fn interpret(on: &Connection) -> io::Result<()> {
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        io::ErrorKind::WouldBlock => Err(error),
        _ => Err(on.broken(Broken::System(error))),
    }
}
