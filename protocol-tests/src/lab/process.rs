//! A child process whose output is read line by line, and which ends with its owner.

use std::fs::read_link;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::daemon::set_runtime_directory;

/// A running program. Dropping it ends it, by force after three seconds, and waits for its end.
pub struct Process {
    name: String,
    child: Child,
    /// Its standard output and error, as named in proc(5).
    pipes: Vec<PathBuf>,
    lines: Receiver<Line>,
    seen: Vec<Line>,
    _runtime_directory: TempDir,
}

/// A line of output with its time in seconds after the start: most failures are about time.
struct Line {
    at: f32,
    text: String,
}

impl Process {
    /// Starts `command` without input. Standard output and error are read together.
    ///
    /// # Panics
    /// If the program cannot be started.
    #[track_caller]
    pub fn start(name: &str, command: &mut Command) -> Self {
        let runtime_directory = set_runtime_directory(command).expect("a directory");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let (sender, lines) = channel();
        let fds = [child.stdout.as_ref().map(AsFd::as_fd), child.stderr.as_ref().map(AsFd::as_fd)];
        let link = |fd: BorrowedFd<'_>| read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok();
        let pipes = fds.into_iter().flatten().filter_map(link).collect();
        let stdout = child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>);
        let stderr = child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>);
        for stream in [stdout, stderr].into_iter().flatten() {
            forward(stream, sender.clone());
        }
        Self {
            name: name.into(),
            child,
            pipes,
            lines,
            seen: Vec::new(),
            _runtime_directory: runtime_directory,
        }
    }

    /// Waits for a line that contains `text` and that no earlier call returned.
    ///
    /// # Panics
    /// If the time is up or the output ends first.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let found = line.text.contains(text).then(|| line.text.clone());
                    self.seen.push(line);
                    if let Some(found) = found {
                        return found;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{} did not print '{text}' within {limit:?}: {self}{}", self.name, self.threads())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("{} ended before it said '{text}': {self}", self.name)
                }
            }
        }
    }

    /// Waits for the end of the program and of its output.
    ///
    /// # Panics
    /// If the time is up.
    #[track_caller]
    pub fn wait_exit(&mut self, limit: Duration) -> ExitStatus {
        self.wait_exit_and_tell(limit, |_| {})
    }

    /// Like `wait_exit`, but passes each line to `tell` as it arrives.
    ///
    /// # Panics
    /// If the time is up.
    #[track_caller]
    pub fn wait_exit_and_tell(&mut self, limit: Duration, tell: impl Fn(&str)) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    tell(&line.text);
                    self.seen.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("{} did not end within {limit:?}: {self}{}", self.name, self.threads())
                }
                // All writers have closed their ends: the program has ended, or is about to.
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status,
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(10)),
                other => panic!("{} closed its output but did not end: {other:?}: {self}", self.name),
            }
        }
    }

    /// Describes a hang: state, system call and kernel stack of each of its threads, and of other processes
    /// that hold its output; see proc(5).
    fn threads(&self) -> String {
        let files = |path: PathBuf| std::fs::read_dir(path).into_iter().flatten().flatten();
        let own = files(format!("/proc/{}/task", self.id()).into()).map(|entry| entry.path());
        let holds = |fd: PathBuf| read_link(fd).is_ok_and(|link| self.pipes.contains(&link));
        let others = files("/proc".into()).map(|entry| entry.path());
        let others = others.filter(|process| ["fd/1", "fd/2"].iter().any(|fd| holds(process.join(fd))));
        let lines = own.chain(others).map(|task| {
            let read = |name| std::fs::read_to_string(task.join(name)).unwrap_or_default();
            format!("{}system call {}{}\n", read("stat"), read("syscall"), read("stack"))
        });
        format!("its threads, and other holders of its output:\n{}", lines.collect::<String>())
    }

    /// Returns its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks the process to end, like an operator.
    pub fn terminate(&self) {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        );
    }

    /// Kills the process and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Returns all lines so far.
    pub fn output(&mut self) -> Vec<String> {
        self.seen.extend(self.lines.try_iter());
        self.seen.iter().map(|line| line.text.clone()).collect()
    }

    /// Returns the guest's reports: the text after `VOLT ` in each line that contains it.
    pub fn reports(&mut self) -> Vec<String> {
        self.output()
            .iter()
            .filter_map(|line| line.split_once("VOLT "))
            .map(|(_, report)| report.into())
            .collect()
    }
}

impl std::fmt::Display for Process {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(formatter, "the last lines of {}:", self.name)?;
        for Line { at, text } in &self.seen[self.seen.len().saturating_sub(60)..] {
            writeln!(formatter, "{at:8.2}  {text}")?;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Code that checked something else may not have noticed its end.
        let ended = self.child.try_wait().ok().flatten();
        // A script has children to end, so SIGTERM comes first.
        self.terminate();
        let deadline = Instant::now() + Duration::from_secs(3);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        self.kill();
        if thread::panicking() {
            self.output();
            if let Some(status) = ended {
                eprintln!("{} had ended by itself, {status}", self.name);
            }
            eprintln!("{self}");
        }
    }
}

/// Forwards each line of `stream`, without the carriage return of a console.
fn forward(stream: Box<dyn Read + Send>, lines: Sender<Line>) {
    let start = Instant::now();
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let text = String::from_utf8_lossy(&line).trim_end_matches('\r').into();
            if lines.send(Line { at: start.elapsed().as_secs_f32(), text }).is_err() {
                break;
            }
        }
    });
}
