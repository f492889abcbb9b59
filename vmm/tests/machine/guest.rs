//! Guests made of machine code, as bzImage and as vmlinux, and the process that runs one.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;
use tempfile::TempDir;

/// Longer than any guest here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Load address of the code in both kinds of image.
const LOAD: u64 = 2 << 20;

/// Machine code that works in 32-bit and 64-bit mode, unless its function says otherwise.
#[derive(Clone, Default)]
pub(crate) struct Code(Vec<u8>);

impl Code {
    pub(crate) fn new() -> Code {
        Code::default()
    }

    /// Appends bytes.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Code {
        self.0.extend(bytes);
        self
    }

    /// `mov dx, port; mov al, value; out dx, al`
    pub(crate) fn out(self, port: u16, value: u8) -> Code {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// `mov edi, address; mov dword [rdi], value`
    pub(crate) fn store(self, address: u32, value: u32) -> Code {
        self.raw(&[0xbf]).raw(&address.to_le_bytes()).raw(&[0xc7, 0x07]).raw(&value.to_le_bytes())
    }

    /// Repeats this code: `mov ecx, times`; the body; `dec ecx; jnz` back to the body. The body must not
    /// change ecx.
    pub(crate) fn times(self, times: u32) -> Code {
        let back = -i32::try_from(self.0.len() + 8).unwrap();
        let start = Code::new().raw(&[0xb9]).raw(&times.to_le_bytes());
        start.raw(&self.0).raw(&[0xff, 0xc9, 0x0f, 0x85]).raw(&back.to_le_bytes())
    }

    /// Appends code.
    pub(crate) fn then(self, next: Code) -> Code {
        self.raw(&next.0)
    }

    /// Writes `text` to COM1.
    pub(crate) fn print(self, text: &str) -> Code {
        text.bytes().fold(self, |code, byte| code.out(0x3f8, byte))
    }

    /// Writes `count` bytes, the digits from 0 to 9 repeatedly, each when COM1's transmitter is free.
    pub(crate) fn digits(self, count: u32) -> Code {
        // mov ecx, count; digit: mov bl, '0'
        self.raw(&[0xb9])
            .raw(&count.to_le_bytes())
            .raw(&[0xb3, b'0'])
            // busy: mov dx, 0x3fd; in al, dx; test al, 0x20; jz busy
            .raw(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xf7])
            // mov dx, 0x3f8; mov al, bl; out dx, al
            .raw(&[0x66, 0xba, 0xf8, 0x03, 0x88, 0xd8, 0xee])
            // inc bl; cmp bl, '9' + 1; jne +2; mov bl, '0'; dec ecx; jnz busy
            .raw(&[0xfe, 0xc3, 0x80, 0xfb, b'9' + 1, 0x75, 0x02, 0xb3, b'0', 0xff, 0xc9, 0x75, 0xe3])
    }

    /// Writes S5 and SLP_EN to the sleep control register.
    pub(crate) fn power_off(self) -> Code {
        self.out(0x601, 5 << 2 | 1 << 5).halt()
    }

    /// `hlt; jmp` back to it
    pub(crate) fn halt(self) -> Code {
        self.raw(&[0xf4, 0xeb, 0xfd])
    }

    /// A bzImage whose 64-bit entry is this code.
    pub(crate) fn bzimage(&self) -> Vec<u8> {
        const SETUP: usize = 1024;
        let mut image = vec![0; SETUP + 0x200];
        let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
        put(0x1f1, &[1]);
        put(0x202, b"HdrS");
        put(0x206, &0x020fu16.to_le_bytes());
        put(0x211, &[1]);
        put(0x214, &0x10_0000u32.to_le_bytes());
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x236, &1u16.to_le_bytes());
        put(0x238, &255u32.to_le_bytes());
        put(0x258, &LOAD.to_le_bytes());
        put(0x260, &0x10_0000u32.to_le_bytes());
        image.extend(&self.0);
        image
    }

    /// A vmlinux whose PVH entry is this code.
    pub(crate) fn vmlinux(&self) -> Vec<u8> {
        const HEADERS: usize = 64 + 2 * 56;
        const NOTE: usize = 20;
        let mut image = vec![0; HEADERS];
        let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &2u16.to_le_bytes());
        put(18, &62u16.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &2u16.to_le_bytes());
        let len = self.0.len() as u64;
        let segments = [(1u32, HEADERS + NOTE, LOAD, len), (4, HEADERS, 0, NOTE as u64)];
        for (index, (kind, offset, address, size)) in segments.into_iter().enumerate() {
            let at = 64 + index * 56;
            put(at, &kind.to_le_bytes());
            for (field, value) in [(8, offset as u64), (24, address), (32, size), (40, size)] {
                put(at + field, &value.to_le_bytes());
            }
        }
        image.extend([4u32, 4, 18].into_iter().flat_map(u32::to_le_bytes));
        image.extend(b"Xen\0");
        image.extend((LOAD as u32).to_le_bytes());
        image.extend(&self.0);
        image
    }
}

