//! The hand-over of a running daemon to a new process, between two frames of the guest.
//!
//! ```text
//! new                          old, which serves until 'last'
//!  |------ take over --------->|
//!  |<----- state, fds ---------|  answers no front-end from now on
//!  | imports, checks, changes nothing
//!  |------ ready ------------->|
//!  |                           |  stops popping, publishes
//!  |<----- last ---------------|  frames that wait for buffers, broken vrings; format 1: counters
//!  |<----- go: one byte -------|  its last act
//!  | starts
//! ```
//!
//! The `go` byte decides. If the old process could send it, it never serves again; otherwise it continues.
//! Before the new process stops waiting, it shuts down its end for reading: then the byte has either arrived,
//! or can never be sent.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use volt_net::state::Format;
use volt_net::state::transfer;

use crate::control::{self, ControlError, Offer, Reply, Request};
use crate::state::{FinalState, program};

/// How long each side waits for the other. Meanwhile, only the front-end's messages wait.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest time that a process takes to end once its descriptors are closed.
const END: Duration = Duration::from_secs(1);
const GO: u8 = b'G';

/// Why a hand-over failed. The running daemon continues.
#[derive(Debug, Error)]
pub(crate) enum HandOverError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the running daemon refuses: {0}")]
    Refused(String),
    #[error("the running daemon sent an unexpected answer")]
    Answer,
    #[error("the running daemon did not stop in time; it continues")]
    Late,
    #[error("the running daemon ended or stopped the hand-over before it was complete")]
    Ended,
    #[error("the connection of the hand-over failed")]
    Socket(#[from] io::Error),
}

/// The new process's response to the offer.
#[derive(Debug, Serialize, Deserialize)]
enum Response {
    Ready,
    Cannot(String),
}

/// The old process, for the new one, which has its offer.
#[derive(Debug)]
pub(crate) struct Predecessor {
    socket: UnixStream,
    pid: i32,
    supervised: bool,
    /// Distinguishes the death of the old process from a connection that it closed.
    process: Option<OwnedFd>,
}

impl Predecessor {
    /// Asks the daemon with control socket `path` for its state.
    pub(crate) fn ask(path: &Path) -> Result<(Predecessor, Offer, Vec<OwnedFd>), HandOverError> {
        let request = Request::TakeOver { formats: Format::ALL.to_vec(), program: program() };
        match control::ask(path, &request, PATIENCE)? {
            (socket, Reply::Offer(offer), fds) if offer.fds.len() == fds.len() => {
                let process = process(offer.pid);
                let predecessor =
                    Predecessor { socket, pid: offer.pid, supervised: offer.supervised, process };
                Ok((predecessor, offer, fds))
            }
            (_, Reply::Refused(why), _) => Err(HandOverError::Refused(why)),
            _ => Err(HandOverError::Answer),
        }
    }

    /// Tells the old process that this one cannot take over.
    pub(crate) fn give_up(self, why: &str) {
        let _ = transfer::send(&self.socket, &Response::Cannot(why.to_owned()), &[]);
    }

    /// Makes the old process stop. When this returns `Ok`, this process owns everything.
    pub(crate) fn wait_for_go(self) -> Result<FinalState, HandOverError> {
        transfer::send(&self.socket, &Response::Ready, &[])?;
        let (bytes, late) = self.read_to_go();
        let last = transfer::parse(&bytes);
        let went = last.as_ref().is_some_and(|(_, len)| bytes.get(*len) == Some(&GO));
        match last {
            Some((last, _)) if went => {
                info!(event = "took_over", pid:% = self.pid; "took over from process {}", self.pid);
                Ok(last)
            }
            _ if late => Err(HandOverError::Late),
            last if self.is_dead() => Ok(last.map(|(last, _)| last).unwrap_or_default()),
            _ => Err(HandOverError::Ended),
        }
    }

    /// Reads everything that the old process sends. Also returns whether it took too long.
    fn read_to_go(&self) -> (Vec<u8>, bool) {
        let (mut bytes, mut late) = (Vec::new(), false);
        let mut piece = [0; 4096];
        while transfer::parse::<FinalState>(&bytes).is_none_or(|(_, len)| bytes.len() <= len) {
            match (&self.socket).read(&mut piece) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // After the shutdown nothing more can arrive, but bytes that have arrived can still be read.
                Err(_) if !late && self.socket.shutdown(Shutdown::Read).is_ok() => late = true,
                Err(_) => break,
            }
        }
        (bytes, late)
    }

    /// Returns whether the old process has died, and no supervisor restarts it.
    fn is_dead(&self) -> bool {
        let Some(process) = self.process.as_ref().filter(|_| !self.supervised) else { return false };
        let limit = Timespec::try_from(END).ok();
        let dead = matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], limit.as_ref()), Ok(1));
        if dead {
            warn!(
                event = "predecessor_died", pid:% = self.pid;
                "process {} died during the hand-over", self.pid
            );
        }
        dead
    }
}

/// Opens the process with this number, if it is a volt-netd: in another PID namespace, the number belongs to
/// an unrelated process.
fn process(pid: i32) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let name = |of: &str| std::fs::read_to_string(format!("/proc/{of}/comm")).ok();
    (name(&pid.to_string())? == name("self")?).then_some(process)
}

/// The old process's side: sends the offer, and waits until the new process is ready.
///
/// # Errors
///
/// The reason why the old process continues.
pub(crate) fn offer(
    socket: &UnixStream,
    offer: Offer,
    fds: &[BorrowedFd<'_>],
    signals: &impl AsFd,
) -> Result<(), String> {
    let io = |error: io::Error| format!("the new process does not answer: {error}");
    socket.set_read_timeout(Some(PATIENCE)).map_err(io)?;
    socket.set_write_timeout(Some(PATIENCE)).map_err(io)?;
    transfer::send(socket, &Reply::Offer(offer), fds).map_err(io)?;
    let limit = Timespec::try_from(PATIENCE).ok();
    let mut waiting = [PollFd::new(socket, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
    match poll(&mut waiting, limit.as_ref()) {
        Ok(0) => return Err(format!("the new process was not ready within {} s", PATIENCE.as_secs())),
        Ok(_) if !waiting[1].revents().is_empty() => return Err("this daemon is told to end".to_owned()),
        Ok(_) => {}
        Err(error) => return Err(io(error.into())),
    }
    match transfer::receive::<Response>(socket).map_err(io)?.0 {
        Response::Ready => Ok(()),
        Response::Cannot(why) => Err(format!("the new process cannot take over: {why}")),
    }
}

/// Sends the part of the state that is known only when nothing runs any more.
pub(crate) fn send_last(socket: &UnixStream, last: &FinalState) -> io::Result<()> {
    transfer::send(socket, last, &[])
}

/// Tells the new process to start. After a success, this process must not touch anything that it handed over.
pub(crate) fn send_go(socket: &impl AsFd) -> io::Result<()> {
    send(socket, &[GO], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}
