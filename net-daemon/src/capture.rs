//! `volt-netd ctl capture`: what a guest sends and gets, as a pcapng file.
//!
//! ```text
//! daemon                                       this client
//! control socket  <------- capture ----------  asks, and keeps the connection
//!                 -------- memfd ----------->  maps it
//! frame threads   ===> a ring for each pair    looks into them every few milliseconds
//!                                              writes blocks to its file, or standard output
//! ```
//!
//! The file is this client's alone. A daemon that wrote to a descriptor of somebody else's would have to wait
//! for what is behind it: a disk that is slow or full, a pipe whose reader has stopped, a file system that
//! hangs, none of which a poll tells. So it writes to memory only, which costs it no system call, and whoever
//! is slow loses frames of the capture. It need not be asked to stop either: the end of the connection does
//! that, whatever ended it.
//!
//! When the daemon hands over, or its worker dies, the connection ends too. The next one is asked then, and
//! the capture goes on in the same file.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;
use volt_net::capture::ring::{Captured, Garbled};
use volt_net::port::HEADER_LEN;
use volt_program::logging::tell;

use crate::control::ControlError;
use crate::signals::{Signals, ending};

mod comment;
pub(crate) mod options;
mod output;
mod pcapng;
mod source;

use options::Options;
use output::{Output, OutputError, Written};
use pcapng::{Flow, Packet, Statistics};
use source::{Source, SourceError};

/// How long a daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long the next daemon is waited for.
const SUCCESSOR: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(20);
/// Between two looks into rings: the shortest time after one that found something, the longest after many
/// that did not.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(10)];
/// Bytes that are gathered before they are written.
const GATHERED: usize = 256 << 10;

/// Why a capture fails.
#[derive(Debug, Error)]
pub(crate) enum CaptureError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Garbled(#[from] Garbled),
    #[error(
        "the daemon has ended, and none has come in its place: the capture ends with that, after {0} frames"
    )]
    Ended(u64),
    #[error(
        "another daemon has come in its place, of {0}: the capture ends with the first, after {1} frames"
    )]
    Other(String, u64),
    #[error("waiting for frames failed")]
    System(#[from] io::Error),
}

/// How a capture goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Nothing has happened.
    On,
    /// Told to end, or the time is over.
    End,
    /// The daemon has closed the connection.
    Closed,
    /// The reader has closed its end.
    Unread,
}

/// Captures frames until it is told to end.
pub(crate) fn run(control: &Path, options: &Options) -> Result<ExitCode, CaptureError> {
    let signals = Signals::watch(&ending())?;
    let target = output::target(options.out.as_deref())?;
    let source = Source::ask(control, options.request(), ANSWER)?;
    // Not before: the file may be that of the capture for which this one is refused.
    let mut output = Output::open(target)?;
    let (interface, pairs) = (&source.what.interface, &source.what.pairs);
    pcapng::section(&mut output.blocks, concat!("volt-netd ", env!("CARGO_PKG_VERSION")));
    for pair in pairs {
        let (name, snap) = (format!("{interface} pair {pair}"), options.request().snap);
        let description = "inbound: to the guest, outbound: from the guest";
        pcapng::interface(&mut output.blocks, &name, description, snap);
    }
    tell(&format_args!("volt-netd: capturing {interface}, queue pairs {pairs:?}, to {}", output.name()));
    let accounts = vec![Account::default(); pairs.len()];
    let deadline = options.time.map(|time| Instant::now() + time);
    let (control, options) = (control.to_owned(), options.clone());
    let began = now();
    Recording { control, options, signals, source, output, accounts, deadline, began, frames: 0, gap: None }
        .run()?;
    Ok(ExitCode::SUCCESS)
}

/// A capture that runs.
struct Recording {
    control: PathBuf,
    options: Options,
    signals: Signals,
    source: Source,
    output: Output,
    /// For each pair.
    accounts: Vec<Account>,
    deadline: Option<Instant>,
    /// Nanoseconds since 1970.
    began: u64,
    frames: u64,
    /// What the next frame says of the time before it.
    gap: Option<String>,
}

/// What became of a pair's frames.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    frames: u64,
    /// By daemons before this one.
    lost: u64,
}

