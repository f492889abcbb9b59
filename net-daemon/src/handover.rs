//! A running daemon gives everything to a new process, between two frames of the guest.
//!
//! ```text
//! new                          old, which serves all the time up to 'last'
//!  |------ take over --------->|
//!  |<----- state, fds ---------|  answers no front-end from here on
//!  | imports, checks, touches nothing
//!  |------ ready ------------->|
//!  |                           |  stops popping, publishes
//!  |<----- last ---------------|  frames that wait for buffers, broken vrings; format 1: counters
//!  |<----- go: one byte -------|  its last act
//!  | starts
//! ```
//!
//! The one byte decides: whoever could send it never serves again, whoever could not goes on. Before a new
//! process gives up waiting it shuts its end for reading, so that the byte has either come by then or can
//! never be sent.
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

/// How long each side waits for the other. Nothing of the guest's waits meanwhile but its front-end's
/// messages.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a process takes to end at most, once its descriptors are closed.
const END: Duration = Duration::from_secs(1);
const GO: u8 = b'G';

/// Why a hand-over failed. The daemon that ran goes on.
#[derive(Debug, Error)]
pub(crate) enum HandOverError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the running daemon refuses: {0}")]
    Refused(String),
    #[error("the running daemon's answer makes no sense")]
    Answer,
    #[error("the running daemon did not stop in time; it goes on")]
    Late,
    #[error("the running daemon ended in the middle, or changed its mind")]
    Ended,
    #[error("the hand-over's connection failed")]
    Socket(#[from] io::Error),
}

/// What the new process says to the offer.
#[derive(Debug, Serialize, Deserialize)]
enum Response {
    Ready,
    Cannot(String),
}

/// The new process's side, which has the offer.
#[derive(Debug)]
pub(crate) struct Predecessor {
    socket: UnixStream,
    pid: i32,
    supervised: bool,
    /// To tell the old process's end from a connection that it closed.
    process: Option<OwnedFd>,
}

impl Predecessor {
    /// Asks the daemon that is controlled at `path` for its state.
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

    /// Tells the old process that this one cannot.
    pub(crate) fn give_up(self, why: &str) {
        let _ = transfer::send(&self.socket, &Response::Cannot(why.to_owned()), &[]);
    }

    /// Lets the old process stop; everything is this one's when this returns.
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

    /// Everything that the old process still sends, and whether it took too long.
    fn read_to_go(&self) -> (Vec<u8>, bool) {
        let (mut bytes, mut late) = (Vec::new(), false);
        let mut piece = [0; 4096];
        while transfer::parse::<FinalState>(&bytes).is_none_or(|(_, len)| bytes.len() <= len) {
            match (&self.socket).read(&mut piece) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // From here on nothing more can come, but what has come can still be read.
                Err(_) if !late && self.socket.shutdown(Shutdown::Read).is_ok() => late = true,
                Err(_) => break,
            }
        }
        (bytes, late)
    }

    /// Whether the old process has ended without a word, and nobody starts it again.
    fn is_dead(&self) -> bool {
        let Some(process) = self.process.as_ref().filter(|_| !self.supervised) else { return false };
        let limit = Timespec::try_from(END).ok();
        let dead = matches!(poll(&mut [PollFd::new(process, PollFlags::IN)], limit.as_ref()), Ok(1));
        if dead {
            warn!(
                event = "predecessor_died", pid:% = self.pid;
                "process {} died while it handed over", self.pid
            );
        }
        dead
    }
}

/// The process of that number, if it is a daemon like this one: in another PID namespace it would be anybody.
fn process(pid: i32) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let name = |of: &str| std::fs::read_to_string(format!("/proc/{of}/comm")).ok();
    (name(&pid.to_string())? == name("self")?).then_some(process)
}

/// The old process's side: offers, and waits until the new one is ready. `Err` says why it goes on.
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

/// Sends what is known only when nothing runs any more.
pub(crate) fn send_last(socket: &UnixStream, last: &FinalState) -> io::Result<()> {
    transfer::send(socket, last, &[])
}

/// Tells the new process to go. After a success nothing that was handed over may be touched.
pub(crate) fn send_go(socket: &impl AsFd) -> io::Result<()> {
    send(socket, &[GO], SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
    Ok(())
}
