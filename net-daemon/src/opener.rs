//! The opener: a helper process that reopens a deleted interface, connects to a peer or a listening
//! front-end, removes socket files at the end, and kills a supervisor that does not answer.
//!
//! It receives its duties once. A later request only names one of them, so an attacker who has taken the
//! daemon over cannot choose a path or an interface.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{Pid, Signal, getpid, getppid, kill_process};
use serde::{Deserialize, Serialize};
use volt_net::port::reopening::open_again;
use volt_net::port::state::Reopening;
use volt_program::opener::{Opener, WirePath};
use volt_program::unix::{SocketFile, connect};
use volt_virtio::error_chain;

use crate::sandbox;

/// The opener's duties.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Duties {
    /// The interface to reopen, or the peer to connect to.
    pub(crate) port: Option<Reopening>,
    /// The socket of a listening front-end.
    pub(crate) frontend: Option<WirePath>,
    /// Socket files to remove at the end, with device and number of the inode.
    pub(crate) files: Vec<(WirePath, (u64, u64))>,
    /// Whether the opener's parent is a supervisor.
    pub(crate) supervised: bool,
}

/// A request to the opener.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Sets the duties. Only the first one counts.
    Entrust(Duties),
    /// A peer's datagram socket comes with the request.
    OpenPort,
    Connect,
    RemoveFiles,
    EndSupervisor,
}

/// Starts the opener.
///
/// # Errors
///
/// See [`Opener::start`].
pub(crate) fn start() -> io::Result<Opener> {
    let begin = || {
        let confined = sandbox::confine_opener();
        confined.map_err(|error| format!("volt-netd: the opener cannot be confined: {}", error_chain(&error)))
    };
    let (parent, mut entrusted) = (getpid(), None);
    Opener::start(c"volt-opener", begin, move |request, given: Vec<OwnedFd>| {
        if let Request::Entrust(duties) = request {
            if entrusted.is_none() && !matches!(duties.port, Some(Reopening::Xdp(_))) {
                sandbox::opener_without_xdp()?;
            }
            entrusted.get_or_insert(duties);
            return Ok(Vec::new());
        }
        let duties = entrusted.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        carry_out(&request, given.first(), duties, parent)
    })
}

/// Sends a request to `opener`, waits for the answer, and ignores an error.
pub(crate) fn ask_and_wait(opener: &Opener, request: &Request) {
    let _ = opener.ask(request).and_then(|asked| asked.take());
}

fn carry_out(
    request: &Request,
    given: Option<&OwnedFd>,
    duties: &Duties,
    parent: Pid,
) -> io::Result<Vec<OwnedFd>> {
    let none = io::ErrorKind::Unsupported;
    match request {
        Request::Entrust(_) => {}
        Request::OpenPort => {
            return open_again(duties.port.as_ref().ok_or(none)?, given.map(AsFd::as_fd));
        }
        Request::Connect => {
            let WirePath(path) = duties.frontend.as_ref().ok_or(none)?;
            return Ok(vec![connect(path)?.into()]);
        }
        Request::RemoveFiles => {
            for (WirePath(path), inode) in &duties.files {
                SocketFile::again(path.clone(), *inode).remove();
            }
        }
        Request::EndSupervisor => {
            if duties.supervised && getppid() == Some(parent) {
                kill_process(parent, Signal::KILL)?;
            }
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// The opener accepts requests for its first duties only.
    #[test]
    fn it_does_what_it_was_first_entrusted_with() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let opener = start().unwrap();
        let asked = |request| opener.ask(&request).and_then(|asked| asked.take());
        assert!(asked(Request::Connect).is_err(), "before it knows");
        let connecting =
            |path| Request::Entrust(Duties { frontend: Some(WirePath(path)), ..Duties::default() });
        assert!(asked(connecting(path)).unwrap().is_empty());
        assert!(asked(connecting("/nonexistent".into())).unwrap().is_empty());
        assert_eq!(asked(Request::Connect).unwrap().len(), 1);
        assert!(listener.accept().is_ok());
        assert!(asked(Request::OpenPort).is_err() && asked(Request::EndSupervisor).unwrap().is_empty());
        drop(listener);
        let refused = asked(Request::Connect).unwrap_err().to_string();
        assert!(refused.contains("Connection refused"), "{refused}");
    }
}
