//! The log, to standard error: bounded, and nothing waits for it.
//!
//! Guests and front-ends bring about what it says, and its reader may stop reading. So a line goes into a
//! queue, and a thread of its own writes it out: where nobody reads, that thread waits, and no other. A line
//! that is too much for the bounds or for the queue is left out, and how many those were is said where they
//! would have been.
//!
//! A line is text for people or JSON for programs ([`Format`]). What tells an operator something has a name
//! that stays: `info!(event = "front_end_connected"; ...)`, with the line's values as further keys. Text
//! leaves both out, as the message says it.
//!
//! [`init`] comes first. Whatever ends the program says why by [`END`] or [`say`], and leaves by [`exit`] or
//! after [`flush`]. A fork has no thread but the one that forked: [`across_fork`] and [`init_again`].

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

/// What a line looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one object a line.
    Json,
}

/// Target of the few lines that say why and how the program ends: no bound leaves them out.
pub const END: &str = "end";

/// Of a line whose message says it all.
const NO_VALUES: [(&str, &str); 0] = [];

/// Name of the thread that writes.
const WRITER: &str = "log";
/// How long the end of the program waits for a reader.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a thread that waits for a reader looks for a task.
const TASK_LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
/// `limits.h`: what a pipe that can be written to takes as a whole.
const PIPE_BUF: usize = 4096;

static QUEUE: Queue = Queue { lines: Mutex::new(Lines::new()), changed: Condvar::new() };

/// What is to be written, and the thread that writes.
struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes line after line, for ever.
    fn serve(&self) {
        loop {
            self.write_out();
            let lines = self.lock();
            drop(self.changed.wait_while(lines, |lines| !lines.is_waiting() && lines.task.is_none()));
        }
    }

    /// Writes what waits.
    fn write_out(&self) {
        loop {
            self.do_task();
            let Some(line) = self.lock().take() else { return };
            let written = self.write_all(&line);
            self.lock().taken(written.is_ok());
            self.changed.notify_all();
        }
    }

    /// Does what this thread was given to do, if it was.
    fn do_task(&self) {
        let Some(task) = self.lock().task else { return };
        task();
        let mut lines = self.lock();
        (lines.task, lines.settled) = (None, true);
        self.changed.notify_all();
    }

    /// Waits for a reader, but not for ever as long as a task may still come.
    fn write_all(&self, mut bytes: &[u8]) -> Result<(), Errno> {
        // Not by the standard library's handle, whose lock a thread that waits would keep.
        let stderr = rustix::stdio::stderr();
        while !bytes.is_empty() {
            let limit = if self.lock().settled { None } else { Some(&TASK_LOOK) };
            if poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], limit) == Ok(0) {
                self.do_task();
                continue;
            }
            // A pipe that is ready takes so many bytes without waiting.
            match rustix::io::write(stderr, &bytes[..bytes.len().min(PIPE_BUF)]) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                // Somebody who shares it may have made it non-blocking.
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Formats lines, and leaves out what is too much.
struct Logger {
    text: env_logger::Logger,
    format: Format,
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
            Format::Text => self.text.log(record),
            Format::Json => enter(json::of(record)),
        }
    }

    fn flush(&self) {
        flush();
    }
}

/// Has a line that was admitted be written.
fn enter(line: Vec<u8>) {
    QUEUE.lock().push(line);
    QUEUE.changed.notify_all();
}

/// Where [`env_logger`] leaves a line.
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

/// Has lines be of `format` from now on, those that are said without a log too.
pub fn set_format(format: Format) {
    QUEUE.lock().format = format;
    if format == Format::Json {
        volt_sandbox::violation::say_in_json();
    }
}

