//! The connection's socket: bytes in pieces become messages with their descriptors, replies become bytes.
//!
//! Never waits. A message may come in pieces of any size, and a front-end that sends half of one, or does not read
//! its replies, holds up nobody but itself.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use thiserror::Error;

use crate::vhost_user::message::{HEADER_LEN, Header, MAX_TABLE_REGIONS, Message, MessageError};

/// Why a connection ends.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The front-end closed it.
    #[error("closed by the front-end")]
    Closed,
    /// The front-end closed it inside a message.
    #[error("closed by the front-end in the middle of a message")]
    ClosedInside,
    /// What came is no message.
    #[error("request {request}")]
    Message {
        /// Its code.
        request: u32,
        /// What is wrong with it.
        source: MessageError,
    },
    /// More descriptors than any message has.
    #[error("more than {MAX_TABLE_REGIONS} file descriptors came with one message")]
    TooManyFds,
    /// The socket.
    #[error("socket error")]
    System(#[from] io::Error),
}

/// A connection.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    /// What has come of the next message.
    bytes: Vec<u8>,
    header: Option<Header>,
    fds: Vec<OwnedFd>,
    /// What has not gone of the last replies.
    unsent: Vec<u8>,
}

impl Channel {
    /// Takes over a connected socket.
    ///
    /// # Errors
    ///
    /// When it cannot be made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Channel> {
        socket.set_nonblocking(true)?;
        Ok(Channel { socket, bytes: Vec::new(), header: None, fds: Vec::new(), unsent: Vec::new() })
    }

    /// The next message, if all of it has come.
    ///
    /// # Errors
    ///
    /// When the connection has come to its end, in one way or another.
    pub fn receive(&mut self) -> Result<Option<Message>, ChannelError> {
        loop {
            let whole = HEADER_LEN + self.header.map_or(0, |header| header.size as usize);
            if self.bytes.len() < whole {
                // Never beyond this message: descriptors belong to the one whose first byte they come with.
                if !self.read(whole - self.bytes.len())? {
                    return Ok(None);
                }
                continue;
            }
            let Some(header) = self.header.take() else {
                let bytes = *self.bytes.first_chunk().expect("a header's length was checked");
                let request = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                let header =
                    Header::decode(bytes).map_err(|source| ChannelError::Message { request, source })?;
                self.header = Some(header);
                continue;
            };
            let body = self.bytes.split_off(HEADER_LEN);
            self.bytes.clear();
            return Ok(Some(Message { header, body, fds: std::mem::take(&mut self.fds) }));
        }
    }

    /// Reads up to `count` bytes; whether any came.
    fn read(&mut self, count: usize) -> Result<bool, ChannelError> {
        // Room for one more descriptor than allowed, so that a surplus is seen.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TABLE_REGIONS + 1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let start = self.bytes.len();
        self.bytes.resize(start + count, 0);
        let result = recvmsg(
            &self.socket,
            &mut [IoSliceMut::new(&mut self.bytes[start..])],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        );
        let received = result.as_ref().map_or(0, |message| message.bytes);
        self.bytes.truncate(start + received);
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        match result {
            Ok(message) if message.bytes == 0 && self.bytes.is_empty() => Err(ChannelError::Closed),
            Ok(message) if message.bytes == 0 => Err(ChannelError::ClosedInside),
            Ok(message)
                if message.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_TABLE_REGIONS =>
            {
                Err(ChannelError::TooManyFds)
            }
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN) => Ok(false),
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    /// Sends a reply, or as much of it as fits; [`Channel::flush`] sends the rest.
    ///
    /// # Errors
    ///
    /// When the connection has come to its end.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
        self.unsent.extend_from_slice(bytes);
        self.flush().map(|_| ())
    }

    /// Sends what is left of replies; whether all has gone. No message should be taken before, so that what is
    /// left stays bounded.
    ///
    /// # Errors
    ///
    /// When the connection has come to its end.
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        while !self.unsent.is_empty() {
            match send(&self.socket, &self.unsent, SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(true)
    }

    /// Whether the front-end has closed its end, even if what it sent before has not been read.
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec::try_from(Duration::ZERO).ok();
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        matches!(poll(&mut fds, now.as_ref()), Ok(count) if count > 0 && fds[0].revents().intersects(ended))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read, Write};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};

    use super::*;

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Channel::new(ours).unwrap(), theirs)
    }

    fn bytes(request: u32, flags: u32, body: &[u8]) -> Vec<u8> {
        let words = [request, flags, body.len() as u32];
        words.iter().flat_map(|word| word.to_ne_bytes()).chain(body.iter().copied()).collect()
    }

    fn send_fds(socket: &UnixStream, bytes: &[u8], count: usize) {
        let fds = vec![socket.as_fd(); count];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
    }

    #[test]
    fn messages_in_single_bytes_and_several_at_once() {
        let (mut channel, mut peer) = pair();
        for byte in bytes(18, 1, &[1; 8]) {
            assert!(channel.receive().unwrap().is_none());
            peer.write_all(&[byte]).unwrap();
        }
        assert_eq!(channel.receive().unwrap().unwrap().body, [1; 8]);
        peer.write_all(&[bytes(1, 1, &[]), bytes(2, 1, &[2; 8])].concat()).unwrap();
        assert_eq!(channel.receive().unwrap().unwrap().header.request, 1);
        assert_eq!(channel.receive().unwrap().unwrap().body, [2; 8]);
        assert!(channel.receive().unwrap().is_none());
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (mut channel, peer) = pair();
        send_fds(&peer, &bytes(12, 1, &[0; 8])[..5], 1);
        assert!(channel.receive().unwrap().is_none());
        (&peer).write_all(&bytes(12, 1, &[0; 8])[5..]).unwrap();
        send_fds(&peer, &bytes(5, 1, &[0; 8]), MAX_TABLE_REGIONS);
        assert_eq!(channel.receive().unwrap().unwrap().fds.len(), 1);
        assert_eq!(channel.receive().unwrap().unwrap().fds.len(), MAX_TABLE_REGIONS);
        for surplus in [MAX_TABLE_REGIONS + 1, 16] {
            let (mut channel, peer) = pair();
            send_fds(&peer, &bytes(5, 1, &[0; 8]), surplus);
            assert!(matches!(channel.receive(), Err(ChannelError::TooManyFds)), "{surplus}");
        }
    }

    #[test]
    fn ends_are_told_apart() {
        let (mut channel, peer) = pair();
        assert!(!channel.is_hung_up());
        drop(peer);
        assert!(channel.is_hung_up());
        assert!(matches!(channel.receive(), Err(ChannelError::Closed)));
        let (mut channel, mut peer) = pair();
        peer.write_all(&[1, 0, 0]).unwrap();
        drop(peer);
        assert!(matches!(channel.receive(), Err(ChannelError::ClosedInside)));
        let (mut channel, mut peer) = pair();
        peer.write_all(&bytes(7, 0, &[])).unwrap();
        let error = channel.receive().unwrap_err();
        assert!(matches!(error, ChannelError::Message { request: 7, source: MessageError::Version(0) }));
    }

    #[test]
    fn a_front_end_that_does_not_read_loses_nothing() {
        let (mut channel, mut peer) = pair();
        let reply = Header::reply(1, &[7; 4000]);
        let mut sent = 0;
        while channel.flush().unwrap() {
            channel.send(&reply).unwrap();
            sent += reply.len();
            assert!(sent < 100_000_000);
        }
        let mut received = vec![0; sent];
        peer.read_exact(&mut received[..sent / 2]).unwrap();
        channel.flush().unwrap();
        peer.read_exact(&mut received[sent / 2..]).unwrap();
        assert!(received.chunks(reply.len()).all(|chunk| chunk == reply));
    }
}
