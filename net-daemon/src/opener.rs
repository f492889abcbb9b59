//! The process beside the daemon that opens what takes a path or a privilege, after the daemon has given up
//! both: an interface that was deleted, the socket of a front-end that listens. It also removes socket files
//! at the end, and ends a supervisor that does not answer.
//!
//! ```text
//! daemon                                    opener
//!   |-- a request: one byte, a socket ------->|
//!   |-- (entrust: duties) ------------------->|  once
//!   |<-- an answer, descriptors, by the socket|
//! ```
//!
//! It is forked before the process has anything of a guest's or of a front-end's, is told once what it is
//! for, and then a request is only which of its duties is asked for: whoever has taken the daemon over cannot
//! name a path or an interface. It never writes the log, and ends when nobody is left who could ask.
#![expect(unsafe_code, reason = "fork, and closing what the fork has of its parent's")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recv, recvmsg, send, sendmsg, socketpair,
};
use rustix::process::{Pid, Signal, getppid, kill_process};
use serde::{Deserialize, Serialize};
use volt_net::port::reopening::open_again;
use volt_net::port::state::Reopening;
use volt_net::state::transfer;
use volt_program::logging;
use volt_program::signals::SignalSet;
use volt_program::unix::{SocketFile, connect};
use volt_virtio::error_chain;

use crate::sandbox;

/// How long either side takes for the words after a request.
const LIMIT: Duration = Duration::from_secs(1);

const READY: u8 = b'R';

/// What it is for.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Duties {
    /// The interface to open again.
    pub(crate) port: Option<Reopening>,
    /// Where a front-end listens.
    pub(crate) frontend: Option<At>,
    /// Socket files to remove at the end, with device and number of the inode.
    pub(crate) files: Vec<(At, (u64, u64))>,
    /// Whether its parent is a supervisor.
    pub(crate) supervised: bool,
}

/// A path.
#[derive(Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct At(#[serde(with = "volt_net::state::path")] pub(crate) PathBuf);

/// Which duty is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Request {
    Entrust = b'e',
    OpenPort = b'p',
    Connect = b'c',
    RemoveFiles = b'r',
    EndSupervisor = b's',
}

const REQUESTS: [Request; 5] =
    [Request::Entrust, Request::OpenPort, Request::Connect, Request::RemoveFiles, Request::EndSupervisor];

/// What came of it.
type Answer = Result<(), String>;

/// The daemon's end.
#[derive(Debug)]
pub(crate) struct Opener(OwnedFd);

/// An answer that is waited for: readable when it is there.
#[derive(Debug)]
pub(crate) struct Asked(UnixStream);

impl Opener {
    /// Forks it.
    ///
    /// # Errors
    ///
    /// When the system has no process or no sockets for it.
    pub(crate) fn start() -> io::Result<Opener> {
        // Each request is whole, whenever the process dies that sends it.
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // SAFETY: beside this thread there is the log's, which holds no lock but the allocator's, and that
        // one is free in a child of the C library's.
        match logging::across_fork(|| unsafe { libc::fork() }) {
            0 => {
                keep_only(&theirs);
                if let Err(error) = sandbox::confine_opener() {
                    logging::say(&format_args!(
                        "volt-netd: the opener cannot be confined: {}",
                        error_chain(&error)
                    ));
                    logging::exit(1);
                }
                if send(&theirs, &[READY], SendFlags::NOSIGNAL).is_ok() {
                    serve(&theirs);
                }
                std::process::exit(0)
            }
            forked if forked < 0 => Err(io::Error::last_os_error()),
            _ => {
                drop(theirs);
                // Nothing of this process's is left there by then.
                recv(&ours, &mut [0], RecvFlags::empty())?;
                Ok(Opener(ours))
            }
        }
    }

    /// Tells it what it is for. Only the first time counts: whoever comes later has no say.
    pub(crate) fn entrust(&self, duties: &Duties) -> io::Result<()> {
        let asked = self.ask(Request::Entrust)?;
        transfer::send(&asked.0, duties, &[])?;
        asked.take().map(drop)
    }

    /// Asks for one of its duties.
    pub(crate) fn ask(&self, request: Request) -> io::Result<Asked> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(LIMIT))?;
        ours.set_write_timeout(Some(LIMIT))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let (byte, answer_to) = ([request as u8], [theirs.as_fd()]);
        control.push(SendAncillaryMessage::ScmRights(&answer_to));
        sendmsg(&self.0, &[IoSlice::new(&byte)], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        Ok(Asked(ours))
    }

    /// Asks, and waits for the answer. For what is no error when it does not come to pass.
    pub(crate) fn ask_and_wait(&self, request: Request) {
        let _ = self.ask(request).and_then(Asked::take);
    }
}