/// Logs from now on what `level` lets through, in the [format](set_format) that is set; from debug on without
/// a bound of lines in a time, as somebody looks.
///
/// # Errors
///
/// When the process may have no more threads.
pub fn init(level: LevelFilter) -> io::Result<()> {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(level).format_target(false).format_timestamp_millis();
    builder.write_style(style()).target(Target::Pipe(Box::new(Entrance)));
    let format = QUEUE.lock().format;
    if level < LevelFilter::Debug {
        QUEUE.lock().bound(Bounds::new(Instant::now()));
    }
    start()?;
    if log::set_boxed_logger(Box::new(Logger { text: builder.build(), format })).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

/// Colours for a terminal that shows them, and a user who wants them.
fn style() -> WriteStyle {
    let plain = |name, is: fn(&str) -> bool| std::env::var(name).is_ok_and(|value| is(&value));
    let colour = io::stderr().is_terminal() && !plain("NO_COLOR", |value| !value.is_empty());
    if colour && !plain("TERM", |value| value == "dumb") { WriteStyle::Always } else { WriteStyle::Never }
}

/// Calls `fork`, which forks the process, while the thread that writes holds no lock, so that the child finds
/// none taken. Only for a process whose other threads hold no lock that the child takes.
pub fn across_fork<T>(fork: impl FnOnce() -> T) -> T {
    let _none_else = QUEUE.lock();
    fork()
}

/// For the child: lines that wait are its parent's to write, and it needs a thread of its own.
///
/// # Errors
///
/// When the process may have no more threads.
pub fn init_again() -> io::Result<()> {
    QUEUE.lock().forget();
    start()
}

/// Starts the thread that writes.
fn start() -> io::Result<()> {
    // It takes none of the process's signals, so that a terminal never stops it for writing in the background
    // either.
    let mask = SignalSet::all().block_only()?;
    let started = thread::Builder::new().name(WRITER.to_owned()).spawn(|| QUEUE.serve());
    mask.block_only()?;
    QUEUE.lock().set_served(started.is_ok());
    started.map(drop)
}

/// Has the thread that writes do something before its next line, which confines it for instance, and waits
/// for that. Whether it is done: the thread may be held by a reader who does not read.
#[must_use]
pub fn in_its_thread(task: fn()) -> bool {
    let mut lines = QUEUE.lock();
    lines.task = Some(task);
    QUEUE.changed.notify_all();
    let waited = QUEUE.changed.wait_timeout_while(lines, 5 * PATIENCE, |lines| lines.task.is_some());
    let (lines, _) = waited.unwrap_or_else(PoisonError::into_inner);
    lines.task.is_none()
}

/// Says something as it is, for a program's last word. For programs it is an error of this name.
pub fn say(event: &str, line: &dyn Display) {
    enter_last(last_line(event, line));
}

/// Says how far a command has come, to whoever waits for it: text in any case, and no event.
pub fn tell(line: &dyn Display) {
    enter_last(format!("{line}\n").into_bytes());
}

/// Has a line be written that no bound leaves out.
fn enter_last(line: Vec<u8>) {
    let mut lines = QUEUE.lock();
    lines.admit(Kind::End, Instant::now());
    lines.push(line);
    QUEUE.changed.notify_all();
}

/// What [`say`] says, for who writes it without this log.
pub fn last_line(event: &str, line: &dyn Display) -> Vec<u8> {
    let format = QUEUE.lock().format;
    match format {
        Format::Text => format!("{line}\n").into_bytes(),
        Format::Json => json::line(Level::Error, Some(event), line, &NO_VALUES),
    }
}

/// Says what a panic says, instead of the standard library, which would wait for a reader, and flushes.
pub fn say_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    say("panic", &format_args!("thread '{}' {panic}", thread.name().unwrap_or("<unnamed>")));
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        say("backtrace", &format_args!("stack backtrace:\n{backtrace}"));
    }
    flush();
}

/// Waits until everything is written, for a reader that reads.
pub fn flush() {
    let served = QUEUE.lock().is_served();
    let is_writer = thread::current().name() == Some(WRITER);
    if is_writer || (!served && start().is_err()) {
        // There is no other thread to do it.
        return QUEUE.write_out();
    }
    drop(QUEUE.changed.wait_timeout_while(QUEUE.lock(), PATIENCE, |lines| !lines.is_written()));
}

/// Ends the process when the log is written.
pub fn exit(status: i32) -> ! {
    flush();
    std::process::exit(status)
}
