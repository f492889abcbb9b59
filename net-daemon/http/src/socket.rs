//! Reading and writing a socket within bounded time. Only [`wait`] blocks, even if the socket itself is
//! blocking.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Maximum number of descriptors of a request.
pub const DESCRIPTORS_MAX: usize = 16;
/// Maximum number of bytes to read at once.
const PIECE: usize = 4096;

/// A point in time at which a wait ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline(Instant);

impl Deadline {
    pub(crate) fn after(limit: Duration) -> Deadline {
        Deadline(Instant::now() + limit)
    }

    pub(crate) fn or(self, other: Deadline) -> Deadline {
        Deadline(self.0.min(other.0))
    }

    /// Returns the remaining time, rounded up to a millisecond, so that a wait does not end just before the
    /// deadline.
    pub(crate) fn left(self) -> Timespec {
        let left = self.0.saturating_duration_since(Instant::now());
        let left = left + Duration::from_millis(u64::from(!left.is_zero()));
        // Fails only for a time of centuries.
        Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 })
    }
}

/// The reason why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// One of the first descriptor's events occurred. This has precedence.
    Ready,
    /// The second descriptor is readable: the caller must end.
    Ends,
    /// Time is up.
    Late,
}

/// Waits for `events` of `fd`, until `end` is readable, or until `deadline`, if these are given. Hang-ups and
/// errors of `fd` count as its events.
///
/// # Errors
///
/// Fails only if the system is out of memory.
pub(crate) fn wait(
    fd: impl AsFd,
    events: PollFlags,
    end: Option<BorrowedFd<'_>>,
    deadline: Option<Deadline>,
) -> io::Result<Woken> {
    let fd = PollFd::from_borrowed_fd(fd.as_fd(), events);
    let end = end.map(|end| PollFd::from_borrowed_fd(end, PollFlags::IN));
    let mut both: Vec<_> = std::iter::once(fd).chain(end).collect();
    loop {
        match poll(&mut both, deadline.map(Deadline::left).as_ref()) {
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(0) => return Ok(Woken::Late),
            Ok(_) if both[0].revents().is_empty() => return Ok(Woken::Ends),
            Ok(_) => return Ok(Woken::Ready),
        }
    }
}

/// The result of a read from a socket.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// At least one byte.
    Bytes(usize),
    /// No bytes yet.
    Nothing,
    /// The other side sends no more.
    End,
    /// Bytes with descriptors, some of which the system had no room for and closed.
    Truncated,
}

/// Reads up to `most` available bytes and appends them to `bytes`. Appends received descriptors, up to
/// [`DESCRIPTORS_MAX`] in one message, to `descriptors`. They are close-on-exec.
///
/// # Errors
///
/// Returns the socket's errors.
pub(crate) fn receive(
    socket: impl AsFd,
    bytes: &mut Vec<u8>,
    most: usize,
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut piece = [0; PIECE];
    let piece = &mut piece[..most.min(PIECE)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(piece)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Received::Nothing),
            result => break result?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            descriptors.extend(more);
        }
    }
    bytes.extend(&piece[..received.bytes]);
    Ok(match received.bytes {
        _ if received.flags.contains(ReturnFlags::CTRUNC) => Received::Truncated,
        0 => Received::End,
        count => Received::Bytes(count),
    })
}

/// Sends as much of `bytes` as the socket accepts, and returns how much. Returns 0 if it is full.
///
/// # Errors
///
/// Returns the socket's errors; `BrokenPipe` if nobody reads any more.
pub(crate) fn send_some(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    send_with(socket, bytes, &[])
}

/// Like [`send_some`], with up to [`DESCRIPTORS_MAX`] `descriptors`, which go with the first byte.
///
/// # Errors
///
/// As [`send_some`].
pub(crate) fn send_with(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("more descriptors than a request can carry"));
    }
    loop {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(0),
            result => return Ok(result?),
        }
    }
}

/// Sends all of `bytes`, unless `end` becomes readable before.
///
/// # Errors
///
/// As [`send_some`]; `TimedOut` if the other side does not read it by the deadline, `Interrupted` by the end.
pub(crate) fn send_all(
    socket: BorrowedFd<'_>,
    mut bytes: &[u8],
    end: BorrowedFd<'_>,
    deadline: Deadline,
) -> io::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[send_some(socket, bytes)?..];
        if bytes.is_empty() {
            break;
        }
        match wait(socket, PollFlags::OUT, Some(end), Some(deadline))? {
            Woken::Ready => {}
            Woken::Ends => return Err(io::ErrorKind::Interrupted.into()),
            Woken::Late => return Err(io::ErrorKind::TimedOut.into()),
        }
    }
    Ok(())
}
