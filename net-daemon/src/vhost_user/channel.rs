//! The connection's socket: bytes in pieces become messages with their descriptors, replies become bytes.
//!
//! Never waits. A message may come in pieces of any size, and a front-end that sends half of one, or does not read
//! its replies, holds up nobody but itself.
//!
//! Somebody else may do the reading and sending ([`Channel::receive_with`], [`Channel::sent`]): a supervisor, which
//! outlives this process and so can promise that no message is lost or answered twice.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, recvmsg, send,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::state::{Exporter, FdId, Importer, StateError, hex};
use crate::vhost_user::descriptors;
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
    /// The system had no room for some.
    #[error(
        "file descriptors that came with a message are lost: this process has as many open as it may, raise its limit \
         (ulimit -n, LimitNOFILE= in a systemd unit)"
    )]
    LostFds,
    /// One that could hold this process; the log says why.
    #[error("a file descriptor that came with a message is refused")]
    RefusedFd,
    /// The socket.
    #[error("socket error")]
    System(#[source] io::Error),
}

impl From<io::Error> for ChannelError {
    fn from(error: io::Error) -> ChannelError {
        match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => ChannelError::RefusedFd,
            _ => ChannelError::System(error),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Channel {
    socket: UnixStream,
    id: FdId,
    /// What has come of the next message.
    bytes: Vec<u8>,
    header: Option<Header>,
    fds: Vec<(FdId, OwnedFd)>,
    /// What has not gone of the last replies.
    unsent: Vec<u8>,
}

/// A connection in a state.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChannelState {
    fd: FdId,
    /// What has come of the next message.
    #[serde(with = "hex")]
    bytes: Vec<u8>,
    fds: Vec<FdId>,
    /// What has not gone of the last replies.
    #[serde(with = "hex")]
    pub unsent: Vec<u8>,
}

/// What one read of a socket brings.
#[derive(Debug, Default)]
pub struct Piece {
    /// Bytes.
    pub bytes: Vec<u8>,
    /// Descriptors that came with them.
    pub fds: Vec<OwnedFd>,
    /// Some descriptors did not come: there were more than any message has, or more than this process may have.
    pub too_many: bool,
}

impl Channel {
    /// Takes over a connected socket.
    ///
    /// # Errors
    ///
    /// When it cannot be made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Channel> {
        socket.set_nonblocking(true)?;
        let (bytes, fds, unsent) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Channel { socket, id: FdId::fresh(), bytes, header: None, fds, unsent })
    }

    /// Writes the connection out.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> ChannelState {
        ChannelState {
            fd: out.fd(self.id, &self.socket),
            bytes: self.bytes.clone(),
            fds: self.fds.iter().map(|(id, fd)| out.fd(*id, fd)).collect(),
            unsent: self.unsent.clone(),
        }
    }

    /// Takes the connection of a state, and does nothing to it.
    ///
    /// # Errors
    ///
    /// When a descriptor did not come.
    pub fn import(state: ChannelState, from: &mut Importer) -> Result<Channel, StateError> {
        let fds = state.fds.iter().map(|id| Ok((*id, from.take(*id)?)));
        let fds = fds.collect::<Result<_, StateError>>()?;
        Ok(Channel {
            socket: from.take(state.fd)?.into(),
            id: state.fd,
            bytes: state.bytes,
            header: None,
            fds,
            unsent: state.unsent,
        })
    }

    /// Number of the socket in a state.
    pub fn id(&self) -> FdId {
        self.id
    }

    /// The next message, if all of it has come.
    ///
    /// # Errors
    ///
    /// When the connection has come to its end, in one way or another.
    pub fn receive(&mut self) -> Result<Option<Message>, ChannelError> {
        self.receive_with(|socket, count| read(socket, count))
    }

    /// The same, by somebody else's read of up to so many bytes: `None` when nothing has come, no bytes at the end.
    ///
    /// # Errors
    ///
    /// As [`Channel::receive`], and those of `read`.
    pub fn receive_with(
        &mut self,
        mut read: impl FnMut(&UnixStream, usize) -> io::Result<Option<Piece>>,
    ) -> Result<Option<Message>, ChannelError> {
        loop {
            let whole = HEADER_LEN + self.header.map_or(0, |header| header.size as usize);
            if self.bytes.len() < whole {
                // Never beyond this message: descriptors belong to the one whose first byte they come with.
                let Some(piece) = read(&self.socket, whole - self.bytes.len())? else { return Ok(None) };
                self.add(piece)?;
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
            let fds = self.fds.drain(..).map(|(_, fd)| fd).collect();
            return Ok(Some(Message { header, body, fds }));
        }
    }

    /// Adds what has come, also for somebody else.
    ///
    /// # Errors
    ///
    /// When that was the end, or descriptors were too many or lost.
    pub fn add(&mut self, piece: Piece) -> Result<(), ChannelError> {
        match piece {
            Piece { bytes, .. } if bytes.is_empty() && self.bytes.is_empty() => Err(ChannelError::Closed),
            Piece { bytes, .. } if bytes.is_empty() => Err(ChannelError::ClosedInside),
            Piece { fds, .. } if self.fds.len() + fds.len() > MAX_TABLE_REGIONS => {
                Err(ChannelError::TooManyFds)
            }
            Piece { too_many: true, .. } => Err(ChannelError::LostFds),
            Piece { bytes, fds, .. } => {
                self.bytes.extend_from_slice(&bytes);
                self.fds.extend(fds.into_iter().map(|fd| (FdId::fresh(), fd)));
                Ok(())
            }
        }
    }

    /// Takes note that somebody else sends `reply`, and that `unsent` bytes of all replies have not gone.
    pub fn sent(&mut self, reply: &[u8], unsent: usize) {
        self.unsent.extend_from_slice(reply);
        self.unsent.drain(..self.unsent.len().saturating_sub(unsent));
    }

    /// What has not gone of the last replies.
    pub fn unsent(&self) -> &[u8] {
        &self.unsent
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
        send_all(&self.socket, &mut self.unsent)?;
        Ok(self.unsent.is_empty())
    }

    /// Whether the front-end has closed its end, even if what it sent before has not been read.
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let now = Timespec::try_from(Duration::ZERO).ok();
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        matches!(poll(&mut fds, now.as_ref()), Ok(count) if count > 0 && fds[0].revents().intersects(ended))
    }
}

/// Reads up to `count` bytes of a connection, and the descriptors that come with them. `None` when nothing has come; no
/// bytes at the end.
///
/// # Errors
///
/// The socket's, and `EOPNOTSUPP` where a descriptor came that could hold who uses it.
pub fn read(socket: impl AsFd, count: usize) -> io::Result<Option<Piece>> {
    // Room for one more descriptor than allowed, so that a surplus is seen.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_TABLE_REGIONS + 1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut piece = Piece { bytes: vec![0; count], ..Piece::default() };
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let result = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut piece.bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            piece.fds.extend(fds);
        }
    }
    match result {
        Ok(message) => {
            piece.bytes.truncate(message.bytes);
            piece.too_many = message.flags.contains(ReturnFlags::CTRUNC);
            piece.fds = descriptors::admit(piece.fds)?;
            Ok(Some(piece))
        }
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sends what `socket` takes of `bytes`, and leaves the rest.
///
/// # Errors
///
/// The socket's, but for being full.
pub fn send_all(socket: impl AsFd, bytes: &mut Vec<u8>) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(&socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(sent) => drop(bytes.drain(..sent)),
            Err(rustix::io::Errno::AGAIN) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
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
