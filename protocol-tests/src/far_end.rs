//! The far end of a daemon's port: a packet socket on its TAP, or the peer of its socket.
//!
//! [`PortKind`] is the parameter of tests that run on each kind of port. A peer of a stream accepts the
//! daemon again after the connection ended, as passt and gvproxy do.

use std::cell::RefCell;
use std::fmt::Debug;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::daemon::poll_until;
use crate::frame::NetHeader;
use crate::netns::{Netns, TapWire};
use crate::wire::readable;

/// How long a peer waits for its daemon.
const LIMIT: Duration = Duration::from_secs(60);

/// A kind of port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// `--tap`.
    Tap,
    /// `--xdp`, on one end of a veth pair.
    Xdp,
    /// `--stream`.
    Stream,
    /// `--dgram`.
    Datagram,
}

impl PortKind {
    /// All kinds.
    pub const ALL: [PortKind; 4] = [PortKind::Tap, PortKind::Xdp, PortKind::Stream, PortKind::Datagram];
    /// The kinds without an interface of the host.
    pub const PEERS: [PortKind; 2] = [PortKind::Stream, PortKind::Datagram];

    /// Returns the name of the port in logs, status and metrics.
    pub fn interface(self) -> &'static str {
        match self {
            PortKind::Tap | PortKind::Xdp => "tap0",
            PortKind::Stream | PortKind::Datagram => "peer",
        }
    }

    /// Returns the daemon's options for a port whose files are in `directory`.
    pub fn options(self, directory: &Path) -> Vec<String> {
        let peer = peer_path(directory).display().to_string();
        match self {
            PortKind::Tap => vec!["--tap".into(), "tap0".into()],
            PortKind::Xdp => vec!["--xdp".into(), "tap0".into()],
            PortKind::Stream => vec!["--stream".into(), peer],
            PortKind::Datagram => {
                vec!["--dgram".into(), format!("{peer},local={}", own_path(directory).display())]
            }
        }
    }
}

/// The other end of a veth pair whose first end a daemon has by AF_XDP.
pub const VETH_PEER: &str = "far0";

/// Returns the path of a peer's socket in `directory`.
pub fn peer_path(directory: &Path) -> PathBuf {
    directory.join("peer")
}

/// Returns the path of the daemon's own socket for datagrams in `directory`.
pub fn own_path(directory: &Path) -> PathBuf {
    directory.join("own")
}

/// Sends frames to a daemon's port, and receives them from it.
pub trait FarEnd: Debug {
    /// Sends a frame with offloads for the far end to complete. A peer sends it without them.
    fn send_with(&self, header: &NetHeader, frame: &[u8]) -> io::Result<()>;

    /// Returns the next frame and its header, or `None` after `limit`.
    fn recv(&self, limit: Duration) -> io::Result<Option<(NetHeader, Vec<u8>)>>;

    /// Sends a frame without offloads.
    fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.send_with(&NetHeader::default(), frame)
    }
}

impl FarEnd for TapWire {
    fn send_with(&self, header: &NetHeader, frame: &[u8]) -> io::Result<()> {
        TapWire::send_with(self, header, frame)
    }

    fn recv(&self, limit: Duration) -> io::Result<Option<(NetHeader, Vec<u8>)>> {
        TapWire::recv(self, limit)
    }
}

/// The far end of any kind of port.
#[derive(Debug)]
pub enum Wire {
    /// An interface's.
    Tap(TapWire),
    /// A stream's.
    Stream(StreamPeer),
    /// That of datagrams.
    Datagram(DatagramPeer),
}

impl Wire {
    /// Makes the interface of a daemon, if it has one. `many`: with several queues.
    pub fn add_interface(kind: PortKind, netns: &Netns, many: bool) -> io::Result<()> {
        match kind {
            PortKind::Tap => netns.add_tap("tap0", many),
            PortKind::Xdp => netns.add_veth("tap0", VETH_PEER, many),
            PortKind::Stream | PortKind::Datagram => Ok(()),
        }
    }

    /// Returns the far end of the interface that [`Wire::add_interface`] has made.
    pub fn of_interface(kind: PortKind, netns: &Netns) -> io::Result<Wire> {
        netns.wire(if kind == PortKind::Xdp { VETH_PEER } else { "tap0" }).map(Wire::Tap)
    }

    /// Makes a peer in `directory`, before the daemon starts.
    pub fn peer(kind: PortKind, directory: &Path) -> io::Result<Option<Wire>> {
        Ok(match kind {
            PortKind::Tap | PortKind::Xdp => None,
            PortKind::Stream => Some(Wire::Stream(StreamPeer::new(&peer_path(directory))?)),
            PortKind::Datagram => Some(Wire::Datagram(DatagramPeer::new(directory)?)),
        })
    }

    fn any(&self) -> &dyn FarEnd {
        match self {
            Wire::Tap(tap) => tap,
            Wire::Stream(stream) => stream,
            Wire::Datagram(datagram) => datagram,
        }
    }

    /// See [`FarEnd::send`].
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.any().send(frame)
    }

    /// See [`FarEnd::send_with`].
    pub fn send_with(&self, header: &NetHeader, frame: &[u8]) -> io::Result<()> {
        self.any().send_with(header, frame)
    }

    /// See [`FarEnd::recv`].
    pub fn recv(&self, limit: Duration) -> io::Result<Option<(NetHeader, Vec<u8>)>> {
        self.any().recv(limit)
    }
}

