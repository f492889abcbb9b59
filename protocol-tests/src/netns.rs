//! A separate network namespace for a test, with TAPs, and sockets for raw frames.
//!
//! [`Netns::new`] starts the program `netns-holder` of this package, which makes the namespace, with or
//! without root, and opens descriptors inside it. The namespace ends when the [`Netns`] is dropped or its
//! process ends.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType,
};

use crate::daemon::{poll_until, program};
use crate::frame::NetHeader;
use crate::wire::readable;

/// Flags of a TAP's queue: frames with the virtio-net header and without the old packet information.
pub const TAP_FLAGS: i16 = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
/// Added for a TAP with several queues.
pub const MULTI_QUEUE: i16 = libc::IFF_MULTI_QUEUE as i16;
/// Bytes of the header that packet sockets and new TAPs use, without `num_buffers`.
const SHORT_HEADER: usize = 10;

/// A network namespace that lives as long as this value.
#[derive(Debug)]
pub struct Netns {
    holder: Child,
    socket: Option<OwnedFd>,
    user: bool,
}

impl Netns {
    /// Makes one. The error tells what the machine does not allow.
    pub fn new() -> io::Result<Netns> {
        Netns::held(&[], !rustix::process::geteuid().is_root())
    }

    /// Returns the namespace of this process, for packet sockets on its interfaces. Needs root.
    pub fn here() -> io::Result<Netns> {
        Netns::held(&["--here"], false)
    }

    fn held(arguments: &[&str], user: bool) -> io::Result<Netns> {
        let flags = SocketFlags::CLOEXEC;
        let (mine, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        let holder =
            Command::new(program("netns-holder")).args(arguments).stdin(Stdio::from(theirs)).spawn()?;
        let netns = Netns { holder, socket: Some(mine), user };
        netns.answer()?;
        Ok(netns)
    }

    fn request(&self, request: &str) -> io::Result<Option<OwnedFd>> {
        if let Some(socket) = &self.socket {
            rustix::net::send(socket, request.as_bytes(), SendFlags::NOSIGNAL)?;
        }
        self.answer()
    }

    fn answer(&self) -> io::Result<Option<OwnedFd>> {
        let gone = || io::Error::other("the namespace's holder has ended; see its message on standard error");
        let socket = self.socket.as_ref().ok_or_else(gone)?;
        let mut text = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut text)];
        let len = rustix::net::recvmsg(socket, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
            _ => None,
        });
        match &text[..len] {
            [] => Err(gone()),
            b"ok" => Ok(fd),
            why => Err(io::Error::other(String::from_utf8_lossy(why).into_owned())),
        }
    }

    /// Returns the ID of a process inside, which names the namespace for `ip link ... netns`.
    pub fn id(&self) -> u32 {
        self.holder.id()
    }

    /// Runs `ip` with these arguments inside.
    pub fn ip(&self, arguments: &str) -> io::Result<()> {
        self.request(&format!("ip {arguments}")).map(drop)
    }

    /// Makes a persistent TAP, sets it up, and closes it: for a daemon that opens it by name.
    pub fn add_tap(&self, name: &str, multi_queue: bool) -> io::Result<()> {
        let kind = if multi_queue { "multi_queue" } else { "" };
        self.ip(format!("tuntap add dev {name} mode tap vnet_hdr {kind}").trim_end())?;
        self.ip(&format!("link set dev {name} mtu 9000 up"))
    }

    /// Makes a veth pair, with one queue or four, and sets it up.
    pub fn add_veth(&self, name: &str, peer: &str, multi_queue: bool) -> io::Result<()> {
        let queues = if multi_queue { 4 } else { 1 };
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        self.ip(&format!("link add {name} {queues} type veth peer name {peer} {queues}"))?;
        self.ip(&format!("link set dev {peer} up"))?;
        self.ip(&format!("link set dev {name} up"))
    }

    /// Opens a queue of a TAP with flags like [`TAP_FLAGS`]. Without [`Netns::add_tap`] this creates the TAP,
    /// which ends with its last descriptor.
    pub fn open_tap(&self, name: &str, flags: i16) -> io::Result<OwnedFd> {
        let fd = self.request(&format!("tap {name} {flags}"))?;
        fd.ok_or_else(|| io::Error::other("no descriptor received"))
    }

    /// Returns a socket that sends and receives raw frames on an interface, like the host's network stack.
    pub fn wire(&self, name: &str) -> io::Result<TapWire> {
        let fd = self.request(&format!("packet {name}"))?;
        Ok(TapWire { socket: fd.ok_or_else(|| io::Error::other("no descriptor received"))? })
    }

    /// Returns two ends of a TCP connection over the loopback interface.
    pub fn tcp_pair(&self) -> io::Result<(TcpStream, TcpStream)> {
        let socket = || {
            let fd = self.request("tcp")?;
            fd.ok_or_else(|| io::Error::other("no descriptor received"))
        };
        let (listening, connecting) = (socket()?, socket()?);
        rustix::net::bind(&listening, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        rustix::net::listen(&listening, 1)?;
        rustix::net::connect(&connecting, &rustix::net::getsockname(&listening)?)?;
        Ok((connecting.into(), TcpListener::from(listening).accept()?.0))
    }

    /// Waits until an interface has a user and is completely up. Just after the carrier appears, the kernel
    /// still silently drops frames.
    pub fn wait_until_up(&self, name: &str, limit: Duration) -> io::Result<()> {
        let is_up = || {
            let mut ip = self.command("ip");
            let output = ip.args(["-o", "link", "show", "dev", name]).stdout(Stdio::piped()).output().ok()?;
            String::from_utf8_lossy(&output.stdout).contains("state UP").then_some(())
        };
        poll_until(limit, is_up).ok_or_else(|| io::Error::other(format!("{name} does not come up")))
    }

    /// Returns a command that will run inside, with no signal ignored even if this process ignores some. The
    /// process ID is that of the command itself.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.holder.id().to_string()).arg("--net");
        if self.user {
            command.args(["--user", "--preserve-credentials"]);
        }
        command
            .args(["--", "env", "--default-signal"])
            .arg(program)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.socket = None;
        let _ = self.holder.wait();
    }
}

