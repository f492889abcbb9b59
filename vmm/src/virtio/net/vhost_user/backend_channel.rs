//! The back-end's own requests, on the channel of SET_BACKEND_REQ_FD. One of them is supported: its
//! configuration space has changed.
//!
//! The crate's handler waits for the rest of a message that has begun. This code waits for nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use log::debug;

const CONFIG_CHANGE: u32 = 2;

/// Flags of a header: version, reply, need reply.
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

const HEADER: usize = 12;
/// Longest body of any request of a back-end, with some room.
const LONGEST: u32 = 4096;
/// Most bytes taken before the thread does something else.
const AT_ONCE: usize = 4096;

/// The front-end's end of the channel.
pub(super) struct BackendChannel {
    socket: UnixStream,
    /// The received part of the next messages.
    bytes: Vec<u8>,
}

impl BackendChannel {
    /// Creates a channel, and returns it with the back-end's end.
    ///
    /// # Errors
    ///
    /// Fails if the process may open no more files.
    pub(super) fn new() -> io::Result<(BackendChannel, UnixStream)> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        Ok((BackendChannel { socket, bytes: Vec::new() }, theirs))
    }

    /// Takes the received requests, and answers those that need an answer. Returns whether the configuration
    /// space has changed.
    ///
    /// # Errors
    ///
    /// Fails if the channel has ended, carries no valid messages, or its other end does not read.
    pub(super) fn take(&mut self) -> io::Result<bool> {
        let mut piece = [0; AT_ONCE];
        match self.socket.read(&mut piece) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) => self.bytes.extend_from_slice(&piece[..len]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        let mut changed = false;
        while let Some((request, flags)) = self.next()? {
            changed |= request == CONFIG_CHANGE;
            if request != CONFIG_CHANGE {
                debug!("the back-end's own request {request} is not supported");
            }
            if flags & NEED_REPLY != 0 {
                self.answer(request, u64::from(request != CONFIG_CHANGE))?;
            }
        }
        Ok(changed)
    }

    /// Returns number and flags of the next complete message.
    fn next(&mut self) -> io::Result<Option<(u32, u32)>> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let mut words = header.as_chunks().0.iter().copied().map(u32::from_ne_bytes);
        let [request, flags, size] = [(); 3].map(|()| words.next().unwrap_or_default());
        if flags & !NEED_REPLY != VERSION || size > LONGEST {
            return Err(ErrorKind::InvalidData.into());
        }
        let whole = HEADER + size as usize;
        if self.bytes.len() < whole {
            return Ok(None);
        }
        self.bytes.drain(..whole);
        Ok(Some((request, flags)))
    }

    fn answer(&mut self, request: u32, status: u64) -> io::Result<()> {
        let header = [request, VERSION | REPLY, 8].map(u32::to_ne_bytes);
        // Written completely or not at all, because the socket is non-blocking.
        self.socket.write_all(&[header.as_flattened(), &status.to_ne_bytes()].concat())
    }
}

impl AsFd for BackendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let header = [request, flags, body.len() as u32].map(u32::to_ne_bytes);
        [header.as_flattened(), body].concat()
    }

    #[test]
    fn changes_come_in_pieces_among_other_requests() {
        let (mut ours, mut theirs) = BackendChannel::new().unwrap();
        assert!(!ours.take().unwrap());
        let change = message(CONFIG_CHANGE, VERSION, &[]);
        for byte in &change[..HEADER - 1] {
            theirs.write_all(&[*byte]).unwrap();
            assert!(!ours.take().unwrap());
        }
        theirs.write_all(&change[HEADER - 1..]).unwrap();
        assert!(ours.take().unwrap());
        assert!(!ours.take().unwrap());
        theirs.write_all(&[message(3, VERSION | NEED_REPLY, &[7; 40]), change].concat()).unwrap();
        assert!(ours.take().unwrap());
        let mut answer = [0; 20];
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(answer.as_slice(), message(3, VERSION | REPLY, &1u64.to_ne_bytes()));
        theirs.write_all(&message(CONFIG_CHANGE, VERSION | NEED_REPLY, &[])).unwrap();
        assert!(ours.take().unwrap());
        theirs.read_exact(&mut answer).unwrap();
        assert_eq!(answer.as_slice(), message(CONFIG_CHANGE, VERSION | REPLY, &[0; 8]));
    }

    #[test]
    fn what_is_no_message_ends_the_channel() {
        let take = |bytes: &[u8]| {
            let (mut ours, mut theirs) = BackendChannel::new().unwrap();
            theirs.write_all(bytes).unwrap();
            ours.take().unwrap_err().kind()
        };
        assert_eq!(take(&message(2, 2, &[])), ErrorKind::InvalidData);
        assert_eq!(take(&message(2, VERSION | REPLY, &[])), ErrorKind::InvalidData);
        assert_eq!(take(&message(2, VERSION, &[0; LONGEST as usize + 1])[..20]), ErrorKind::InvalidData);
        let (mut ours, theirs) = BackendChannel::new().unwrap();
        drop(theirs);
        assert_eq!(ours.take().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }

    /// A back-end that sends requests and never reads the answers is no longer served.
    #[test]
    fn answers_that_nobody_reads_end_the_channel() {
        let (mut ours, mut theirs) = BackendChannel::new().unwrap();
        let asking = message(CONFIG_CHANGE, VERSION | NEED_REPLY, &[]);
        let end = (0..100_000).find_map(|_| {
            theirs.write_all(&asking).unwrap();
            ours.take().err()
        });
        assert_eq!(end.expect("an end").kind(), ErrorKind::WouldBlock);
    }
}
