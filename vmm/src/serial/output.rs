//! The guest's output: a bounded buffer that vCPUs fill, and a thread that empties it.
//!
//! Only that thread ever waits for a reader: a stopped terminal, a pipe whose other end sleeps, a slow disk.
//! The main thread could wait with `poll` for most of these. It could not for a file's disk, or for a pipe or
//! terminal that another process fills between `poll` and `write`. It also must not make inherited
//! descriptors non-blocking. A reader that never comes blocks only this thread, and the end of the process
//! does not wait for it.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::warn;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::sandbox::{self, lists::SERIAL};
use crate::serial::room::Room;

/// From this length on, the transmitter is busy.
pub(super) const LIMIT: usize = 32 << 10;
/// More room for drivers that write anyway: a burst of the size of the FIFO, and the output of Linux's
/// console after 10 ms of waiting for each byte.
pub(super) const RESERVE: usize = 4 << 10;
/// The transmitter's interrupt comes when no more than this is left.
const LOW: usize = LIMIT / 2;
/// Bytes in one write. Small enough that a line of 9600 baud makes progress within [`STALL`].
pub(super) const CHUNK: usize = 512;
/// A reader that takes no byte for that long counts as absent. The guest continues without it.
pub(super) const STALL: Duration = Duration::from_secs(1);
/// The longest time that the machine's end waits for a reader that makes progress.
const FINISH: Duration = Duration::from_secs(5);

/// The guest's output. Clones share the buffer.
#[derive(Clone)]
pub struct Output(Arc<Inlet>);

/// The vCPUs' end of the buffer. Dropping it ends the thread.
struct Inlet(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The buffer is not empty, or no longer written.
    filled: Condvar,
    /// A part of the buffer was written out.
    taken: Condvar,
    room: Arc<Room>,
}

struct State {
    buffer: VecDeque<u8>,
    /// When the reader last took bytes, or the buffer became non-empty.
    progress: Instant,
    /// Whether the UART shows a busy transmitter.
    busy: bool,
    started: bool,
    lost: u64,
    failed: bool,
    closed: bool,
    /// See [`STALL`].
    stall: Duration,
}

impl Output {
    /// Creates output to `file`. `room` is notified when the transmitter has become busy, and when it is free
    /// again.
    ///
    /// # Errors
    ///
    /// Fails if no thread can be created.
    pub fn new(file: impl Into<OwnedFd>, room: Arc<Room>) -> io::Result<Output> {
        let state = State {
            buffer: VecDeque::with_capacity(LIMIT + RESERVE),
            progress: Instant::now(),
            busy: false,
            started: false,
            lost: 0,
            failed: false,
            closed: false,
            stall: STALL,
        };
        let shared =
            Shared { state: Mutex::new(state), filled: Condvar::default(), taken: Condvar::default(), room };
        let shared = Arc::new(shared);
        let (drained, file) = (shared.clone(), file.into());
        sandbox::spawn(&SERIAL, "serial", move || drained.drain(&file))?;
        Ok(Output(Arc::new(Inlet(shared))))
    }

    /// Creates output to this process's standard output.
    ///
    /// # Errors
    ///
    /// Fails if standard output is closed.
    pub fn stdout(room: Arc<Room>) -> io::Result<Output> {
        Output::new(io::stdout().as_fd().try_clone_to_owned()?, room)
    }

    /// Creates output to the file at `path`, which is created or emptied. It may also be a FIFO or a
    /// terminal.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be opened for writing.
    pub fn file(path: &Path, room: Arc<Room>) -> io::Result<Output> {
        Output::new(open(path)?, room)
    }

    /// Returns whether one more byte makes the transmitter busy. [`Room::event`] is written when
    /// [`Output::busy_until`] should be called again.
    pub fn fills(&self) -> bool {
        let mut state = self.shared().state();
        let fills = state.buffer.len() + 1 >= LIMIT && !state.is_stalled();
        if fills && !state.busy {
            state.busy = true;
            self.shared().room.tell();
        }
        fills
    }

