//! `volt-netd ctl capture`: writes a guest's frames to a pcapng file.
//!
//! ```text
//! daemon                                       this client
//! control socket  <------- capture ----------  asks, and stays connected
//!                 -------- memfd ----------->  maps it
//! frame threads   ===> a ring for each pair    reads them every few milliseconds
//!                                              writes blocks to its file, or standard output
//! ```
//!
//! Only this client writes to the file. A daemon that wrote to a client's descriptor could be blocked by a
//! slow or full disk, a pipe whose reader has stopped, or a hanging file system, and `poll` reports none of
//! these. So the daemon writes to memory only, which needs no system call. A slow client loses captured
//! frames. The end of the connection stops the capture, whatever its cause.
//!
//! The connection also ends when the daemon hands over, or its worker dies. The client then asks the next
//! process, and continues the capture in the same file.

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

/// Time for a daemon to answer.
const ANSWER: Duration = Duration::from_secs(10);
/// How long to wait for the next daemon.
const SUCCESSOR: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(20);
/// Time between two reads of the rings: the shortest after a read with frames, the longest after many
/// without.
const LOOKS: [Duration; 2] = [Duration::from_millis(2), Duration::from_millis(10)];
/// Number of bytes gathered before a write.
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
    #[error("the daemon has ended, and no other has replaced it: the capture ends after {0} frames")]
    Ended(u64),
    #[error("the daemon has ended, and one for {0} has replaced it: the capture ends after {1} frames")]
    Other(String, u64),
    #[error("waiting for frames failed")]
    System(#[from] io::Error),
}

/// The next step of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Continue.
    On,
    /// End: a signal has arrived, or the time is over.
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
    // Not before: if another capture runs, this one is refused, and the file may be the other's.
    let mut output = Output::open(target)?;
    let (interface, pairs) = (&source.what.interface, &source.what.pairs);
    pcapng::section(&mut output.blocks, concat!("volt-netd ", env!("CARGO_PKG_VERSION")));
    for pair in pairs {
        let (name, snap) = (format!("{interface} pair {pair}"), options.request().snap);
        let description = "inbound: to the guest; outbound: from the guest";
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

/// A running capture.
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
    /// A comment for the next frame, about a gap before it.
    gap: Option<String>,
}

/// Frame counts of a pair.
#[derive(Clone, Copy, Debug, Default)]
struct Account {
    frames: u64,
    /// Frames that earlier daemons lost.
    lost: u64,
}

impl Recording {
    fn run(mut self) -> Result<(), CaptureError> {
        let mut look = LOOKS[0];
        loop {
            // Before the first frame, too, so that a reader sees the file's header and each frame at once.
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

    /// Takes as many frames as are written at once; with `until`, the last ones, up to that time. Returns
    /// whether there were any.
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
            // `poll` always reports an error, such as a pipe without a reader.
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

    /// Writes all frames captured up to now, and the statistics.
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

    /// Completes the file, and returns the error.
    fn fail(&mut self, error: CaptureError) -> Result<(), CaptureError> {
        self.finish()?;
        Err(error)
    }

    fn tell(&self) {
        let lost: u64 = (0..).zip(&self.accounts).map(|(ring, own)| own.lost + self.source.lost(ring)).sum();
        let lost = match lost {
            0 => String::new(),
            lost => format!("; {lost} more were lost because they were not read in time"),
        };
        tell(&format_args!("volt-netd: {} frames to {}{lost}", self.frames, self.output.name()));
    }

    /// Continues with the daemon that replaces one that has closed the connection.
    fn follow(&mut self) -> Result<(), CaptureError> {
        let since = Instant::now();
        self.write_rest()?;
        tell(&"volt-netd: the daemon closed the connection; waiting for the next one");
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
        self.gap = Some(format!("gap: the daemon's process was replaced, {missing:.1} ms were not captured"));
        tell(&"volt-netd: the capture continues");
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
