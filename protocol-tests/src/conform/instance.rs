//! The back-end that a check works with: started, started anew for a further connection where it serves one
//! only, and how it ended.

use std::cell::RefCell;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use super::target::Wire;
use super::{Finding, LIMIT};
use crate::daemon::{Daemon, poll_until};
use crate::frontend::Frontend;
use crate::netns::Netns;

/// How long a back-end may take to listen. Some take seconds to get their memory.
const START: Duration = Duration::from_secs(20);
/// How long after its connection a process that dies may take to be gone.
const PARTING: Duration = Duration::from_millis(300);

/// What a back-end does once its first connection has ended, as it is found out once for all checks.
#[derive(Clone, Debug)]
pub(super) enum Next {
    /// It serves the next one.
    Served,
    /// It does not.
    Lost {
        /// What a front-end sees of that.
        finding: Finding,
        /// How the back-end has ended, if it has.
        ended: Option<ExitStatus>,
    },
    /// The first connection came to nothing already.
    Unknown(Finding),
}

/// A back-end that is there, or its process.
#[derive(Debug)]
pub(super) struct Instance {
    socket: PathBuf,
    /// The command that starts it; none for one that listens already.
    command: Option<String>,
    netns: Option<Netns>,
    /// The TAP that it must have opened before frames can pass.
    tap: Option<String>,
    pub(super) next: Next,
    state: RefCell<State>,
}

#[derive(Debug, Default)]
struct State {
    daemon: Option<Daemon>,
    /// It has had a connection.
    met: bool,
}

impl Instance {
    /// One that listens, or will, at `socket`; with a command, which is started here.
    ///
    /// # Errors
    ///
    /// How it ended, where it never listened.
    pub(super) fn new(
        socket: PathBuf,
        command: Option<&str>,
        netns: Option<Netns>,
        wire: &Wire,
        next: Next,
    ) -> Result<Instance, Finding> {
        let command = command
            .map(|command| format!("exec {}", command.replace("{socket}", &socket.display().to_string())));
        let tap = wire.interface().map(str::to_owned);
        let instance = Instance { socket, command, netns, tap, next, state: RefCell::default() };
        instance.start()?;
        Ok(instance)
    }

    /// The namespace with its far side.
    pub(super) fn netns(&self) -> Option<&Netns> {
        self.netns.as_ref()
    }

    /// Starts the command by the shell and waits until its socket and its interface are there.
    fn start(&self) -> Result<(), Finding> {
        if let Some(line) = &self.command {
            let mut shell = match &self.netns {
                Some(netns) => netns.command("sh"),
                None => std::process::Command::new("sh"),
            };
            // `exec`, so that the process that is watched and ended is the back-end itself.
            shell.args(["-c", line]).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
            let mut daemon = Daemon::start(shell)?;
            let there = poll_until(START, || (self.socket.exists() || daemon.has_exited()).then_some(()));
            if let Some(status) = daemon.wait(Duration::ZERO) {
                return Err(died(&daemon, status, "no socket"));
            }
            if there.is_none() {
                return Err(Finding::Broken(format!(
                    "no socket; the back-end said: {}",
                    daemon.log().trim()
                )));
            }
            *self.state.borrow_mut() = State { daemon: Some(daemon), met: false };
        }
        if let (Some(netns), Some(tap)) = (&self.netns, &self.tap) {
            netns.wait_until_up(tap, LIMIT)?;
        }
        Ok(())
    }

    /// A fresh connection. A back-end that serves one only is started anew for each further one, when its
    /// last one has ended.
    pub(super) fn connect(&self) -> Result<Frontend, Finding> {
        if let Next::Lost { ended, .. } = &self.next {
            if self.command.is_none() {
                let why = "it serves one connection, and only a --command can be started anew".to_owned();
                return Err(Finding::NoAccess(why));
            }
            if self.state.borrow().met {
                self.renew(ended.is_some())?;
            }
        }
        self.state.borrow_mut().met = true;
        Ok(Frontend::connect(&self.socket, LIMIT)?)
    }

    /// Ends the process, or waits for its end where it `ends` by itself, and starts the next.
    fn renew(&self, ends: bool) -> Result<(), Finding> {
        if let Some(daemon) = &mut self.state.borrow_mut().daemon {
            match daemon.wait(if ends { LIMIT } else { Duration::ZERO }) {
                Some(status) if !self.parts_so(status) => {
                    return Err(died(daemon, status, "between two connections"));
                }
                None if ends => {
                    let why =
                        "its connection gone, it neither ended nor served the next one, as it does else";
                    return Err(Finding::Broken(why.to_owned()));
                }
                _ => {}
            }
        }
        *self.state.borrow_mut() = State::default();
        let _ = std::fs::remove_file(&self.socket);
        self.start()
    }

    /// Whether this is how the back-end ends with a connection, right or wrong: one that serves one
    /// connection may end with any status where another one closes the connection, but not by another signal
    /// than it always does.
    fn parts_so(&self, status: ExitStatus) -> bool {
        match &self.next {
            Next::Lost { ended: Some(usual), .. } => usual.signal() == status.signal(),
            _ => false,
        }
    }

    /// How the process has ended, if it has or does in a moment.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        self.state.borrow_mut().daemon.as_mut()?.wait(PARTING)
    }

    /// What came of a check, with the back-end's end if that was none of its usual ones.
    pub(super) fn verdict(&self, result: Result<(), Finding>) -> Result<(), Finding> {
        let mut state = self.state.borrow_mut();
        let Some(daemon) = &mut state.daemon else { return result };
        // A connection that broke may be the first sign of a process that dies.
        let limit = if matches!(result, Err(Finding::Broken(_))) { PARTING } else { Duration::ZERO };
        match daemon.wait(limit) {
            Some(status) if !self.parts_so(status) => {
                let found = result.err().map(|finding| finding.reason());
                Err(died(daemon, status, found.as_deref().unwrap_or("the check itself passed")))
            }
            _ => result,
        }
    }
}

/// The end of a process, with its last words, which say more than a closed connection.
pub(super) fn died(process: &Daemon, status: ExitStatus, found: &str) -> Finding {
    let said = process.log();
    let last = said.lines().last().map(|line| format!("{line}; ")).unwrap_or_default();
    Finding::Died { status, why: format!("{last}{found}") }
}
