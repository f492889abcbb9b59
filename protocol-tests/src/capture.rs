//! `volt-netd ctl capture` as a process of the test, and its output.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::{poll_until, program};
use crate::frame::number_of;
use crate::pcapng::Capture;
use crate::rig::{LIMIT, Rig};

/// A running `volt-netd ctl capture`.
#[derive(Debug)]
pub struct Client {
    /// The process.
    pub child: Child,
    /// Its standard error.
    said: BufReader<ChildStderr>,
    /// Its output file.
    pub file: PathBuf,
}

impl Client {
    /// Starts a capture to a file.
    ///
    /// # Panics
    /// If the capture does not start.
    pub fn start(rig: &Rig, arguments: &[&str]) -> Client {
        let file = rig.dir.path().join("frames.pcapng");
        Client::begun(command(rig, &file, arguments), file)
    }

    /// Starts a capture with `command`, and waits for its beginning.
    ///
    /// # Panics
    /// If the capture does not start.
    pub fn begun(mut command: Command, file: PathBuf) -> Client {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("volt-netd ctl");
        let said = BufReader::new(child.stderr.take().expect("piped"));
        let mut client = Client { child, said, file };
        client.says("capturing ");
        client
    }

    /// Reads up to a line that contains `words`.
    ///
    /// # Panics
    /// If there is none.
    pub fn says(&mut self, words: &str) {
        let mut said = String::new();
        while !said.lines().last().is_some_and(|line| line.contains(words)) {
            assert!(self.said.read_line(&mut said).expect("text") > 0, "no '{words}' in:\n{said}");
        }
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it has ended.
    pub fn kill(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it lives");
    }

    /// Waits for its end; returns its status and its output.
    ///
    /// # Panics
    /// If it does not end.
    pub fn end(&mut self) -> (ExitStatus, String) {
        let status = poll_until(LIMIT, || self.child.try_wait().expect("a child")).expect("it ends");
        let mut said = String::new();
        self.said.read_to_string(&mut said).expect("text");
        (status, said)
    }

    /// Returns its capture after a successful end.
    ///
    /// # Panics
    /// If it fails, or its file is incomplete.
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

    /// Ends it and returns its capture.
    ///
    /// # Panics
    /// If it fails, or its file is incomplete.
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

/// Returns a command `volt-netd ctl capture` that writes to `file`.
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

/// Reads a complete file.
///
/// # Panics
/// If it is incomplete.
pub fn read(file: &Path) -> Capture {
    let bytes = std::fs::read(file).expect("a file");
    Capture::parse(&bytes).unwrap_or_else(|error| panic!("{error}, of {}", bytes.len()))
}

/// Returns the numbers of the frames of one direction, all intact.
///
/// # Panics
/// If one is damaged.
pub fn numbers(capture: &Capture, inbound: bool) -> Vec<u32> {
    let frames = capture.frames.iter().filter(|frame| frame.inbound == inbound);
    frames.map(|frame| number_of(&frame.bytes).expect("an intact frame")).collect()
}

/// Waits until the daemon no longer captures.
///
/// # Panics
/// If it continues to capture.
pub fn is_off(rig: &Rig) {
    let off = poll_until(LIMIT, || rig.status()["capture"].is_null().then_some(()));
    assert!(off.is_some(), "{:#}", rig.status());
}
