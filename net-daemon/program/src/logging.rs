//! The log on standard error, which is bounded and never blocks the program.
//!
//! Guests and front-ends can cause log lines, and the reader may stop reading. So a line goes into a queue,
//! and only the log's thread writes, and waits for the reader. Lines beyond a rate or the queue's size are
//! left out, and the log has their number in their place.
//!
//! A line is text or JSON ([`Format`]). A line for operators has a stable event name:
//! `info!(event = "front_end_connected"; ...)`, with the line's values as further keys. The text format has
//! neither, because the message contains them.
//!
//! Call [`init`] first. Log the reason for the program's end with the target [`END`] or [`say`], and leave
//! with [`exit`] or after [`flush`]. A forked child has only one thread: use [`across_fork`] and
//! [`init_again`].

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use env_logger::{Target, WriteStyle};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::signals::SignalSet;
use bounds::{Bounds, Kind};
use queue::Lines;

mod bounds;
mod json;
mod queue;
#[cfg(test)]
mod tests;

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Plain text.
    Text,
    /// One JSON object per line.
    Json,
}

/// Target of the few lines about the program's end, which are never left out.
pub const END: &str = "end";

/// The values of a line without any.
const NO_VALUES: [(&str, &str); 0] = [];

/// Name of the log's thread.
const WRITER: &str = "log";
/// How long the end of the program waits for the reader.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often the log's thread checks for a task while it waits for the reader.
const TASK_LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// Number of bytes that a writable pipe accepts as a whole (`limits.h`).
const PIPE_BUF: usize = 4096;

static QUEUE: Queue = Queue { lines: Mutex::new(Lines::new()), changed: Condvar::new() };

/// Locked while [`env_logger`] writes a line to the queue, which it does under a lock of its own. Lock it
/// before the queue.
static ENTRANCE: Mutex<()> = Mutex::new(());

/// The pending lines, and the condition on which the log's thread waits.
struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        lock(&self.lines)
    }

    /// Writes lines for ever.
    fn serve(&self) {
        self.lock().set_served();
        self.changed.notify_all();
        loop {
            self.write_out();
            let lines = self.lock();
            drop(self.changed.wait_while(lines, |lines| !lines.is_waiting() && lines.task.is_none()));
        }
    }

    /// Writes all pending lines.
    fn write_out(&self) {
        loop {
            self.do_task();
            let Some(line) = self.lock().take() else { return };
            let written = self.write_all(&line);
            self.lock().taken(written.is_ok());
            self.changed.notify_all();
        }
    }

    /// Runs the log thread's pending task, if there is one.
    fn do_task(&self) {
        let Some(task) = self.lock().task else { return };
        task();
        let mut lines = self.lock();
        (lines.task, lines.settled) = (None, true);
        self.changed.notify_all();
    }

    /// Writes a line, and waits for the reader. Checks for a task meanwhile, as long as one may come.
    fn write_all(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        // Do not use the standard library's handle: this thread would hold its lock while it waits.
        let stderr = rustix::stdio::stderr();
        while !bytes.is_empty() {
            let limit = if self.lock().settled { None } else { Some(&TASK_LOOK) };
            if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], limit) == Ok(0) {
                self.do_task();
                continue;
            }
            // A writable pipe accepts this number of bytes without blocking.
            match rustix::io::write(stderr, &bytes[..bytes.len().min(PIPE_BUF)]) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                // Another process that shares standard error may have made it non-blocking.
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Locks what a panic cannot leave inconsistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Formats lines, and leaves out lines beyond the bounds.
struct Logger {
    text: env_logger::Logger,
    format: Format,
}

impl Logger {
    fn new(level: LevelFilter, format: Format) -> Logger {
        let mut builder = env_logger::Builder::new();
        builder.filter_level(level).format_target(false).format_timestamp_millis();
        builder.write_style(style()).target(Target::Pipe(Box::new(Entrance)));
        Logger { text: builder.build(), format }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.text.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let kind = match record.level() {
            _ if record.target() == END => Kind::End,
            Level::Error | Level::Warn => Kind::Warning,
            _ => Kind::Story,
        };
        if !self.text.matches(record) || !QUEUE.lock().admit(kind, Instant::now()) {
            return;
        }
        match self.format {
            Format::Text => {
                let _alone = lock(&ENTRANCE);
                self.text.log(record);
            }
            Format::Json => enter(json::of(record)),
        }
    }

    fn flush(&self) {
        flush();
    }
}

/// Queues an admitted line.
fn enter(line: Vec<u8>) {
    QUEUE.lock().push(line);
    QUEUE.changed.notify_all();
}

/// The target of [`env_logger`], which queues its lines.
struct Entrance;