/// Waits a bounded time for a condition.
#[track_caller]
pub(crate) fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Returns whether `test` can run. Prints the reason if it cannot.
pub(crate) fn kvm(test: &str) -> bool {
    let usable = File::options().read(true).write(true).open("/dev/kvm");
    if let Err(error) = &usable {
        eprintln!("SKIP {test}: /dev/kvm: {error}");
    }
    usable.is_ok()
}

/// Returns the path of the program: its replacement in the directory `VOLT_TRACED` (`scripts/soak --calls`),
/// or itself.
fn volt_vmm() -> PathBuf {
    let traced = std::env::var_os("VOLT_TRACED").map(|directory| Path::new(&directory).join("volt-vmm"));
    traced.unwrap_or_else(|| env!("CARGO_BIN_EXE_volt-vmm").into())
}

/// A machine to be started. Its files live as long as it does.
pub(crate) struct Machine {
    directory: TempDir,
    command: Command,
}

/// The end of a machine.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) output: String,
    pub(crate) log: String,
}

impl Machine {
    /// Creates the program with `kernel`. No signal is ignored, whatever the parent process ignores.
    pub(crate) fn new(kernel: &[u8]) -> Machine {
        Machine::behind(kernel, "--default-signal")
    }

    /// Like [`Machine::new`], with an option of `env` for signals at the start.
    pub(crate) fn behind(kernel: &[u8], signals: &str) -> Machine {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kernel");
        std::fs::write(&path, kernel).unwrap();
        let mut command = Command::new("env");
        command.arg(signals).arg(volt_vmm()).arg("--kernel").arg(path);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Machine { directory, command }
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Machine {
        self.command.args(args);
        self
    }

    pub(crate) fn stdin(mut self, stdin: impl Into<Stdio>) -> Machine {
        self.command.stdin(stdin);
        self
    }

    /// Starts it with this soft limit of open files.
    pub(crate) fn file_limit(self, limit: u32) -> Machine {
        let script = format!("ulimit -S -n {limit} && exec \"$@\"");
        self.by(&["sh", "-c", &script, "sh"])
    }

    pub(crate) fn stderr(mut self, stderr: impl Into<Stdio>) -> Machine {
        self.command.stderr(stderr);
        self
    }

    /// Starts it in its own process group, below one that could continue it.
    pub(crate) fn in_a_group(mut self) -> Machine {
        self.command.process_group(0);
        self
    }

    /// Starts it with `program`, which executes the command after its arguments. Follows earlier `args`, and
    /// precedes later ones.
    pub(crate) fn by(mut self, program: &[&str]) -> Machine {
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).arg(self.command.get_program()).args(self.command.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.command = command;
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn spawn(mut self) -> Running {
        Running { child: self.command.spawn().unwrap(), _directory: self.directory }
    }

    /// Runs the machine to its end.
    pub(crate) fn run(self) -> End {
        self.spawn().wait()
    }
}

/// A running machine. It is killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    _directory: TempDir,
}

impl Running {
    /// Reads the guest's output up to `text`, for a bounded time.
    pub(crate) fn expect(&mut self, text: &str) {
        expect(self.child.stdout.as_mut().unwrap(), text, PATIENCE);
    }

