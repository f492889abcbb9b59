//! Frames in datagrams: QEMU's `-netdev dgram`, and what is compatible with vfkit's network (gvproxy,
//! vmnet-helper, libkrun).
//!
//! A Unix socket takes `net.unix.max_dgram_qlen` datagrams, usually 10, from a peer that does not read. A
//! datagram either goes as a whole or not at all, so that no note is needed for a process that dies: at most
//! its last batch goes twice.
#![expect(unsafe_code, reason = "sendmmsg and readv on shared and guest memory")]

use std::io;
use std::os::fd::AsRawFd;

use volt_virtio::part::{IoPart, spread_part};

use super::connection::{Broken, Connection, put_header};
use super::memory::{LONGEST, PREFIX, PeerMemory, Span};
use crate::port::HEADER_LEN;

/// Datagrams of a call.
const MOST: usize = 32;
/// Parts of the guest's buffers that a datagram is read into directly. With more, it is copied.
const DIRECT: usize = 32;

/// Sends what waits in the outbox. A frame that the system refuses is left out, and its error returned.
pub(super) fn flush(on: &Connection, mut span: Span) -> io::Result<()> {
    let memory = &on.memory;
    let mut result = Ok(());
    while !span.is_empty() {
        let sent = send_some(on, span);
        let error = io::Error::last_os_error();
        match usize::try_from(sent) {
            Ok(sent) => span = without_frames(memory, span, sent),
            Err(_) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if is_gone(&error) => return Err(on.broken(Broken::System(error))),
            Err(_) => {
                span = without_frames(memory, span, 1);
                result = Err(error);
            }
        }
        memory.set_outbox(span);
    }
    result
}

/// Sends the first frames of `span`. Returns how many, or -1 with an error of the system.
fn send_some(on: &Connection, mut span: Span) -> libc::c_int {
    let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut pieces = [nothing; MOST];
    // SAFETY: all-zero bytes are a valid mmsghdr: no address, no parts, no control data.
    let mut messages: [libc::mmsghdr; MOST] = unsafe { std::mem::zeroed() };
    let mut count = 0;
    for (piece, message) in pieces.iter_mut().zip(&mut messages) {
        if span.is_empty() {
            break;
        }
        let len = frame_len(&on.memory, span);
        let part = on.memory.outgoing(span.from + PREFIX, len);
        *piece = IoPart::as_iovecs(&[part])[0];
        message.msg_hdr.msg_iov = piece;
        message.msg_hdr.msg_iovlen = 1;
        span = span.without(PREFIX + len);
        count += 1;
    }
    // SAFETY: the messages point to the pieces, and these to mapped memory, which is only read.
    unsafe { libc::sendmmsg(on.socket.as_raw_fd(), messages.as_mut_ptr(), count, 0) }
}

/// Returns the length of the first frame of `span`.
fn frame_len(memory: &PeerMemory, span: Span) -> usize {
    PeerMemory::length(memory.outgoing(span.from, PREFIX))
}

fn without_frames(memory: &PeerMemory, span: Span, frames: usize) -> Span {
    (0..frames).fold(span, |span, _| span.without(PREFIX + frame_len(memory, span)))
}

/// Whether nobody receives at the other end, or somebody else than before.
fn is_gone(error: &io::Error) -> bool {
    let numbers = [libc::ECONNREFUSED, libc::ECONNRESET, libc::EPIPE, libc::ENOTCONN];
    error.raw_os_error().is_some_and(|number| numbers.contains(&number))
}

/// Receives a datagram behind an empty header. One that is too short or too long returns the length of a
/// header only, which is no frame.
pub(super) fn recv(on: &Connection, parts: &[IoPart<'_>]) -> io::Result<usize> {
    let room: usize = parts.iter().map(|part| part.len()).sum();
    let bytes = match direct(parts) {
        Some((parts, count)) => read(on, &parts[..count])?,
        None => {
            let bytes = read(on, &[on.memory.incoming(0, LONGEST)])?;
            if bytes > 0 {
                spread_part(on.memory.incoming(0, bytes), parts, HEADER_LEN);
            }
            bytes
        }
    };
    put_header(parts);
    // A datagram that fills all room may have been longer.
    let is_whole = bytes < LONGEST.min(room.saturating_sub(HEADER_LEN));
    Ok(if is_whole { HEADER_LEN + bytes } else { HEADER_LEN })
}

/// Returns the parts behind the header, if they are few.
#[inline]
fn direct<'m>(parts: &[IoPart<'m>]) -> Option<([IoPart<'m>; DIRECT], usize)> {
    let mut skip = HEADER_LEN;
    let mut all = [*parts.first()?; DIRECT];
    let mut count = 0;
    for part in parts {
        let now = skip.min(part.len());
        skip -= now;
        if let Some(rest) = part.skip(now) {
            *all.get_mut(count)? = rest;
            count += 1;
        }
    }
    (count > 0).then_some((all, count))
}

fn read(on: &Connection, parts: &[IoPart<'_>]) -> io::Result<usize> {
    let pieces = IoPart::as_iovecs(parts);
    loop {
        // SAFETY: the parts borrow their memory: the guest's, or a buffer without other references.
        let bytes =
            unsafe { libc::readv(on.socket.as_raw_fd(), pieces.as_ptr(), pieces.len() as libc::c_int) };
        if let Ok(bytes) = usize::try_from(bytes) {
            return Ok(bytes);
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Err(error),
            _ if is_gone(&error) => return Err(on.broken(Broken::System(error))),
            _ => return Err(error),
        }
    }
}

/// Takes the socket's pending error.
pub(super) fn probe(on: &Connection) -> io::Result<()> {
    read(on, &[on.memory.incoming(0, 1)]).map(drop)
}