impl FarEnd for Wire {
    fn send_with(&self, header: &NetHeader, frame: &[u8]) -> io::Result<()> {
        self.any().send_with(header, frame)
    }

    fn recv(&self, limit: Duration) -> io::Result<Option<(NetHeader, Vec<u8>)>> {
        self.any().recv(limit)
    }
}

/// A peer that listens on a stream socket.
#[derive(Debug)]
pub struct StreamPeer {
    listener: UnixListener,
    connection: RefCell<Option<Connection>>,
    /// Connections accepted so far.
    accepted: RefCell<usize>,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    /// Bytes that were received and are not a whole frame yet.
    bytes: Vec<u8>,
}

impl StreamPeer {
    /// Listens at `path`.
    pub fn new(path: &Path) -> io::Result<StreamPeer> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(StreamPeer { listener, connection: RefCell::default(), accepted: RefCell::default() })
    }

    /// Returns how many connections the daemon has made.
    pub fn accepted(&self) -> usize {
        *self.accepted.borrow()
    }

    /// Sends bytes that need not be a frame.
    pub fn send_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        for _ in 0..2 {
            self.connect(LIMIT)?;
            let mut connection = self.connection.borrow_mut();
            let stream = connection.as_ref().map(|connection| &connection.stream);
            match stream.map_or(Ok(()), |mut stream| stream.write_all(bytes)) {
                // A frame of which a part went is lost with its connection.
                Err(error) if [ErrorKind::BrokenPipe, ErrorKind::ConnectionReset].contains(&error.kind()) => {
                    *connection = None;
                }
                result => return result,
            }
        }
        Err(ErrorKind::BrokenPipe.into())
    }

    /// Closes the connection.
    pub fn close(&self) {
        *self.connection.borrow_mut() = None;
    }

    /// Waits until there is a connection.
    fn connect(&self, limit: Duration) -> io::Result<bool> {
        if self.connection.borrow().is_some() {
            return Ok(true);
        }
        let Some(stream) = poll_until(limit, || self.listener.accept().ok()) else { return Ok(false) };
        stream.0.set_nonblocking(false)?;
        *self.connection.borrow_mut() = Some(Connection { stream: stream.0, bytes: Vec::new() });
        *self.accepted.borrow_mut() += 1;
        Ok(true)
    }

    /// Returns the next whole frame that has been received.
    fn frame(&self) -> Option<Vec<u8>> {
        let mut connection = self.connection.borrow_mut();
        let bytes = &mut connection.as_mut()?.bytes;
        let len = u32::from_be_bytes(*bytes.first_chunk()?) as usize;
        let frame = bytes.get(4..4 + len)?.to_vec();
        bytes.drain(..4 + len);
        Some(frame)
    }

    /// Receives more bytes. Returns whether there may be more.
    fn receive(&self, limit: Duration) -> io::Result<bool> {
        let mut connection = self.connection.borrow_mut();
        let Some(Connection { stream, bytes }) = connection.as_mut() else { return Ok(false) };
        if !readable(&*stream, limit)? {
            return Ok(false);
        }
        let mut piece = vec![0; 1 << 16];
        match stream.read(&mut piece) {
            Ok(0) => *connection = None,
            Ok(len) => bytes.extend_from_slice(&piece[..len]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => *connection = None,
            Err(error) => return Err(error),
        }
        Ok(true)
    }
}

impl FarEnd for StreamPeer {
    fn send_with(&self, _header: &NetHeader, frame: &[u8]) -> io::Result<()> {
        self.send_bytes(&[&(frame.len() as u32).to_be_bytes(), frame].concat())
    }

    fn recv(&self, limit: Duration) -> io::Result<Option<(NetHeader, Vec<u8>)>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(frame) = self.frame() {
                return Ok(Some((NetHeader::default(), frame)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.connect(left)? || !self.receive(left)? {
                return Ok(None);
            }
        }
    }
}

/// A peer that gets and sends datagrams.
#[derive(Debug)]
pub struct DatagramPeer {
    socket: UnixDatagram,
    daemon: PathBuf,
}

impl DatagramPeer {
    /// Binds the peer's socket in `directory`.
    pub fn new(directory: &Path) -> io::Result<DatagramPeer> {
        let socket = UnixDatagram::bind(peer_path(directory))?;
        Ok(DatagramPeer { socket, daemon: own_path(directory) })
    }
}

impl FarEnd for DatagramPeer {
    fn send_with(&self, _header: &NetHeader, frame: &[u8]) -> io::Result<()> {
        // The daemon connects its socket again after each of its peers: until then it refuses this one.
        let refused = |error: &io::Error| error.raw_os_error() == Some(libc::EPERM);
        let sent = poll_until(LIMIT, || match self.socket.send_to(frame, &self.daemon) {
            Err(error) if refused(&error) => None,
            result => Some(result),
        });
        sent.unwrap_or_else(|| Err(ErrorKind::TimedOut.into())).map(drop)
    }

    fn recv(&self, limit: Duration) -> io::Result<Option<(NetHeader, Vec<u8>)>> {
        if !readable(self.socket.as_fd(), limit)? {
            return Ok(None);
        }
        let mut bytes = vec![0; 1 << 17];
        let len = self.socket.recv(&mut bytes)?;
        bytes.truncate(len);
        Ok(Some((NetHeader::default(), bytes)))
    }
}
