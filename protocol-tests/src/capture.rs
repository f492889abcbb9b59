//! `volt-netd ctl capture` as a process of the test's, and what it leaves.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::{poll_until, program};
use crate::frame::number_of;
use crate::pcapng::Capture;
use crate::rig::{LIMIT, Rig};

/// `volt-netd ctl capture`, which captures when this is there.
#[derive(Debug)]
pub struct Client {
    /// The process.
    pub child: Child,
    /// What it says on standard error.
    said: BufReader<ChildStderr>,
    /// What it writes.
    pub file: PathBuf,
}

impl Client {
    /// Writes a file.
    ///
    /// # Panics
    /// When it captures nothing.
    pub fn start(rig: &Rig, arguments: &[&str]) -> Client {
        let file = rig.dir.path().join("frames.pcapng");
        Client::begun(command(rig, &file, arguments), file)
    }

    /// One that is to begin.
    ///
    /// # Panics
    /// As above.
    pub fn begun(mut command: Command, file: PathBuf) -> Client {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("volt-netd ctl");
        let said = BufReader::new(child.stderr.take().expect("piped"));
        let mut client = Client { child, said, file };
        client.says("capturing tap0");
        client
    }

    /// Reads up to a line with this in it.
    ///
    /// # Panics
    /// When there is none.
    pub fn says(&mut self, words: &str) {
        let mut said = String::new();
        while !said.lines().last().is_some_and(|line| line.contains(words)) {
            assert!(self.said.read_line(&mut said).expect("text") > 0, "no '{words}' in:\n{said}");
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn kill(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it lives");
    }

    /// Waits for its end; what it has said.
    ///
    /// # Panics
    /// When it does not end.
    pub fn end(&mut self) -> (ExitStatus, String) {
        let status = poll_until(LIMIT, || self.child.try_wait().expect("a child")).expect("it ends");
        let mut said = String::new();
        self.said.read_to_string(&mut said).expect("text");
        (status, said)
    }

    /// What it has captured when it ends well.
    ///
    /// # Panics
    /// When it does not, or its file is not whole.
    pub fn captured(&mut self) -> Capture {
        let (status, said) = self.end();
        assert!(status.success(), "{status}: {said}");
        let capture = read(&self.file);
        assert!(
            said.contains(&format!("{} frames to {}", capture.frames.len(), self.file.display())),
            "{said}"
        );
        capture
    }

    /// The same when it is told to end.
    ///
    /// # Panics
    /// As above.
    pub fn stop(&mut self) -> Capture {
        self.kill(Signal::INT);
        self.captured()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `volt-netd ctl capture` to `file`.
pub fn command(rig: &Rig, file: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("volt-netd"));
    command
        .args(["ctl", "--control"])
        .arg(rig.control())
        .args(["capture", "--out"])
        .arg(file)
        .args(arguments);
    command.stdin(Stdio::null());
    command
}

/// A file that is whole.
///
/// # Panics
/// When it is not.
pub fn read(file: &Path) -> Capture {
    let bytes = std::fs::read(file).expect("a file");
    Capture::parse(&bytes).unwrap_or_else(|error| panic!("{error}, of {}", bytes.len()))
}

/// Numbers of the frames of one direction, each intact.
///
/// # Panics
/// When one is not.
pub fn numbers(capture: &Capture, inbound: bool) -> Vec<u32> {
    let frames = capture.frames.iter().filter(|frame| frame.inbound == inbound);
    frames.map(|frame| number_of(&frame.bytes).expect("an intact frame")).collect()
}

/// Waits until the daemon captures for nobody.
///
/// # Panics
/// When it goes on.
pub fn is_off(rig: &Rig) {
    let off = poll_until(LIMIT, || rig.status()["capture"].is_null().then_some(()));
    assert!(off.is_some(), "{:#}", rig.status());
}
