//! The connection's socket: assembles bytes to messages with their descriptors, and sends replies.
//!
//! Never blocks. A message may come in pieces of any size. A front-end that sends half a message, or does not
//! read its replies, delays only itself.
//!
//! A supervisor can do the reading and sending ([`Channel::receive_with`], [`Channel::sent`]). It outlives
//! this process, so that no message is lost or answered twice.

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

/// The reason why a connection ends.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The front-end closed it.
    #[error("closed by the front-end")]
    Closed,
    /// The front-end closed it in the middle of a message.
    #[error("closed by the front-end in the middle of a message")]
    ClosedInside,
    /// The received bytes are not a valid message.
    #[error("request {request}")]
    Message {
        /// Its request code.
        request: u32,
        /// The fault.
        source: MessageError,
    },
    /// More descriptors than any message may have.
    #[error("more than {MAX_TABLE_REGIONS} file descriptors came with one message")]
    TooManyFds,
    /// The system could not deliver some descriptors.
    #[error(
        "file descriptors that came with a message are lost: this process has too many open files, raise its \
         limit (ulimit -n, LimitNOFILE= in a systemd unit)"
    )]
    LostFds,
    /// A descriptor that could block this process. The log has the reason.
    #[error("a file descriptor that came with a message is refused")]
    RefusedFd,
    /// The socket failed.
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
    /// Received bytes of the next message.
    bytes: Vec<u8>,
    header: Option<Header>,
    fds: Vec<Numbered<OwnedFd>>,
    /// Bytes of the last replies that are not sent yet.
    unsent: Vec<u8>,
}

/// A connection in a state.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChannelState {
    fd: FdId,
    /// Received bytes of the next message.
    #[serde(with = "hex")]
    bytes: Vec<u8>,
    fds: Vec<FdId>,
    /// Bytes of the last replies that are not sent yet.
    #[serde(with = "hex")]
    pub unsent: Vec<u8>,
}

/// A received piece of a message.
#[derive(Debug, Default)]
pub struct Piece {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Descriptors that came with them.
    pub fds: Vec<OwnedFd>,
    /// Whether some descriptors are lost: there were more than any message may have, or more than this
    /// process may open.
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
    /// Fails if it cannot be made non-blocking.
    pub fn new(socket: UnixStream) -> io::Result<Channel> {
        socket.set_nonblocking(true)?;
        let (bytes, fds, unsent) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Channel { socket: Numbered::fresh(socket), bytes, header: None, fds, unsent })
    }

    /// Exports the connection.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> ChannelState {
        ChannelState {
            fd: self.socket.export(out),
            bytes: self.bytes.clone(),
            fds: self.fds.iter().map(|fd| fd.export(out)).collect(),
            unsent: self.unsent.clone(),
        }
    }

    /// Imports a connection from a state, without any change to it.
    ///
    /// # Errors
    ///
    /// Fails if a descriptor did not come.
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

    /// Returns the number of the socket in a state.
    pub fn id(&self) -> FdId {
        self.socket.id()
    }

    /// Returns the next message if it has arrived completely.
    ///
    /// # Errors
    ///
    /// Fails if the connection has ended.
    pub fn receive(&mut self) -> Result<Option<Message>, ChannelError> {
        self.receive_with(|socket, begun| read_message(socket, begun))
    }

    /// Like [`Channel::receive`], but `read` calls [`read_message`] in another process. `read` gets the bytes
    /// of the message that have arrived already.
    ///
    /// # Errors
    ///
    /// Fails like [`Channel::receive`], and if `read` fails.
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

    /// Adds a received piece, for any reader.
    ///
    /// # Errors
    ///
    /// Fails if the connection has ended, or if there were too many descriptors or some are lost.
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

    /// Notes that another process sends `reply`, and that `unsent` bytes of all replies are not sent yet.
    pub fn sent(&mut self, reply: &[u8], unsent: usize) {
        self.unsent.extend_from_slice(reply);
        self.unsent.drain(..self.unsent.len().saturating_sub(unsent));
    }

    /// Returns the bytes of the last replies that are not sent yet.
    pub fn unsent(&self) -> &[u8] {
        &self.unsent
    }

    /// Sends as much of a reply as fits. [`Channel::flush`] sends the rest.
    ///
    /// # Errors
    ///
    /// Fails if the connection has ended.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), ChannelError> {
        self.unsent.extend_from_slice(bytes);
        self.flush().map(|_| ())
    }

    /// Sends the rest of the replies. Returns whether all is sent. Take no further message before that, so
    /// that the rest stays bounded.
    ///
    /// # Errors
    ///
    /// Fails if the connection has ended.
    pub fn flush(&mut self) -> Result<bool, ChannelError> {
        send_all(&*self.socket, &mut self.unsent)?;
        Ok(self.unsent.is_empty())
    }

    /// Whether the front-end has closed its end, even if there are unread bytes.
    pub fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&*self.socket, PollFlags::RDHUP)];
        let now = Timespec::try_from(Duration::ZERO).ok();
        let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        matches!(poll(&mut fds, now.as_ref()), Ok(count) if count > 0 && fds[0].revents().intersects(ended))
    }
}

/// Reads the available bytes of one message and the descriptors that come with them. `begun` are the bytes of
/// the message that were read before. Returns `None` if there is nothing to read, and a piece without bytes
/// at the connection's end.
///
/// Never reads beyond this message: descriptors belong to the message whose first byte they come with. After
/// an invalid header, it reads nothing.
///
/// # Errors
///
/// Returns the socket's errors, and `EOPNOTSUPP` for a descriptor that could block its user.
pub fn read_message(socket: impl AsFd, begun: &[u8]) -> io::Result<Option<Piece>> {
    let mut message: Option<Piece> = None;
    loop {
        let come = message.as_ref().map_or(&[][..], |piece| &piece.bytes);
        let Some(left) = bytes_left(begun, come).filter(|left| *left > 0) else { return Ok(message) };
        match (read(&socket, left)?, &mut message) {
            (None, _) => return Ok(message),
            // The next read finds the end again.
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

/// Returns how many bytes are missing to complete the message that `begun` and `come` begin, or its header.
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
    // Room for one descriptor more than allowed, to detect a surplus.
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

/// Sends as many of `bytes` as `socket` accepts, and keeps the rest.
///
/// # Errors
///
/// Returns the socket's errors, except that it is full.
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