    /// Reads the log up to `text`, for a bounded time.
    pub(crate) fn expect_log(&mut self, text: &str) {
        self.expect_log_within(text, PATIENCE);
    }

    pub(crate) fn expect_log_within(&mut self, text: &str, patience: Duration) {
        expect(self.child.stderr.as_mut().unwrap(), text, patience);
    }

    /// Returns the CPU time of the process, including the guest's.
    pub(crate) fn used(&self) -> Duration {
        const TICK: Duration = Duration::from_millis(10);
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<u32> =
            stat.rsplit(')').next().unwrap().split(' ').map(|field| field.parse().unwrap_or(0)).collect();
        // utime and stime are fields 14 and 15. The text after the command begins with an empty field and the
        // state.
        TICK * (fields[12] + fields[13])
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Returns the machine's process, even if another program has started it.
    pub(crate) fn pid(&self) -> Pid {
        self.find().expect("the machine runs")
    }

    fn find(&self) -> Option<Pid> {
        let mut pid = self.child.id();
        loop {
            if std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == "volt-vmm" {
                return Pid::from_raw(pid.cast_signed());
            }
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
            pid = children.split_whitespace().next()?.parse().ok()?;
        }
    }

    /// Returns whether the machine's process is stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid().as_raw_pid())).unwrap();
        stat.contains(") T ")
    }

    /// Waits until the program handles `signal` itself. Then it blocks the signals that its signal thread
    /// takes.
    pub(crate) fn takes(&self, signal: rustix::process::Signal) {
        let start = Instant::now();
        // At first it is another program. Before it has that thread, it blocks all signals for moments.
        while !self.find().is_some_and(|pid| has_thread(pid, "signals") && is_blocked(pid, signal)) {
            assert!(start.elapsed() < PATIENCE, "{signal:?} is not taken");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end, for a bounded time.
    pub(crate) fn wait(mut self) -> End {
        let stdout = self.child.stdout.take().map(drain);
        let stderr = self.child.stderr.take().map(drain);
        let status = self.status();
        let text =
            |pipe: Option<thread::JoinHandle<_>>| pipe.map(|pipe| pipe.join().unwrap()).unwrap_or_default();
        End { status, output: text(stdout), log: text(stderr) }
    }

    /// Waits a bounded time for the end. The output is not read before.
    pub(crate) fn wait_unread(mut self) -> End {
        self.status();
        self.wait()
    }

    fn status(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the machine does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn expect(pipe: &mut (impl Read + AsFd), text: &str, patience: Duration) {
    let mut seen = Vec::new();
    let timeout = Timespec::try_from(patience).unwrap();
    while !seen.ends_with(text.as_bytes()) {
        let ready = poll(&mut [PollFd::new(&*pipe, PollFlags::IN)], Some(&timeout)).unwrap();
        assert!(ready == 1, "there is only {:?}", String::from_utf8_lossy(&seen));
        let mut byte = [0];
        let read = pipe.read(&mut byte).unwrap();
        assert!(read == 1, "it ended after {:?}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not after its end, because the number may then belong to another process.
        if matches!(self.child.try_wait(), Ok(None))
            && let Some(machine) = self.find()
        {
            let _ = rustix::process::kill_process(machine, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Writes everything from a thread, so that the machine may be slow.
pub(crate) fn feed(mut pipe: impl Write + Send + 'static, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    thread::spawn(move || pipe.write_all(&bytes).unwrap())
}

/// Returns whether a process has a thread of this name.
fn has_thread(pid: Pid, name: &str) -> bool {
    let threads =
        std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_pid())).into_iter().flatten().flatten();
    let names = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("comm")).ok());
    names.into_iter().any(|comm| comm.trim() == name)
}

/// Returns whether the main thread of a process blocks `signal`.
fn is_blocked(pid: Pid, signal: rustix::process::Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_pid())).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & 1 << (signal.as_raw() - 1) != 0
}
