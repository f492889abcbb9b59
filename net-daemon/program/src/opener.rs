//! The opener: a helper process that opens files and interfaces by path or with privileges, after the program
//! has dropped both.
//!
//! ```text
//! program                                   opener
//!   |-- a request as JSON, a socket --------->|
//!   |<-- an answer as JSON, descriptors, -----|
//!   |    on that socket                       |
//! ```
//!
//! The program forks it before it has anything of a guest's. The opener closes all inherited descriptors, and
//! ends when no process is left that could send a request. The program decides which requests it carries out,
//! and must expect them from an attacker who has taken the program over. The opener never writes to the log.
#![expect(unsafe_code, reason = "fork, _exit, and closing descriptors inherited from the parent")]

use std::ffi::CStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, RecvMsg, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};
use rustix::thread::CapabilitySet;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use volt_virtio::error_chain;

use crate::logging;
use crate::signals::SignalSet;

/// How long to wait for an answer: less than a client of the program waits.
const LIMIT: Duration = Duration::from_secs(5);
/// Longest message: paths have up to 4096 bytes, some of which take six in JSON.
const MAX_LEN: usize = 64 << 10;
/// Highest number of descriptors in a message (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;
const READY: u8 = b'R';

/// Capabilities that an opener keeps, for interfaces and for other users' files.
pub const CAPABILITIES: CapabilitySet =
    CapabilitySet::NET_ADMIN.union(CapabilitySet::DAC_OVERRIDE).union(CapabilitySet::FOWNER);

/// A path in a request, with any bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WirePath(#[serde(with = "volt_net::state::path")] pub PathBuf);

/// The result of a request: success, or an error of the system or of the program.
type Answer = Result<(), Failure>;