    /// Returns when to ask again if no byte is taken before. Returns `None` if the transmitter is free: there
    /// is room, or nobody has read for a second.
    pub fn busy_until(&self) -> Option<Instant> {
        let mut state = self.shared().state();
        state.busy = state.buffer.len() >= LIMIT && !state.is_stalled();
        state.busy.then(|| state.progress + state.stall)
    }

    /// Waits until the buffer is empty, as long as its reader makes progress. Logs the number of lost bytes.
    pub fn finish(&self) {
        let end = Instant::now() + FINISH;
        let mut state = self.shared().state();
        while !state.buffer.is_empty() {
            let left = end.min(state.progress + state.stall).saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared().taken.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let lost = state.lost + state.buffer.len() as u64;
        drop(state);
        if lost > 0 {
            warn!(event = "serial_output_lost", bytes = lost; "{lost} bytes of serial output were lost");
        }
    }

    /// Returns whether the guest has written anything.
    pub fn has_started(&self) -> bool {
        self.shared().state().started
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    /// Sets the time after which the reader counts as absent.
    #[cfg(test)]
    pub(super) fn set_stall(&self, stall: Duration) {
        self.shared().state().stall = stall;
    }

    #[cfg(test)]
    pub(super) fn lost(&self) -> u64 {
        self.shared().state().lost
    }
}

/// Opens the file of the output, without waiting for a FIFO's reader or a modem's carrier.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Opened for reading, too: then a FIFO needs no reader yet, and its readers may change.
    let fifo = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    options.read(fifo).write(true).create(true).truncate(true);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

impl Write for Output {
    /// Never waits and never fails. Bytes without room are lost and counted.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.shared().state();
        let before = state.lost;
        state.started = true;
        for &byte in bytes {
            state.push(byte);
        }
        let first = before == 0 && state.lost > 0;
        drop(state);
        self.shared().filled.notify_one();
        if first {
            warn!(
                event = "serial_output_unread";
                "the serial port's output is not read, or too slowly: bytes are lost until it is"
            );
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.filled.notify_one();
    }
}

impl State {
    fn is_stalled(&self) -> bool {
        self.progress.elapsed() >= self.stall
    }

    fn push(&mut self, byte: u8) {
        let len = self.buffer.len();
        if len == 0 {
            self.progress = Instant::now();
        }
        if len < LIMIT || (len < LIMIT + RESERVE && !self.is_stalled()) {
            self.buffer.push_back(byte);
        } else {
            self.lost += 1;
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread: writes until the last [`Output`] is dropped.
    fn drain(&self, file: &OwnedFd) {
        let mut chunk = Vec::with_capacity(CHUNK);
        while self.next(&mut chunk) {
            let result = write(file, &chunk);
            let mut state = self.state();
            // After an error, later bytes are still written: a disk may have space again.
            let done = *result.as_ref().unwrap_or(&chunk.len());
            state.buffer.drain(..done);
            state.progress = Instant::now();
            if state.busy && state.buffer.len() <= LOW {
                state.busy = false;
                self.room.tell();
            }
            let mut first = false;
            if result.is_err() {
                state.lost += done as u64;
                first = !std::mem::replace(&mut state.failed, true);
            }
            drop(state);
            self.taken.notify_all();
            if let (true, Err(error)) = (first, result) {
                warn!(event = "serial_output_failed"; "serial output is lost: {error}");
            }
        }
    }

    /// Waits for output, and copies its start to `chunk`. Returns `false` if there will be none.
    fn next(&self, chunk: &mut Vec<u8>) -> bool {
        let idle = |state: &mut State| state.buffer.is_empty() && !state.closed;
        let state = self.filled.wait_while(self.state(), idle).unwrap_or_else(PoisonError::into_inner);
        chunk.clear();
        chunk.extend(state.buffer.iter().take(CHUNK));
        !chunk.is_empty()
    }
}

/// Writes, and waits for the reader as long as it takes.
fn write(file: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => return Ok(written),
            Err(Errno::INTR) => {}
            // It was opened non-blocking, or another process made this terminal or pipe so.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(file, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
}