impl Recording {
    fn run(mut self) -> Result<(), CaptureError> {
        let mut look = LOOKS[0];
        loop {
            // So that a reader sees each frame as it comes, the file's head among them.
            let written = self.output.flush(Some(self.signals.as_fd()))?;
            let found = written == Written::All && self.gather(None)?;
            look = if found { LOOKS[0] } else { (look * 2).min(LOOKS[1]) };
            let next = match written {
                Written::Closed => Next::Unread,
                Written::Interrupted => Next::End,
                Written::All if self.is_complete() => Next::End,
                Written::All => self.wait(if found { Duration::ZERO } else { look })?,
            };
            match next {
                Next::On => {}
                Next::End => return self.finish(),
                Next::Unread => {
                    self.tell();
                    return Ok(());
                }
                Next::Closed => self.follow()?,
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.options.count.is_some_and(|count| self.frames >= count)
    }

    /// Takes frames, as many as are written at once. With `until`, the last ones, up to that time. Whether
    /// there were any.
    fn gather(&mut self, until: Option<u64>) -> Result<bool, CaptureError> {
        let before = self.frames;
        while self.output.blocks.len() < GATHERED && !self.is_complete() {
            let next = self.source.next(until.is_some());
            let Some((ring, _)) = next.filter(|(_, time)| until.is_none_or(|until| *time <= until)) else {
                break;
            };
            let captured = self.source.take(ring)?;
            self.add(ring, &captured);
        }
        Ok(self.frames > before)
    }

    fn add(&mut self, ring: usize, captured: &Captured) {
        let (header, bytes) = captured.bytes.split_at(captured.bytes.len().min(HEADER_LEN));
        let comments = [self.gap.take(), comment::fate(captured.fate), comment::offloads(header)];
        let packet = Packet {
            interface: ring as u32,
            time: captured.time,
            bytes,
            len: captured.len.saturating_sub(HEADER_LEN) as u32,
            flow: if captured.is_rx { Flow::Inbound } else { Flow::Outbound },
            lost: captured.lost,
            comments: comments.into_iter().flatten().collect(),
        };
        pcapng::packet(&mut self.output.blocks, &packet);
        self.accounts[ring].frames += 1;
        self.frames += 1;
    }

    fn wait(&self, look: Duration) -> io::Result<Next> {
        let left = self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(Next::End);
        }
        let limit = Timespec::try_from(left.map_or(look, |left| left.min(look))).map_err(io::Error::other)?;
        let mut fds = [
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.source.connection, PollFlags::RDHUP),
            // An error is told without being asked for: a pipe without a reader.
            PollFd::new(&self.output, PollFlags::empty()),
        ];
        match poll(&mut fds, Some(&limit)) {
            Err(rustix::io::Errno::INTR) => return Ok(Next::On),
            result => result?,
        };
        let [told, closed, unread] = fds.map(|fd| !fd.revents().is_empty());
        Ok(match () {
            () if told => Next::End,
            () if unread => Next::Unread,
            () if closed => Next::Closed,
            () => Next::On,
        })
    }

    /// Writes what has come up to now.
    fn finish(&mut self) -> Result<(), CaptureError> {
        self.write_rest()?;
        let (start, end) = (self.began, now());
        for (ring, account) in self.accounts.iter().enumerate() {
            let lost = account.lost + self.source.lost(ring);
            let (interface, received) = (ring as u32, account.frames + lost);
            let statistics = Statistics { interface, start, end, received, lost };
            pcapng::statistics(&mut self.output.blocks, &statistics);
        }
        self.output.flush(None)?;
        self.tell();
        Ok(())
    }

    fn write_rest(&mut self) -> Result<(), CaptureError> {
        let until = now();
        while self.output.flush(None)? == Written::All && self.gather(Some(until))? {}
        Ok(())
    }

    /// Ends with an error, and a file that is complete up to there.
    fn fail(&mut self, error: CaptureError) -> Result<(), CaptureError> {
        self.finish()?;
        Err(error)
    }

    fn tell(&self) {
        let lost: u64 = (0..).zip(&self.accounts).map(|(ring, own)| own.lost + self.source.lost(ring)).sum();
        let lost = match lost {
            0 => String::new(),
            lost => format!("; {lost} more were lost, as they were not taken in time"),
        };
        tell(&format_args!("volt-netd: {} frames to {}{lost}", self.frames, self.output.name()));
    }

    /// Goes on with the daemon that comes in place of one that has closed the connection.
    fn follow(&mut self) -> Result<(), CaptureError> {
        let since = Instant::now();
        self.write_rest()?;
        tell(&"volt-netd: the daemon has closed the connection: waiting for the next one");
        let next = loop {
            match Source::ask(&self.control, self.options.request(), SUCCESSOR) {
                Ok(next) => break next,
                Err(error @ SourceError::Control(ControlError::Refused(_))) => {
                    return self.fail(error.into());
                }
                Err(_) if since.elapsed() >= SUCCESSOR => return self.fail(CaptureError::Ended(self.frames)),
                Err(_) => std::thread::sleep(RETRY),
            }
            if self.wait(Duration::ZERO)? == Next::End {
                return Ok(());
            }
        };
        if next.what != self.source.what {
            return self.fail(CaptureError::Other(next.what.interface, self.frames));
        }
        for (ring, account) in self.accounts.iter_mut().enumerate() {
            account.lost += self.source.lost(ring);
        }
        self.source = next;
        let missing = since.elapsed().as_secs_f64() * 1000.0;
        self.gap = Some(format!("gap: another process of the daemon, {missing:.1} ms were not captured"));
        tell(&"volt-netd: the capture goes on");
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