/// A packet socket on an interface: it sends frames by the TAP to its user, and receives the frames that the
/// user writes.
#[derive(Debug)]
pub struct TapWire {
    socket: OwnedFd,
}

impl TapWire {
    /// Sends a frame without offloads.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.send_with(&NetHeader::default(), frame)
    }

    /// Sends a frame with offloads for the interface to complete.
    pub fn send_with(&self, header: &NetHeader, frame: &[u8]) -> io::Result<()> {
        let bytes = [&header.encode()[..SHORT_HEADER], frame].concat();
        rustix::net::send(&self.socket, &bytes, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Returns the next frame and its header (`num_buffers` is 0), or `None` after `limit`.
    pub fn recv(&self, limit: Duration) -> io::Result<Option<(NetHeader, Vec<u8>)>> {
        let deadline = Instant::now() + limit;
        let mut bytes = vec![0; SHORT_HEADER + 65_600];
        while readable(&self.socket, deadline.saturating_duration_since(Instant::now()))? {
            match rustix::net::recv(&self.socket, bytes.as_mut_slice(), RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    let mut header = [0; 12];
                    header[..SHORT_HEADER].copy_from_slice(&bytes[..SHORT_HEADER]);
                    return Ok(Some((NetHeader::decode(&header), bytes[SHORT_HEADER..len].to_vec())));
                }
                // The interface was set down: reported once, then frames arrive again.
                Err(Errno::AGAIN | Errno::INTR | Errno::NETDOWN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(None)
    }
}

impl AsFd for TapWire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
