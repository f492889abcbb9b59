//! The front-end under test as a process, and the back-ends that it meets in turn.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::backend::{Backend, Recorded, Script};
use crate::conform::instance::died;
use crate::conform::{Finding, ensure};
use crate::daemon::{Daemon, poll_until};
use crate::frame::{NetHeader, numbered};
use crate::wire::{feature, request};

/// Time limit for a front-end to reconnect and set up its back-end. Some wait a second between tries.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// Time limit for an echo.
const ECHO: Duration = Duration::from_secs(3);

/// A front-end and the socket of its back-end.
#[derive(Debug)]
pub struct Stage {
    command: String,
    echo: bool,
    directory: TempDir,
    process: Option<Daemon>,
    /// Its messages to the first well-behaved back-end.
    conversation: Option<Vec<Recorded>>,
    /// Frames that have passed through its guest since its start.
    pub(super) echoed: u32,
    number: u32,
}

impl Stage {
    /// A front-end started by the shell `command`, in which `{socket}` stands for its back-end's socket and
    /// `{guest}` for the kernel of a guest that echoes frames. `echo` says that its guest does so.
    ///
    /// # Errors
    ///
    /// Returns an error if the directory for socket and guest cannot be created.
    pub fn new(command: &str, echo: bool) -> std::io::Result<Stage> {
        let directory = tempfile::tempdir()?;
        let guest = directory.path().join("guest");
        std::fs::write(&guest, crate::echo_guest::vmlinux())?;
        let command = command
            .replace("{socket}", &directory.path().join("s").display().to_string())
            .replace("{guest}", &guest.display().to_string());
        let echo = echo || command.contains(&*guest.display().to_string());
        Ok(Stage { command, echo, directory, process: None, conversation: None, echoed: 0, number: 0 })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s")
    }

    /// Ends the front-end's process; the next back-end starts a new one.
    pub fn restart(&mut self) {
        self.process = None;
        self.echoed = 0;
    }

    /// Starts a back-end that follows `script`, and a front-end that connects to it.
    pub(super) fn play(&mut self, script: Script) -> Result<Act, Finding> {
        let socket = self.socket();
        let _ = std::fs::remove_file(&socket);
        let backend = Backend::listen(Path::new(&socket), script)?;
        if self.process.as_mut().is_none_or(Daemon::has_exited) {
            self.restart();
            let mut shell = Command::new("sh");
            shell.args(["-c", &format!("exec {}", self.command)]).stdin(Stdio::null()).stdout(Stdio::null());
            self.process = Some(Daemon::start(shell)?);
        }
        Ok(Act { backend })
    }

    /// Brings the front-end to a state in which a good back-end has served it and left.
    pub(super) fn bereft(&mut self) -> Result<(), Finding> {
        if self.process.as_mut().is_some_and(|process| !process.has_exited()) && self.conversation.is_some() {
            return Ok(());
        }
        let act = self.play(Script::default())?;
        // An echo comes after all set-up messages. A front-end that keeps reconnecting is judged by a
        // complete attempt.
        let result = act.running().and_then(|()| self.echo(&act, 1));
        self.conversation = Some(if result.is_ok() { act.last() } else { act.whole() });
        result
    }

    /// Plays a good back-end once more: the front-end must set it up as if nothing had happened.
    pub(super) fn recovers(&mut self) -> Result<(), Finding> {
        let act = self.play(Script::default())?;
        act.running()?;
        self.echo(&act, 3)
    }

    /// Returns the front-end's messages to a well-behaved back-end.
    pub(super) fn conversation(&mut self) -> Result<Vec<Recorded>, Finding> {
        if self.conversation.is_none() {
            let result = self.bereft();
            // Keeps the messages of a front-end that sent any, even if the connection then failed.
            if self.conversation.as_ref().is_none_or(Vec::is_empty) {
                self.conversation = None;
                result?;
            }
        }
        Ok(self.conversation.clone().unwrap_or_default())
    }

    /// Sends frames to the guest, which must return them unchanged. Does nothing if no guest echoes.
    pub(super) fn echo(&mut self, act: &Act, count: u32) -> Result<(), Finding> {
        if !self.echo {
            return Ok(());
        }
        for at in 0..count {
            self.number += 1;
            let frame = numbered(self.number, 60 + (at as usize * 97) % 1400);
            act.backend.deliver(0, NetHeader::default(), &frame);
            let sent = act.backend.sent(ECHO);
            let Some((pair, _, bytes)) = sent else {
                return Err(Finding::Fail(format!(
                    "frame {at} of {count} did not come back {:?}",
                    act.backend.faults()
                )));
            };
            ensure!(
                (pair, &bytes) == (0, &frame),
                "frame {at} came back as {} bytes on pair {pair}",
                bytes.len()
            );
            self.echoed += 1;
        }
        let again = act.backend.sent(Duration::from_millis(20));
        ensure!(again.is_none(), "a frame came back twice");
        ensure!(act.backend.faults().is_empty(), "the driver's rings: {:?}", act.backend.faults());
        Ok(())
    }

