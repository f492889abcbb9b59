//! The connection's socket: bytes in pieces become messages with their descriptors, replies become bytes.
//!
//! Never waits. A message may come in pieces of any size, and a front-end that sends half of one, or does not
//! read its replies, holds up nobody but itself.
//!
//! Somebody else may do the reading and sending ([`Channel::receive_with`], [`Channel::sent`]): a supervisor,
//! which outlives this process and so can promise that no message is lost or answered twice.

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
use volt_net::state::{Exporter, FdId, Importer, Numbered, StateError, hex};

use crate::descriptors;
use crate::message::{HEADER_LEN, Header, MAX_TABLE_REGIONS, Message, MessageError};

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
        "file descriptors that came with a message are lost: this process has as many open as it may, raise \
         its limit (ulimit -n, LimitNOFILE= in a systemd unit)"
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
    socket: Numbered<UnixStream>,
    /// What has come of the next message.
    bytes: Vec<u8>,
    header: Option<Header>,
    fds: Vec<Numbered<OwnedFd>>,
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

/// What has come of a message.
#[derive(Debug, Default)]
pub struct Piece {
    /// Bytes.
    pub bytes: Vec<u8>,
    /// Descriptors that came with them.
    pub fds: Vec<OwnedFd>,
    /// Some descriptors did not come: there were more than any message has, or more than this process may
    /// have.
    pub too_many: bool,
}

impl Piece {
    fn append(&mut self, next: Piece) {
        self.bytes.extend_from_slice(&next.bytes);
        self.fds.extend(next.fds);
        self.too_many |= next.too_many;
    }
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
        Ok(Channel { socket: Numbered::fresh(socket), bytes, header: None, fds, unsent })
    }

    /// Writes the connection out.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> ChannelState {
        ChannelState {
            fd: self.socket.export(out),
            bytes: self.bytes.clone(),
            fds: self.fds.iter().map(|fd| fd.export(out)).collect(),
            unsent: self.unsent.clone(),
        }
    }

    /// Takes the connection of a state, and does nothing to it.
    ///
    /// # Errors
    ///
    /// When a descriptor did not come.
    pub fn import(state: ChannelState, from: &mut Importer) -> Result<Channel, StateError> {
        let fds = state.fds.iter().map(|id| Ok(Numbered::known(*id, from.take(*id)?)));
        let fds = fds.collect::<Result<_, StateError>>()?;
        Ok(Channel {
            socket: Numbered::known(state.fd, from.take(state.fd)?.into()),
            bytes: state.bytes,
            header: None,
            fds,
            unsent: state.unsent,
        })
    }

    /// Number of the socket in a state.
    pub fn id(&self) -> FdId {
        self.socket.id()
    }

    /// The next message, if all of it has come.
    ///
    /// # Errors
    ///
    /// When the connection has come to its end, in one way or another.
    pub fn receive(&mut self) -> Result<Option<Message>, ChannelError> {
        self.receive_with(|socket, begun| read_message(socket, begun))
    }

    /// The same, by somebody else's [`read_message`], who is told what has come of the message already.
    ///
    /// # Errors
    ///
    /// As [`Channel::receive`], and those of `read`.
    pub fn receive_with(
        &mut self,
        mut read: impl FnMut(&UnixStream, &[u8]) -> io::Result<Option<Piece>>,
    ) -> Result<Option<Message>, ChannelError> {
        loop {
            let whole = HEADER_LEN + self.header.map_or(0, |header| header.size as usize);
            if self.bytes.len() < whole {
                let Some(piece) = read(&self.socket, &self.bytes)? else { return Ok(None) };
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
            let fds = self.fds.drain(..).map(Numbered::into_inner).collect();
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
                self.fds.extend(fds.into_iter().map(Numbered::fresh));
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

    /// Sends what is left of replies; whether all has gone. No message should be taken before, so that what
    /// is left stays bounded.
    ///
    /// # Errors
    ///
    /// When the connection has come to its end.
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        send_all(&*self.socket, &mut self.unsent)?;
        Ok(self.unsent.is_empty())
    }

    /// Whether the front-end has closed its end, even if what it sent before has not been read.
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&*self.socket, PollFlags::RDHUP)];
        let now = Timespec::try_from(Duration::ZERO).ok();
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        matches!(poll(&mut fds, now.as_ref()), Ok(count) if count > 0 && fds[0].revents().intersects(ended))
    }
}

/// Reads what has come of one message, of which `begun` was read before, and the descriptors that come with
/// it. `None` when nothing has come; no bytes at the connection's end.
///
/// Never beyond this message: descriptors belong to the one whose first byte they come with. A header that is
/// none is read, and nothing behind it.
///
/// # Errors
///
/// The socket's, and `EOPNOTSUPP` where a descriptor came that could hold who uses it.
pub fn read_message(socket: impl AsFd, begun: &[u8]) -> io::Result<Option<Piece>> {
    let mut message: Option<Piece> = None;
    loop {
        let come = message.as_ref().map_or(&[][..], |piece| &piece.bytes);
        let Some(left) = bytes_left(begun, come).filter(|left| *left > 0) else { return Ok(message) };
        match (read(&socket, left)?, &mut message) {
            (None, _) => return Ok(message),
            // The end comes again.
            (Some(piece), Some(_)) if piece.bytes.is_empty() => return Ok(message),
            (Some(piece), Some(message)) => message.append(piece),
            (Some(piece), None) => {
                let end = piece.bytes.is_empty();
                message = Some(piece);
                if end {
                    return Ok(message);
                }
            }
        }
    }
}

/// How many bytes are missing of the message that `begun` and `come` begin, or of its header.
fn bytes_left(begun: &[u8], come: &[u8]) -> Option<usize> {
    let len = begun.len() + come.len();
    let mut header = [0; HEADER_LEN];
    for (to, from) in header.iter_mut().zip(begun.iter().chain(come)) {
        *to = *from;
    }
    let whole = match Header::decode(header) {
        _ if len < HEADER_LEN => HEADER_LEN,
        Ok(header) => HEADER_LEN + header.size as usize,
        Err(_) => return None,
    };
    whole.checked_sub(len)
}

/// Reads up to `count` bytes of a connection, and the descriptors that come with them.
fn read(socket: impl AsFd, count: usize) -> io::Result<Option<Piece>> {
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
mod tests;
