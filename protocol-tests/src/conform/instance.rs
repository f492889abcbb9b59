//! The back-end of a check: its start, its restart for a further connection if it serves only one, and its
//! end.

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

/// Time limit for a back-end to listen. Some take seconds to allocate their memory.
const START: Duration = Duration::from_secs(20);
/// Time that a dying process may take after its connection has ended.
const PARTING: Duration = Duration::from_millis(300);

/// A back-end's behaviour after its first connection has ended, found once for all checks.
#[derive(Clone, Debug)]
pub(super) enum Next {
    /// It serves the next connection.
    Served,
    /// It does not.
    Lost {
        /// The finding of the next front-end.
        finding: Finding,
        /// The back-end's status, if it has ended.
        ended: Option<ExitStatus>,
    },
    /// The first connection failed already.
    Unknown(Finding),
}

/// A listening back-end, or the process of one.
#[derive(Debug)]
pub(super) struct Instance {
    socket: PathBuf,
    /// The command that starts it; `None` if it listens already.
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
    /// Whether it has had a connection.
    met: bool,
}

impl Instance {
    /// A back-end that listens, or will listen, at `socket`. A command is started here.
    ///
    /// # Errors
    ///
    /// Returns the end of a back-end that never listened.
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

    /// Returns the namespace of its far side.
    pub(super) fn netns(&self) -> Option<&Netns> {
        self.netns.as_ref()
    }

    /// Starts the command by the shell and waits for its socket and its interface.
    fn start(&self) -> Result<(), Finding> {
        if let Some(line) = &self.command {
            let mut shell = match &self.netns {
                Some(netns) => netns.command("sh"),
                None => std::process::Command::new("sh"),
            };
            // `exec` makes the watched process the back-end itself.
            shell.args(["-c", line]).stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
            let mut daemon = Daemon::start(shell)?;
            let there = poll_until(START, || (self.socket.exists() || daemon.has_exited()).then_some(()));
            if let Some(status) = daemon.wait(Duration::ZERO) {
                return Err(died(&daemon, status, "no socket"));
            }
            if there.is_none() {
                return Err(Finding::Broken(format!(
                    "no socket; output of the back-end: {}",
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

    /// Makes a fresh connection. A back-end that serves only one is restarted for each further one, after the
    /// previous connection has ended.
    pub(super) fn connect(&self) -> Result<Frontend, Finding> {
        if let Next::Lost { ended, .. } = &self.next {
            if self.command.is_none() {
                let why = "it serves one connection, and only a --command can be restarted".to_owned();
                return Err(Finding::NoAccess(why));
            }
            if self.state.borrow().met {
                self.renew(ended.is_some())?;
            }
        }
        self.state.borrow_mut().met = true;
        Ok(Frontend::connect(&self.socket, LIMIT)?)
    }

    /// Ends the process, or waits for its end if it `ends` by itself, and starts the next.
    fn renew(&self, ends: bool) -> Result<(), Finding> {
        if let Some(daemon) = &mut self.state.borrow_mut().daemon {
            match daemon.wait(if ends { LIMIT } else { Duration::ZERO }) {
                Some(status) if !self.parts_so(status) => {
                    return Err(died(daemon, status, "between two connections"));
                }
                None if ends => {
                    let why = "disconnected, it neither ended nor served the next connection as usual";
                    return Err(Finding::Broken(why.to_owned()));
                }
                _ => {}
            }
        }
        *self.state.borrow_mut() = State::default();
        let _ = std::fs::remove_file(&self.socket);
        self.start()
    }

    /// Returns whether the back-end usually ends like this after a connection. A back-end that serves one
    /// connection may end with any status, but by no other signal than usual.
    fn parts_so(&self, status: ExitStatus) -> bool {
        match &self.next {
            Next::Lost { ended: Some(usual), .. } => usual.signal() == status.signal(),
            _ => false,
        }
    }

    /// Returns the status of a process that has ended or does so in a moment.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        self.state.borrow_mut().daemon.as_mut()?.wait(PARTING)
    }

    /// Returns the check's result, together with an unusual end of the back-end.
    pub(super) fn verdict(&self, result: Result<(), Finding>) -> Result<(), Finding> {
        let mut state = self.state.borrow_mut();
        let Some(daemon) = &mut state.daemon else { return result };
        // A broken connection may be the first sign of a process that dies.
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

/// The end of a process, with its last output, which says more than a closed connection.
pub(super) fn died(process: &Daemon, status: ExitStatus, found: &str) -> Finding {
    let said = process.log();
    let last = said.lines().last().map(|line| format!("{line}; ")).unwrap_or_default();
    Finding::Died { status, why: format!("{last}{found}") }
}
