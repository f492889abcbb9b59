//! volt-netd as a process of the test: started, observed, read from /proc, and stopped by its ID.
//!
//! [`Daemon::start`] takes a prepared command, in a namespace or not; a thread captures its log. Dropping the
//! [`Daemon`] kills the process if it still runs, and the worker of a supervisor that was killed.

use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

/// The variable in which a service manager passes the runtime directory (`systemd.exec(5)`).
pub const RUNTIME_DIRECTORY: &str = "RUNTIME_DIRECTORY";

/// Returns the volt-netd for the next daemon of a succession: in turn the program `VOLT_NETD_BEFORE`, if set,
/// and this workspace's.
///
/// # Panics
/// As [`program`] does.
pub fn next_netd() -> PathBuf {
    static TURN: AtomicBool = AtomicBool::new(false);
    match std::env::var_os("VOLT_NETD_BEFORE") {
        Some(before) if !TURN.fetch_not(Ordering::Relaxed) => before.into(),
        _ => program("volt-netd"),
    }
}

/// Returns a program of this workspace: the one in the directory `VOLT_TRACED`, if set, otherwise the one
/// beside the running test.
///
/// # Panics
/// If it has not been built; the message tells how to build it.
pub fn program(name: &str) -> PathBuf {
    let traced = std::env::var_os("VOLT_TRACED").map(|directory| Path::new(&directory).join(name));
    if let Some(traced) = traced.filter(|path| path.is_file()) {
        return traced;
    }
    let test = std::env::current_exe().unwrap_or_default();
    let found = test.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no {name} near {}: run `cargo build --workspace` first", test.display()))
}

/// Makes a copy of a program at `path`, to be run.
///
/// Another process makes the copy: a fork of this process, from another test, would hold the copy open for
/// writing until its exec, and a file open for writing cannot be run (ETXTBSY).
///
/// # Panics
/// If it cannot be made.
pub fn copy_of(name: &str, path: &Path) {
    let copied = Command::new("cp").arg(program(name)).arg(path).status().expect("cp");
    assert!(copied.success(), "no copy of {name} at {}", path.display());
}

/// Gives a command a separate runtime directory, unless it has one: daemons whose interfaces have the same
/// name run at the same time, and each has its control socket there.
pub fn set_runtime_directory(command: &mut Command) -> io::Result<TempDir> {
    let directory = tempfile::tempdir()?;
    if command.get_envs().all(|(name, _)| name != RUNTIME_DIRECTORY) {
        command.env(RUNTIME_DIRECTORY, directory.path());
    }
    Ok(directory)
}

/// The resources of a process, from /proc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in clock ticks (a hundredth of a second).
    pub cpu_ticks: u64,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub fds: usize,
    /// Resident memory in KiB.
    pub resident: u64,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    /// The worker of a supervisor that was killed: it continues alone.
    orphan: OnceLock<OwnedFd>,
    log: Arc<Mutex<String>>,
    _runtime_directory: TempDir,
}

impl Daemon {
    /// Starts a command and captures its standard error.
    pub fn start(mut command: Command) -> io::Result<Daemon> {
        let runtime_directory = set_runtime_directory(&mut command)?;
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let log = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push_str(&line);
                    log.push('\n');
                }
            });
        }
        let orphan = OnceLock::new();
        Ok(Daemon { child, orphan, log, _runtime_directory: runtime_directory })
    }

    /// Returns its process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its log so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the log, from byte `from`, has a line with all of these words, and returns the line.
    pub fn logged(&self, from: usize, words: &[&str], limit: Duration) -> Option<String> {
        let fits = |line: &str| words.iter().all(|word| line.to_lowercase().contains(&word.to_lowercase()));
        poll_until(limit, || self.log().get(from..)?.lines().find(|line| fits(line)).map(str::to_owned))
    }

    /// Waits until the process logs that it listens at `path`. Returns an error if it ends.
    pub fn wait_for_socket(&mut self, path: &Path, limit: Duration) -> io::Result<()> {
        let at = path.display().to_string();
        let listening = poll_until(limit, || {
            let said = self.log().lines().any(|line| line.contains("listening on") && line.contains(&at));
            (said || self.has_exited()).then_some(())
        });
        if listening.is_some() && !self.has_exited() {
            return Ok(());
        }
        Err(io::Error::other(format!("no socket at {}; its log:\n{}", path.display(), self.log())))
    }

    /// Returns whether it has ended.
    pub fn has_exited(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = Pid::from_child(&self.child);
        if signal == Signal::KILL
            && let Some(worker) = child(self.pid())
        {
            let _ = self.orphan.set(pidfd_open(worker, PidfdFlags::empty())?);
        }
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        poll_until(limit, || self.child.try_wait().ok().flatten())
    }

    /// Sends SIGTERM; returns its exit status if it ended in time.
    pub fn stop(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.signal(Signal::TERM).ok()?;
        self.wait(limit)
    }

    /// Returns its resources now.
    pub fn usage(&self) -> io::Result<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.pid()));
        let stat = std::fs::read_to_string(proc.join("stat"))?;
        // The name in parentheses may contain spaces; fields are counted after it. The state is field 3.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field =
            |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let status = std::fs::read_to_string(proc.join("status"))?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        Ok(Usage {
            cpu_ticks: field(14) + field(15),
            threads: field(20),
            fds: std::fs::read_dir(proc.join("fd"))?.count(),
            resident: resident.and_then(|text| text.parse().ok()).unwrap_or(0),
        })
    }

    /// Returns the CPU time used during an idle `time`, in clock ticks.
    pub fn idle_ticks(&self, time: Duration) -> io::Result<u64> {
        let before = self.usage()?.cpu_ticks;
        std::thread::sleep(time);
        Ok(self.usage()?.cpu_ticks - before)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.has_exited() {
            // The worker of a supervisor would continue alone.
            let worker = child(self.pid());
            let _ = self.child.kill();
            let _ = worker.map(|worker| rustix::process::kill_process(worker, Signal::KILL));
        }
        let _ = self.orphan.get().map(|worker| pidfd_send_signal(worker, Signal::KILL));
        let status = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon ended with {status:?}; its log:\n{}", self.log());
        }
    }
}

/// Returns the child of a process that is not its opener: the worker, if the process is a supervisor.
pub fn child(pid: u32) -> Option<Pid> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let is_opener = |pid: &str| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "volt-opener")
    };
    let mut others = children.split_whitespace().filter(|pid| !is_opener(pid));
    Pid::from_raw(others.next()?.parse().ok()?)
}

/// Returns the state of a process (`proc(5)`): `S` for sleeping, `Z` for a zombie; `None` if it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(')').next()?.trim_start().chars().next()
}

/// Waits until a process sleeps, for example after it has answered.
pub fn wait_until_asleep(pid: u32, limit: Duration) -> bool {
    poll_until(limit, || (state(pid) == Some('S')).then_some(())).is_some()
}

/// Waits until a process is dead with all its threads, even if its parent has changed.
pub fn wait_until_dead(pid: Pid, limit: Duration) -> bool {
    let pid = pid.as_raw_nonzero().get() as u32;
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let dead = || matches!(state(pid), None | Some('Z' | 'X')) && threads() <= 1;
    poll_until(limit, || dead().then_some(())).is_some()
}

/// Calls `ask` every few milliseconds until it returns a value, or `limit` has passed.
pub fn poll_until<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        match ask() {
            Some(answer) => return Some(answer),
            None if Instant::now() >= deadline => return None,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}