impl Write for Entrance {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        enter(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets the format of all lines from now on, including those written without a log.
pub fn set_format(format: Format) {
    QUEUE.lock().format = format;
    if format == Format::Json {
        volt_sandbox::violation::say_in_json();
    }
}

/// Starts the log with `level`, in the [format](set_format) that is set. The levels debug and trace have no
/// limit on the rate of lines.
///
/// # Errors
///
/// The process cannot create another thread.
pub fn init(level: LevelFilter) -> io::Result<()> {
    let logger = Logger::new(level, QUEUE.lock().format);
    if level < LevelFilter::Debug {
        QUEUE.lock().bound(Bounds::new(Instant::now()));
    }
    start()?;
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

/// Uses colours on a terminal that shows them, unless the user disables them.
fn style() -> WriteStyle {
    let plain = |name, is: fn(&str) -> bool| std::env::var(name).is_ok_and(|value| is(&value));
    let colour = io::stderr().is_terminal() && !plain("NO_COLOR", |value| !value.is_empty());
    if colour && !plain("TERM", |value| value == "dumb") { WriteStyle::Always } else { WriteStyle::Never }
}

/// Calls `fork`, which forks the process, while no other thread holds a lock of the log: the child then finds
/// all of them free. Other threads of the process must not hold another lock that the child needs, and none
/// may be about to start or to end.
pub fn across_fork<T>(fork: impl FnOnce() -> T) -> T {
    let _none_enters = lock(&ENTRANCE);
    let _none_else = QUEUE.lock();
    fork()
}

/// Restarts the log in a forked child. The parent writes the lines that were pending.
///
/// # Errors
///
/// The process cannot create another thread.
pub fn init_again() -> io::Result<()> {
    QUEUE.lock().forget();
    start()
}

/// Starts the log's thread, and waits until it runs.
fn start() -> io::Result<()> {
    // It blocks all signals, so a terminal cannot stop it for writing in the background either.
    let mask = SignalSet::all().block_only()?;
    let started = thread::Builder::new().name(WRITER.to_owned()).spawn(|| QUEUE.serve());
    mask.block_only()?;
    started?;
    // A thread that starts holds a lock of the standard library. A fork in that moment would leave it locked
    // in the child, which could then neither start a thread nor exit.
    drop(QUEUE.changed.wait_while(QUEUE.lock(), |lines| !lines.is_served()));
    Ok(())
}

/// Makes the log's thread run `task`, for instance to confine itself, before its next line, and waits for
/// that. Returns whether the task has run: the thread may be blocked because standard error is not read.
#[must_use]
pub fn in_its_thread(task: fn()) -> bool {
    let mut lines = QUEUE.lock();
    lines.task = Some(task);
    QUEUE.changed.notify_all();
    let waited = QUEUE.changed.wait_timeout_while(lines, 5 * PATIENCE, |lines| lines.task.is_some());
    let (lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
    lines.task.is_none()
}

/// Writes `line` without time and level, for a program's last message. In JSON it is an error with the name
/// `event`.
pub fn say(event: &str, line: &dyn Display) {
    enter_last(last_line(event, line));
}

/// Reports a command's progress to the user: always as text, and without an event.
pub fn tell(line: &dyn Display) {
    enter_last(format!("{line}\n").into_bytes());
}

/// Queues a line that is never left out.
fn enter_last(line: Vec<u8>) {
    let mut lines = QUEUE.lock();
    lines.admit(Kind::End, Instant::now());
    lines.push(line);
    QUEUE.changed.notify_all();
}

/// Returns the line of [`say`], for a caller that writes it without the log.
pub fn last_line(event: &str, line: &dyn Display) -> Vec<u8> {
    let format = QUEUE.lock().format;
    match format {
        Format::Text => format!("{line}\n").into_bytes(),
        Format::Json => json::line(Level::Error, Some(event), line, &NO_VALUES),
    }
}

/// Writes a panic's message and flushes the log. The standard library's handler would block if standard error
/// is not read.
pub fn say_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    say("panic", &format_args!("thread '{}' {panic}", thread.name().unwrap_or("<unnamed>")));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        say("backtrace", &format_args!("stack backtrace:\n{backtrace}"));
    }
    flush();
}

/// Waits until all lines are written, or for a limited time if standard error is not read.
pub fn flush() {
    let served = QUEUE.lock().is_served();
    let is_writer = thread::current().name() == Some(WRITER);
    if is_writer || (!served && start().is_err()) {
        // No other thread can write the lines.
        return QUEUE.write_out();
    }
    drop(QUEUE.changed.wait_timeout_while(QUEUE.lock(), PATIENCE, |lines| !lines.is_written()));
}

/// Flushes the log and ends the process.
pub fn exit(status: i32) -> ! {
    flush();
    std::process::exit(status)
}
