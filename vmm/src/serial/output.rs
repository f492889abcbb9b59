//! Where the guest's output goes: a bounded buffer that vCPUs fill, and a thread that empties it.
//!
//! The thread is the only one that ever waits for a reader: a terminal that is held, a pipe whose other end
//! sleeps, a slow disk. The main thread could wait with `poll` for most of these, but not for a file's disk,
//! nor for a pipe or terminal that somebody else fills between `poll` and `write`; and what it inherited is
//! not its own to make non-blocking. A reader that never comes costs this thread alone, which the process's
//! end does not wait for.

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

/// From here on the transmitter is busy.
pub(super) const LIMIT: usize = 32 << 10;
/// What a driver writes all the same has this much more room: a burst of the size of its FIFO, and what
/// Linux's console prints after 10 ms of waiting for each byte.
pub(super) const RESERVE: usize = 4 << 10;
/// The transmitter's interrupt comes when no more than this is left.
const LOW: usize = LIMIT / 2;
/// Bytes in one write: little enough that a line of 9600 baud is seen to move within [`STALL`].
pub(super) const CHUNK: usize = 512;
/// After that long without taking a byte, a reader is away: the guest goes on without it.
pub(super) const STALL: Duration = Duration::from_secs(1);
/// The longest that the machine's end waits for a reader that moves.
const FINISH: Duration = Duration::from_secs(5);

/// The guest's output on its way out. Clones are the same.
#[derive(Clone)]
pub struct Output(Arc<Inlet>);

/// The vCPUs' end of the buffer; the thread ends when it is dropped.
struct Inlet(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// The buffer has something, or nobody writes to it any more.
    filled: Condvar,
    /// Some of the buffer is out.
    taken: Condvar,
    room: Arc<Room>,
}

struct State {
    buffer: VecDeque<u8>,
    /// When the reader last took something, or had taken all there was.
    progress: Instant,
    /// The UART shows a busy transmitter.
    busy: bool,
    started: bool,
    lost: u64,
    failed: bool,
    closed: bool,
}

impl Output {
    /// Output to `file`; `room` is told when the transmitter has become busy, and when it is free again.
    ///
    /// # Errors
    ///
    /// When there can be no more threads.
    pub fn new(file: impl Into<OwnedFd>, room: Arc<Room>) -> io::Result<Output> {
        let state = State {
            buffer: VecDeque::with_capacity(LIMIT + RESERVE),
            progress: Instant::now(),
            busy: false,
            started: false,
            lost: 0,
            failed: false,
            closed: false,
        };
        let shared =
            Shared { state: Mutex::new(state), filled: Condvar::default(), taken: Condvar::default(), room };
        let shared = Arc::new(shared);
        let (drained, file) = (shared.clone(), file.into());
        sandbox::spawn(&SERIAL, "serial", move || drained.drain(&file))?;
        Ok(Output(Arc::new(Inlet(shared))))
    }

    /// Output to this process's standard output.
    ///
    /// # Errors
    ///
    /// When standard output is closed.
    pub fn stdout(room: Arc<Room>) -> io::Result<Output> {
        Output::new(io::stdout().as_fd().try_clone_to_owned()?, room)
    }

    /// Output to the file at `path`, which is created or emptied; it may also be a FIFO or a terminal.
    ///
    /// # Errors
    ///
    /// When it cannot be opened for writing.
    pub fn file(path: &Path, room: Arc<Room>) -> io::Result<Output> {
        Output::new(open(path)?, room)
    }

    /// Whether one more byte makes the transmitter busy. [`Room::event`] is written when it is worth asking
    /// again by [`Output::busy_until`].
    pub fn fills(&self) -> bool {
        let mut state = self.shared().state();
        let fills = state.buffer.len() + 1 >= LIMIT && !state.is_stalled();
        if fills && !state.busy {
            state.busy = true;
            self.shared().room.tell();
        }
        fills
    }

    /// When to ask again, if nobody takes anything until then; `None` when the transmitter is free: there is
    /// room, or nobody has read for a second.
    pub fn busy_until(&self) -> Option<Instant> {
        let mut state = self.shared().state();
        state.busy = state.buffer.len() >= LIMIT && !state.is_stalled();
        state.busy.then(|| state.progress + STALL)
    }

    /// Waits until all is out, as long as somebody reads, and tells what was lost.
    pub fn finish(&self) {
        let end = Instant::now() + FINISH;
        let mut state = self.shared().state();
        while !state.buffer.is_empty() {
            let left = end.min(state.progress + STALL).saturating_duration_since(Instant::now());
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

    /// Whether the guest has written anything.
    pub fn has_started(&self) -> bool {
        self.shared().state().started
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    #[cfg(test)]
    pub(super) fn lost(&self) -> u64 {
        self.shared().state().lost
    }
}

/// Opens what output shall go to, without waiting for a FIFO's reader or a modem's carrier.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // Open for reading too, a FIFO needs no reader yet, and its readers may come and go.
    let fifo = fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    options.read(fifo).write(true).create(true).truncate(true);
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)
}

impl Write for Output {
    /// Never waits and never fails: what has no room is lost and counted.
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
                "nobody reads the serial port's output, or not fast enough: bytes are lost until somebody \
                 does"
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
        self.progress.elapsed() >= STALL
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
            // What an error loses is no reason to lose what follows: a disk may have room again.
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

    /// Waits for output, and copies its beginning to `chunk`; `false` when there will be none.
    fn next(&self, chunk: &mut Vec<u8>) -> bool {
        let idle = |state: &mut State| state.buffer.is_empty() && !state.closed;
        let state = self.filled.wait_while(self.state(), idle).unwrap_or_else(PoisonError::into_inner);
        chunk.clear();
        chunk.extend(state.buffer.iter().take(CHUNK));
        !chunk.is_empty()
    }
}

/// Waits for the reader as long as it takes.
fn write(file: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match rustix::io::write(file, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => return Ok(written),
            Err(Errno::INTR) => {}
            // Opened so, or whoever shares this terminal or pipe made it non-blocking.
            Err(Errno::AGAIN) => {
                let _ = poll(&mut [PollFd::new(file, PollFlags::OUT)], None);
            }
            Err(error) => return Err(error.into()),
        }
    }
}