#[derive(Serialize, Deserialize)]
enum Failure {
    Number(i32),
    Text(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        error.raw_os_error().map_or_else(|| Failure::Text(error_chain(&error)), Failure::Number)
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> io::Error {
        match failure {
            Failure::Number(number) => io::Error::from_raw_os_error(number),
            Failure::Text(text) => io::Error::other(text),
        }
    }
}

/// The program's end of the connection to its opener.
#[derive(Debug)]
pub struct Opener(OwnedFd);

/// A pending answer. Readable when it has arrived.
#[derive(Debug)]
pub struct Asked(OwnedFd);

impl Opener {
    /// Forks the opener, with `name` as its name in lists of processes. It runs `begin`, and then `carry_out`
    /// for each request and its descriptors. An error of `carry_out` is sent as its number, or as its text
    /// with all causes. Call this from the main thread, before there is any other: before the log starts.
    ///
    /// # Errors
    ///
    /// The system cannot create the process or its sockets; `begin` failed, which the opener reports.
    pub fn start<R: DeserializeOwned>(
        name: &CStr,
        begin: impl FnOnce() -> Result<(), String>,
        carry_out: impl FnMut(R, Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>>,
    ) -> io::Result<Opener> {
        // A message is complete, even if its sender dies.
        let (ours, theirs) = pair()?;
        // SAFETY: there is no other thread that could hold a lock. In a test there is; the child takes only
        // the log's lock, and the allocator's, which the C library's fork leaves free.
        match logging::across_fork(|| unsafe { libc::fork() }) {
            0 => {
                std::panic::set_hook(Box::new(last_words));
                let kept = keep_only(name, &theirs);
                let kept = kept.map_err(|error| format!("the opener cannot close descriptors: {error}"));
                if let Err(why) = kept.and_then(|()| begin()) {
                    fail(&logging::last_line("opener_not_confined", &why));
                }
                if send(&theirs, &[READY], SendFlags::NOSIGNAL).is_ok() {
                    serve(&theirs, carry_out);
                }
                leave(0)
            }
            forked if forked < 0 => Err(io::Error::last_os_error()),
            _ => {
                drop(theirs);
                // By then the opener has closed all descriptors of this process.
                match recv(&ours, &mut [0], RecvFlags::empty())? {
                    (0, _) => Err(io::Error::other("the opener has ended")),
                    _ => Ok(Opener(ours)),
                }
            }
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    ///
    /// The opener is gone, or its queue of requests is full.
    pub fn ask(&self, request: &impl Serialize) -> io::Result<Asked> {
        self.ask_with(request, None)
    }

    /// Sends a request with a descriptor.
    ///
    /// # Errors
    ///
    /// As [`Opener::ask`].
    pub fn ask_with(&self, request: &impl Serialize, given: Option<BorrowedFd<'_>>) -> io::Result<Asked> {
        let (ours, theirs) = pair()?;
        set_socket_timeout(&ours, Timeout::Recv, Some(LIMIT))?;
        let fds: Vec<_> = given.into_iter().chain([theirs.as_fd()]).collect();
        send_whole(&self.0, request, &fds)?;
        Ok(Asked(ours))
    }
}

impl Asked {
    /// Waits at most 5 s for the answer, and returns the requested descriptors.
    ///
    /// # Errors
    ///
    /// The answer is an error, or there is none.
    pub fn take(self) -> io::Result<Vec<OwnedFd>> {
        match receive_whole::<Answer>(&self.0) {
            Ok(Some((answer, fds))) => answer.map(|()| fds).map_err(io::Error::from),
            Ok(None) => Err(io::Error::other("the opener is gone")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let text = format!("the opener does not answer within {} s", LIMIT.as_secs());
                Err(io::Error::other(text))
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Closes all inherited descriptors except the standard streams and `socket`.
fn keep_only(name: &CStr, socket: &OwnedFd) -> io::Result<()> {
    // The opener must outlive the program, even if both receive the same signals.
    let _ = SignalSet::all().block();
    let _ = rustix::thread::set_name(name);
    let number = socket.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, number - 1), (number + 1, u32::MAX)] {
        // SAFETY: this process never returns to code that owns these descriptors.
        let closed = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        if closed != 0 && first <= last {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn last_words(panic: &PanicHookInfo<'_>) {
    fail(&logging::last_line("panic", &format_args!("the opener: {panic}")));
}

/// Ends the opener after an error, with this last line. Writes it directly: the sandbox forbids a thread for
/// the log.
fn fail(line: &[u8]) -> ! {
    let _ = rustix::io::write(rustix::stdio::stderr(), line);
    leave(1)
}

/// Ends the opener without the handlers of `exit`, which belong to the program that forked it. They could
/// wait for ever, for a lock that another thread held at the fork.
fn leave(status: i32) -> ! {
    // SAFETY: has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Serves requests until no client is left.
fn serve<R: DeserializeOwned>(
    socket: &OwnedFd,
    mut carry_out: impl FnMut(R, Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>>,
) {
    loop {
        let (request, mut given) = match receive_whole::<R>(socket) {
            Ok(Some(received)) => received,
            // Ignore an invalid request.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => continue,
            Ok(None) | Err(_) => return,
        };
        let Some(answer_to) = given.pop() else { continue };
        let (answer, fds): (Answer, _) = match carry_out(request, given) {
            Ok(fds) => (Ok(()), fds),
            Err(error) => (Err(error.into()), Vec::new()),
        };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        // Sending does not block. A client that does not read gets no answer.
        let _ = send_whole(&answer_to, &answer, &fds);
    }
}

fn send_whole(socket: &OwnedFd, document: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let text = serde_json::to_vec(document)?;
    if text.len() > MAX_LEN {
        return Err(io::Error::other("the request is too long"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for a message"));
    }
    sendmsg(socket, &[IoSlice::new(&text)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}

/// Receives one message, truncated to the buffer. Returns its whole length.
fn receive(
    socket: &OwnedFd,
    text: &mut [u8],
    control: &mut RecvAncillaryBuffer<'_>,
    flags: RecvFlags,
) -> io::Result<RecvMsg> {
    loop {
        match recvmsg(socket, &mut [IoSliceMut::new(text)], control, flags | RecvFlags::TRUNC) {
            Err(rustix::io::Errno::INTR) => {}
            received => return Ok(received?),
        }
    }
}

fn is_hung_up(socket: &OwnedFd) -> bool {
    let mut socket = [PollFd::new(socket, PollFlags::IN)];
    poll(&mut socket, Some(&Timespec::default())).is_ok() && socket[0].revents().contains(PollFlags::HUP)
}

/// Receives the next message. Returns `None` when no peer is left, and `InvalidData` for an invalid message.
fn receive_whole<T: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // Peek at the length first: the opener waits here for most of its life, and then needs no buffer.
    let waiting = receive(socket, &mut [], &mut RecvAncillaryBuffer::default(), RecvFlags::PEEK)?;
    let mut text = vec![0; waiting.bytes.min(MAX_LEN)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = receive(socket, &mut text, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    };
    let fds: Vec<_> = control.drain().filter_map(rights).flatten().collect();
    if received.bytes == 0 {
        // An empty message looks like the end of the connection.
        return if is_hung_up(socket) { Ok(None) } else { Err(io::ErrorKind::InvalidData.into()) };
    }
    if received.bytes > text.len() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let document = serde_json::from_slice(&text);
    Ok(Some((document.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?, fds)))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use volt_net::port::tap::TapError;

    use super::*;

    /// A request is answered with descriptors. An invalid request, or one without a socket, has no effect.
    #[test]
    fn it_opens_what_it_is_asked_for() {
        let open = |path: String, given: Vec<OwnedFd>| match &*path {
            "back" => Ok(given),
            "" => Err(io::Error::other(TapError::Driver(io::ErrorKind::NotFound.into()))),
            path => Ok(vec![File::open(path)?.into()]),
        };
        let opener = Opener::start(c"opener", || Ok(()), open).unwrap();
        send(&opener.0, b"[1, 2", SendFlags::empty()).unwrap();
        send(&opener.0, b"", SendFlags::empty()).unwrap();
        send_whole(&opener.0, &"/dev/null", &[]).unwrap();
        send(&opener.0, &vec![b' '; MAX_LEN + 1], SendFlags::empty()).unwrap();
        let fds = opener.ask(&"/dev/null").unwrap().take().unwrap();
        assert_eq!(rustix::fs::fstat(&fds[0]).unwrap().st_rdev, rustix::fs::makedev(1, 3));
        assert_eq!(opener.ask_with(&"back", Some(fds[0].as_fd())).unwrap().take().unwrap().len(), 1);
        let error = opener.ask(&"/nonexistent").unwrap().take().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = opener.ask(&"").unwrap().take().unwrap_err().to_string();
        assert!(error.contains("/dev/net/tun") && error.ends_with(": entity not found"), "{error}");
        assert!(opener.ask(&"x".repeat(MAX_LEN)).is_err());
    }

    /// Without a client it ends, and does not run the program's exit handlers: they may wait for a thread
    /// that the opener does not have. An opener that stays keeps its privileges, and the standard streams
    /// open.
    #[test]
    fn it_ends_with_its_last_client() {
        const LIMIT: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };
        static PROGRAM: AtomicU32 = AtomicU32::new(0);
        extern "C" fn wait_in_a_fork() {
            if std::process::id() != PROGRAM.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_secs(40));
            }
        }
        PROGRAM.store(std::process::id(), Ordering::Relaxed);
        // SAFETY: the handler may run in any process at any time.
        assert_eq!(unsafe { libc::atexit(wait_in_a_fork) }, 0);
        // The opener keeps the writing end of a pipe until its very end.
        let (reader, writer) = io::pipe().unwrap();
        let keep = |_: String, given| {
            std::mem::forget::<Vec<OwnedFd>>(given);
            Ok(Vec::new())
        };
        let opener = Opener::start(c"opener", || Ok(()), keep).unwrap();
        opener.ask_with(&"keep", Some(writer.as_fd())).unwrap().take().unwrap();
        drop((opener, writer));
        let ended = poll(&mut [PollFd::new(&reader, PollFlags::IN)], Some(&LIMIT)).unwrap();
        assert_eq!(ended, 1, "the opener does not end");
    }

    /// An opener whose `begin` fails does not start.
    #[test]
    fn it_begins_or_is_not_started() {
        assert!(Opener::start(c"opener", || Err("no".to_owned()), |(): (), _| Ok(Vec::new())).is_err());
    }
}