impl Asked {
    /// Takes the answer: the descriptors that were asked for.
    pub(crate) fn take(self) -> io::Result<Vec<OwnedFd>> {
        let (answer, fds) = transfer::receive::<Answer>(&self.0).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), "the process that opens it for this daemon is gone")
            }
            _ => error,
        })?;
        answer.map(|()| fds).map_err(io::Error::other)
    }
}

impl AsFd for Asked {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Closes everything that this process has of its parent's, but for the standard streams.
fn keep_only(socket: &OwnedFd) {
    // It has to outlast the daemon, also when signals are sent to both.
    let _ = SignalSet::all().block();
    let _ = rustix::thread::set_name(c"volt-opener");
    let number = socket.as_raw_fd().unsigned_abs();
    for (first, last) in [(3, number - 1), (number + 1, u32::MAX)] {
        // SAFETY: this process returns to none of its parent's owners of these descriptors.
        let _ = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Serves until nobody is left.
fn serve(socket: &OwnedFd) {
    let (parent, mut duties) = (getppid(), None);
    while let Some((request, answer_to)) = receive(socket) {
        // Whoever asks and does not read the answer waits for nothing.
        let _ = answer_to.set_read_timeout(Some(LIMIT));
        let _ = answer_to.set_write_timeout(Some(LIMIT));
        if request == Request::Entrust {
            let told = transfer::receive::<Duties>(&answer_to).ok().map(|(duties, _)| duties);
            duties = duties.or(told);
            let _ = transfer::send(&answer_to, &Answer::Ok(()), &[]);
            continue;
        }
        let Some(duties) = &duties else { continue };
        let (answer, fds) = match carry_out(request, duties, parent) {
            Ok(fds) => (Ok(()), fds),
            Err(why) => (Err(error_chain(&why)), Vec::new()),
        };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let _ = transfer::send(&answer_to, &answer, &fds);
    }
}

fn carry_out(request: Request, duties: &Duties, parent: Option<Pid>) -> io::Result<Vec<OwnedFd>> {
    let none = || io::Error::from(io::ErrorKind::Unsupported);
    match request {
        Request::Entrust => {}
        Request::OpenPort => return open_again(duties.port.as_ref().ok_or_else(none)?),
        Request::Connect => {
            let At(path) = duties.frontend.as_ref().ok_or_else(none)?;
            return Ok(vec![connect(path).map_err(io::Error::other)?.into()]);
        }
        Request::RemoveFiles => {
            for (At(path), inode) in &duties.files {
                SocketFile::again(path.clone(), *inode).remove();
            }
        }
        Request::EndSupervisor => {
            if let Some(parent) = parent.filter(|parent| duties.supervised && getppid() == Some(*parent)) {
                kill_process(parent, Signal::KILL)?;
            }
        }
    }
    Ok(Vec::new())
}

/// The next request, and where its answer goes. What is none is left out.
fn receive(socket: &OwnedFd) -> Option<(Request, UnixStream)> {
    loop {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        match (received, fd) {
            (Err(rustix::io::Errno::INTR), _) => {}
            (Err(_), _) => return None,
            (Ok(received), None) if received.bytes == 0 => return None,
            (Ok(_), fd) => {
                let request = REQUESTS.into_iter().find(|request| *request as u8 == byte[0]);
                if let (Some(request), Some(fd)) = (request, fd) {
                    return Some((request, fd.into()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Only what it was entrusted with at first can be asked for.
    #[test]
    fn it_does_what_it_was_first_entrusted_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let opener = Opener::start().unwrap();
        let asked = |request| opener.ask(request).and_then(Asked::take);
        assert!(asked(Request::Connect).is_err(), "before it knows");
        opener.entrust(&Duties { frontend: Some(At(path)), ..Duties::default() }).unwrap();
        opener.entrust(&Duties { frontend: Some(At("/nonexistent".into())), ..Duties::default() }).unwrap();
        assert_eq!(asked(Request::Connect).unwrap().len(), 1);
        assert!(listener.accept().is_ok());
        assert!(asked(Request::OpenPort).is_err() && asked(Request::EndSupervisor).unwrap().is_empty());
        drop(listener);
        let refused = asked(Request::Connect).unwrap_err().to_string();
        assert!(refused.contains("Connection refused"), "{refused}");
    }
}
