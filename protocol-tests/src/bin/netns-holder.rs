//! A process that makes and keeps a network namespace, and opens descriptors inside it for its parent.
//!
//! `protocol_tests::netns` starts it with a sequenced-packet socket as standard input. Each packet is one
//! request; each answer is `ok` or an error's text, with a descriptor if the request asks for one. When the
//! parent ends for any reason, the socket ends and the namespace with it. Without root, the program first
//! makes a user namespace; only a process with one thread may do that, hence a separate program.
#![expect(
    unsafe_code,
    reason = "namespaces, TAP and packet sockets are system calls with structures of their own"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType};

fn main() -> io::Result<()> {
    // With `--here` it only opens descriptors, in the namespace in which it was started.
    if std::env::args().nth(1).as_deref() != Some("--here") {
        enter()?;
        ip(&["link", "set", "lo", "up"])?;
    }
    let stdin = io::stdin();
    answer(&stdin, &Ok(None))?;
    let mut request = [0; 4096];
    loop {
        let len = rustix::io::read(&stdin, &mut request)?;
        if len == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&request[..len]).into_owned();
        answer(&stdin, &serve(&text.split(' ').collect::<Vec<_>>()))?;
    }
}

/// Enters new namespaces; an ordinary user becomes root of a user namespace.
fn enter() -> io::Result<()> {
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let user = if uid == 0 { 0 } else { libc::CLONE_NEWUSER };
    // SAFETY: no memory is involved, and this process has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET | user) })?;
    if user != 0 {
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    // Keeps neighbour discovery from a test's frames.
    for which in ["all", "default"] {
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
    }
    Ok(())
}

fn serve(request: &[&str]) -> io::Result<Option<OwnedFd>> {
    match request {
        ["ip", arguments @ ..] => ip(arguments).map(|()| None),
        ["tap", name, flags] => tap(name, flags.parse().map_err(io::Error::other)?).map(Some),
        ["packet", name] => packet(name).map(Some),
        ["tcp"] => Ok(Some(rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?)),
        _ => Err(io::Error::other(format!("unknown request {request:?}"))),
    }
}

fn answer(to: impl AsFd, result: &io::Result<Option<OwnedFd>>) -> io::Result<()> {
    let text = match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.to_string(),
    };
    let fd = result.as_ref().ok().and_then(Option::as_ref).map(|fd| [fd.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fd) = &fd {
        control.push(SendAncillaryMessage::ScmRights(fd));
    }
    rustix::net::sendmsg(to, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn ip(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(arguments).stdin(std::process::Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("ip {}: {why}", arguments.join(" "))))
}

/// Opens a queue of a TAP; makes the TAP if it does not exist.
fn tap(name: &str, flags: i16) -> io::Result<OwnedFd> {
    let file: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all bytes zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    Ok(file.into())
}

/// Opens a packet socket on an interface, with the virtio-net header before each frame. It does not receive
/// the frames that it sends.
fn packet(name: &str) -> io::Result<OwnedFd> {
    let all = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: no memory is involved; the descriptor is fresh and owned by nobody else.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
        OwnedFd::from_raw_fd(check(fd)?)
    };
    let on: libc::c_int = 1;
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the option is one `int`, which outlives the call.
        check(unsafe {
            libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const on).cast(), len)
        })?;
    }
    let buffer: libc::c_int = 64 << 20;
    // SAFETY: the option is one `int`, which outlives the call. A refusal (no root) leaves the default.
    unsafe {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const buffer).cast(),
            len,
        );
    }
    let index = rustix::net::netdevice::name_to_index(&socket, name)?;
    // SAFETY: all bytes zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = all;
    address.sll_ifindex = index as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address is a whole `sockaddr_ll` of the length given.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(socket)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