    /// Returns whether the process has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(Daemon::has_exited)
    }

    /// Returns whether the guest is known to echo.
    pub(super) fn echoes(&self) -> Result<(), Finding> {
        match self.echo {
            true => Ok(()),
            false => Err(Finding::NoAccess("its guest does not echo: use {guest}, or --echo".to_owned())),
        }
    }

    /// Returns the check's result, together with the process's last output if it has ended.
    pub(super) fn verdict(&mut self, result: Result<(), Finding>) -> Result<(), Finding> {
        let Some(process) = &mut self.process else { return result };
        if let Some(status) = process.wait(Duration::ZERO) {
            let found = result.err().map(|finding| finding.reason());
            let died = died(process, status, found.as_deref().unwrap_or("the check itself passed"));
            self.restart();
            return Err(died);
        }
        if result.is_err() {
            // A restart keeps the state of this failure from the next check.
            self.restart();
        }
        result
    }
}

/// A playing back-end; dropping it disconnects it.
#[derive(Debug)]
pub(super) struct Act {
    pub(super) backend: Backend,
}

impl Act {
    /// Returns the messages of connection `number`.
    pub(super) fn heard(&self, number: usize) -> Vec<Recorded> {
        let record = self.backend.record();
        record.into_iter().filter(|message| message.connection == number).collect()
    }

    /// Returns the messages of the latest connection.
    pub(super) fn last(&self) -> Vec<Recorded> {
        let latest = self.backend.record().last().map_or(0, |message| message.connection);
        self.heard(latest)
    }

    /// Returns the messages of the latest ended connection in which rings ran, if there is one.
    fn whole(&self) -> Vec<Recorded> {
        let ended = (0..self.backend.ended()).rev().map(|number| self.heard(number));
        ended.into_iter().find(|talk| runs(talk)).unwrap_or_else(|| self.last())
    }

    /// Waits until both vrings of the first pair are started and enabled.
    pub(super) fn running(&self) -> Result<(), Finding> {
        let runs = || runs(&self.last()).then_some(());
        poll_until(PATIENCE, runs).ok_or_else(|| {
            let names: Vec<_> =
                self.last().iter().map(|message| crate::wire::request_name(message.request)).collect();
            Finding::Broken(format!(
                "no running pair after {PATIENCE:?}; the back-end saw {names:?} {:?}",
                self.backend.faults()
            ))
        })
    }

    /// Waits until connection `number` has ended, or `enough` returns true. Returns an error if the process
    /// has ended without it.
    pub(super) fn ended(
        &self,
        stage: &mut Stage,
        number: usize,
        limit: Duration,
        enough: impl Fn() -> bool,
    ) -> Result<(), Finding> {
        let ended = || self.backend.ended() > number;
        poll_until(limit, || (ended() || enough() || stage.has_ended()).then_some(()));
        if ended() || enough() {
            return Ok(());
        }
        // The end of a process is visible before that of its connection.
        let gone = stage.has_ended() && poll_until(PATIENCE / 20, || ended().then_some(())).is_none();
        match (ended(), gone) {
            (true, _) => Ok(()),
            (_, true) => Err(Finding::Broken(format!("no connection {number}"))),
            _ => Err(Finding::Fail(format!("connection {number} stayed open for {limit:?}"))),
        }
    }
}

fn runs(talk: &[Recorded]) -> bool {
    let first = |message: &Recorded| message.body.first().copied();
    let has = |wanted: u32, index: u8| {
        talk.iter().any(|message| message.request == wanted && first(message) == Some(index))
    };
    let acked = talk.iter().rev().find(|message| message.request == request::SET_FEATURES).map_or(0, long);
    let enabled = |index: u8| {
        let enable = [[index, 0, 0, 0], [1, 0, 0, 0]].concat();
        talk.iter().any(|message| message.request == request::SET_VRING_ENABLE && message.body == enable)
    };
    [0, 1].into_iter().all(|index| {
        has(request::SET_VRING_KICK, index) && (acked & feature::PROTOCOL_FEATURES == 0 || enabled(index))
    })
}

/// Returns the first 8 bytes of a message as a number.
pub(super) fn long(message: &Recorded) -> u64 {
    message.body.first_chunk().copied().map_or(0, u64::from_le_bytes)
}
