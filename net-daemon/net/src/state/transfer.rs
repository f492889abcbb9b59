//! Transfer of states between processes: a JSON document with descriptors, over a Unix stream socket.
//!
//! A frame is two little-endian 32-bit words, the length of the document in bytes and the number of
//! descriptors, followed by the document. The first descriptors come with the words, as many as one `sendmsg`
//! can carry. Further ones come with single zero bytes between the words and the document. Both ends belong
//! to the same user. Lengths are bounded nevertheless.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Maximum length of a document: 127 pairs with a frame of the largest size each, in hexadecimal, and room
/// for the rest.
const MAX_LEN: usize = 32 << 20;
/// Maximum number of descriptors: 127 pairs of queue, kicks, calls and errs, 128 memory regions, sockets.
const MAX_FDS: usize = 4096;
/// Maximum number of bytes to allocate at once.
const MAX_READ: usize = 1 << 16;
/// Maximum number of descriptors in one `sendmsg` (`SCM_MAX_FD`).
const MAX_FDS_AT_ONCE: usize = 253;

/// Sends `document` with `fds`. The socket's timeout applies.
///
/// # Errors
///
/// Returns the socket's errors; `BrokenPipe` if nobody reads any more.
pub fn send(socket: &UnixStream, document: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(document)?;
    let words = [text.len() as u32, fds.len() as u32].map(u32::to_le_bytes).concat();
    let mut batches = fds.chunks(MAX_FDS_AT_ONCE);
    // The first descriptors come with the first byte.
    let mut sent = send_with(socket, &words, batches.next().unwrap_or_default())?;
    while sent < words.len() {
        sent += send_with(socket, &words[sent..], &[])?;
    }
    for batch in batches {
        send_with(socket, &[0], batch)?;
    }
    let mut left = text.as_slice();
    while !left.is_empty() {
        let sent = send_with(socket, left, &[])?;
        left = &left[sent..];
    }
    Ok(())
}

fn send_with(socket: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS_AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Returns the document of a frame without descriptors that is complete in `bytes`, and the frame's length.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, usize)> {
    let len = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
    let text = bytes.get(8..8usize.checked_add(len)?)?;
    Some((serde_json::from_slice(text).ok()?, 8 + len))
}

/// Receives a document with its descriptors. The socket's timeout applies to each part.
///
/// # Errors
///
/// Returns `UnexpectedEof` if the other side is gone, `InvalidData` for invalid frames, otherwise the
/// socket's errors.
pub fn receive<T: DeserializeOwned>(socket: &UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    Receiver { socket, deadline: None }.receive()
}

/// Like [`receive`], but for a sender that may be slow or silent: everything must arrive within `limit`,
/// which replaces the socket's timeout.
///
/// # Errors
///
/// Like [`receive`]; `WouldBlock` or `TimedOut` when the time is up.
pub fn receive_within<T: DeserializeOwned>(
    socket: &UnixStream,
    limit: Duration,
) -> io::Result<(T, Vec<OwnedFd>)> {
    Receiver { socket, deadline: Some(Instant::now() + limit) }.receive()
}

struct Receiver<'a> {
    socket: &'a UnixStream,
    deadline: Option<Instant>,
}

impl Receiver<'_> {
    fn receive<T: DeserializeOwned>(&self) -> io::Result<(T, Vec<OwnedFd>)> {
        let mut fds = Vec::new();
        let mut words = [[0; 4]; 2];
        self.fill(words.as_flattened_mut(), &mut fds)?;
        let [len, count] = words.map(|word| u32::from_le_bytes(word) as usize);
        if len > MAX_LEN || count > MAX_FDS {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a frame of this program"));
        }
        while fds.len() < count {
            let before = fds.len();
            self.fill(&mut [0], &mut fds)?;
            if fds.len() == before {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "fewer descriptors than announced"));
            }
        }
        // Allocate no more memory than received bytes need, whatever length is announced.
        let mut text = Vec::new();
        while text.len() < len {
            let from = text.len();
            text.resize(len.min(from + MAX_READ), 0);
            self.fill(&mut text[from..], &mut fds)?;
        }
        Ok((serde_json::from_slice(&text)?, fds))
    }

    /// Fills `bytes`, and keeps the descriptors that come with them.
    fn fill(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS_AT_ONCE))];
        let mut done = 0;
        while done < bytes.len() {
            if let Some(deadline) = self.deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                let left = Some(left).filter(|left| !left.is_zero()).ok_or(io::ErrorKind::TimedOut)?;
                self.socket.set_read_timeout(Some(left))?;
            }
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut bytes[done..])];
            let received = match recvmsg(self.socket, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => continue,
                result => result?,
            };
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(more) = message {
                    fds.extend(more);
                }
            }
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if received.flags.contains(ReturnFlags::CTRUNC) {
                return Err(io::Error::other("descriptors are missing: is the limit of open files too low?"));
            }
            if fds.len() > MAX_FDS {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "too many descriptors"));
            }
            done += received.bytes;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn a_document_and_very_many_descriptors_arrive_in_order() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fds: Vec<_> = (0..600).map(|count| eventfd(count, EventfdFlags::NONBLOCK).unwrap()).collect();
        let text = "x".repeat(1_000_000);
        let sender = {
            let text = text.clone();
            std::thread::spawn(move || {
                let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                send(&ours, &text, &borrowed).unwrap();
                send(&ours, &7, &[]).unwrap();
            })
        };
        let (document, fds) = receive::<String>(&theirs).unwrap();
        assert_eq!(document, text);
        for (index, fd) in fds.iter().enumerate().skip(1) {
            let mut count = [0; 8];
            rustix::io::read(fd, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), index as u64);
        }
        assert_eq!(fds.len(), 600);
        assert_eq!(receive::<u32>(&theirs).unwrap().0, 7);
        let end = receive::<u32>(&theirs).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
        sender.join().unwrap();
    }

    #[test]
    fn what_is_no_frame_is_refused_and_half_a_frame_is_an_end() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[0xff; 8]).unwrap();
        assert_eq!(receive::<u32>(&theirs).unwrap_err().kind(), io::ErrorKind::InvalidData);
        ours.write_all(&[9, 0, 0, 0, 0, 0, 0, 0, b'1']).unwrap();
        drop(ours);
        assert_eq!(receive::<u32>(&theirs).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn promised_descriptors_must_come() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        assert_eq!(receive::<u32>(&theirs).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_sender_that_trickles_has_no_more_time_than_others() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let sender = std::thread::spawn(move || {
            ours.write_all(&[0xd0, 7, 0, 0, 0, 0, 0, 0]).unwrap();
            (0..2000).try_for_each(|_| {
                std::thread::sleep(Duration::from_millis(10));
                ours.write_all(b" ")
            })
        });
        let start = Instant::now();
        let error = receive_within::<u32>(&theirs, Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock), "{error}");
        // Receiving all of it would take 20 s.
        assert!(start.elapsed() < Duration::from_secs(10));
        drop(theirs);
        assert!(sender.join().unwrap().is_err());
    }
}
