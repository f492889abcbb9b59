//! The back-end's process: starts or finds it, pins it, and reads its CPU time, memory and system calls.
#![expect(unsafe_code, reason = "processor clock of another process")]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::bench::BenchError;
use crate::bench::card::LIMIT;
use crate::daemon::{poll_until, set_runtime_directory};
use crate::frontend::Frontend;

/// A process under test.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    child: Option<Child>,
    /// Time from the start of the command to its first answer, if it was started here.
    pub startup: Option<Duration>,
    clock: libc::clockid_t,
    _runtime_directory: Option<TempDir>,
}

impl Process {
    /// Starts `command`, binds it to processor `cpu`, and waits for an answer at `socket`.
    pub fn start(command: Command, cpu: usize, socket: &Path) -> Result<Process, BenchError> {
        let start = Instant::now();
        let mut process = Process::spawn(command, cpu)?;
        Frontend::connect(socket, LIMIT)?.sync()?;
        process.startup = Some(start.elapsed());
        Ok(process)
    }

    /// Starts `command` and binds it to processor `cpu`.
    pub fn spawn(mut command: Command, cpu: usize) -> Result<Process, BenchError> {
        let set = cpu_set(cpu);
        // SAFETY: one system call between fork and exec, on a value that is ready.
        unsafe { command.pre_exec(move || Ok(rustix::thread::sched_setaffinity(None, &set)?)) };
        Process::unbound(command)
    }

    /// Starts `command` on any processor.
    pub fn unbound(mut command: Command) -> Result<Process, BenchError> {
        let runtime_directory = set_runtime_directory(&mut command)?;
        let child = command.spawn()?;
        let mut process = Process {
            pid: child.id(),
            child: Some(child),
            startup: None,
            clock: 0,
            _runtime_directory: Some(runtime_directory),
        };
        process.clock = clock_of(process.pid)?;
        Ok(process)
    }

    /// Opens a running process.
    pub fn of(pid: u32) -> Result<Process, BenchError> {
        Ok(Process { pid, child: None, startup: None, clock: clock_of(pid)?, _runtime_directory: None })
    }

    /// Returns its process ID.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Returns the CPU time of all its threads: exact while they sleep, otherwise to a tick of the kernel.
    pub fn cpu_time(&self) -> Result<Duration, BenchError> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: writes one timespec.
        if unsafe { libc::clock_gettime(self.clock, &raw mut time) } != 0 {
            return Err(BenchError::Wrong(format!("process {} has ended", self.pid)));
        }
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }

    /// Waits until all its threads sleep, at most a tenth of a second: a polling back-end never sleeps.
    pub fn settle(&self) {
        let asleep = |task: std::io::Result<std::fs::DirEntry>| {
            let stat = task.ok().and_then(|task| std::fs::read_to_string(task.path().join("stat")).ok());
            stat.is_none_or(|stat| {
                let rest = stat.rsplit(')').next().map(str::trim_start);
                !matches!(rest, Some(rest) if rest.starts_with('R'))
            })
        };
        let deadline = Instant::now() + Duration::from_millis(100);
        while Instant::now() < deadline {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid));
            if tasks.is_ok_and(|mut tasks| tasks.all(asleep)) {
                return;
            }
        }
    }

    /// Returns the resident memory in KiB: total, and not shared with other processes.
    pub fn resident(&self) -> Result<(u64, u64), BenchError> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
        };
        Ok((field("VmRSS:"), field("RssAnon:")))
    }

    /// Counts its system calls with strace while `work` runs. Returns `None` if strace is missing or may not
    /// trace.
    pub fn system_calls(
        &self,
        work: impl FnOnce() -> Result<(), BenchError>,
    ) -> Result<Option<u64>, BenchError> {
        let file = tempfile::NamedTempFile::new()?;
        let mut strace = Command::new("strace");
        strace.args(["-f", "-q", "-c", "-o"]).arg(file.path()).args(["-p", &self.pid.to_string()]);
        let Ok(mut strace) = strace.stderr(Stdio::null()).stdin(Stdio::null()).spawn() else {
            return Ok(None);
        };
        let traced = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
            status
                .lines()
                .any(|l| l.strip_prefix("TracerPid:").is_some_and(|p| p.trim() != "0"))
                .then_some(())
        };
        let mut refused = || strace.try_wait().ok().flatten().map(|_| false);
        let attached = poll_until(LIMIT, || traced().map(|()| true).or_else(&mut refused)) == Some(true);
        std::thread::sleep(Duration::from_millis(50));
        let result = if attached { work() } else { Ok(()) };
        let _ = rustix::process::kill_process(Pid::from_child(&strace), Signal::TERM);
        strace.wait()?;
        result?;
        let text = std::fs::read_to_string(file.path())?;
        // "100.00  seconds  usecs/call  calls  [errors]  total"
        let total = text.lines().rev().find(|line| line.trim_end().ends_with("total"));
        Ok(total.filter(|_| attached).and_then(|line| line.split_whitespace().nth(3)?.parse().ok()))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        let pid = Pid::from_raw(self.pid as i32).ok_or_else(|| BenchError::Wrong("no process".to_owned()))?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Waits for the end of a process that was started here. Returns its exit code, or -1 for a signal.
    pub fn wait(&mut self, limit: Duration) -> Option<i32> {
        let status = poll_until(limit, || self.child.as_mut()?.try_wait().ok().flatten())?;
        Some(status.code().unwrap_or(-1))
    }

    /// Returns its child processes.
    pub fn children(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().flat_map(str::parse).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // The worker of a supervisor would continue alone.
            let worker = crate::daemon::child(self.pid);
            let _ = child.kill();
            let _ = worker.map(|worker| rustix::process::kill_process(worker, Signal::KILL));
            let _ = child.wait();
        }
    }
}

fn cpu_set(cpu: usize) -> rustix::thread::CpuSet {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    set
}

fn clock_of(pid: u32) -> Result<libc::clockid_t, BenchError> {
    let mut clock = 0;
    // SAFETY: writes one clockid_t.
    match unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) } {
        0 => Ok(clock),
        _ => Err(BenchError::Wrong(format!("there is no process {pid}"))),
    }
}

/// Returns the shell command of a back-end, with `{socket}`, `{tap}` and `{queues}` replaced.
pub fn shell(text: &str, socket: &Path, tap: &str, queues: usize) -> String {
    let text = text.replace("{socket}", &socket.display().to_string());
    format!("exec {}", text.replace("{tap}", tap).replace("{queues}", &queues.to_string()))
}

/// Returns the volt-netd beside this program.
pub fn own_daemon() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    here.ancestors().skip(1).take(3).map(|dir| dir.join("volt-netd")).find(|path| path.is_file())
}
