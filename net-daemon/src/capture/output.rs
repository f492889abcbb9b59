//! The output of a capture: a file, or a pipe whose reader may be slow, stop or exit.
//!
//! Only this client waits for the output, and it can always be told to end: it writes to a pipe only when
//! that has room, and only as many bytes as that surely accepts.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use super::pcapng::whole;

/// Number of bytes that a writable pipe accepts without blocking (`PIPE_BUF`).
const AT_ONCE: usize = 4096;
/// Time for a reader to take its next bytes after this client was told to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why a capture cannot be written.
#[derive(Debug, Error)]
pub(crate) enum OutputError {
    #[error(
        "a capture cannot be written to a terminal: use --out FILE, or pipe it to a reader, as in \
         'volt-netd ctl capture | tcpdump -r -'"
    )]
    Terminal,
    #[error("cannot write {0}: its directory must exist, and this user needs write permission")]
    Open(String, #[source] io::Error),
    #[error("writing {name} failed after {frames} complete frames; the daemon continues")]
    Write { name: String, frames: u64, source: io::Error },
    #[error("the reader of standard output has stopped reading; the rest of the capture is lost")]
    Stuck,
}

/// The result of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    All,
    /// The client was told to end first.
    Interrupted,
    /// The reader is gone.
    Closed,
}

/// A file or a pipe, with pending blocks.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    /// `None` for standard output.
    path: Option<PathBuf>,
    regular: bool,
    /// Pending blocks.
    pub(super) blocks: Vec<u8>,
    /// Number of bytes of `blocks` that are written.
    done: usize,
    /// Numbers of bytes and frames in all earlier blocks.
    bytes: u64,
    frames: u64,
}

/// Checks the output: a file to be opened later, or standard output (`None`). Opens nothing yet.
pub(super) fn target(out: Option<&Path>) -> Result<Option<PathBuf>, OutputError> {
    match out.filter(|path| *path != Path::new("-")) {
        None if io::stdout().is_terminal() => Err(OutputError::Terminal),
        path => Ok(path.map(Path::to_owned)),
    }
}

impl Output {
    /// Opens the result of [`target`].
    pub(super) fn open(path: Option<PathBuf>) -> Result<Output, OutputError> {
        let name = name(path.as_deref());
        let file = match &path {
            // Other users must not read the guest's frames.
            Some(path) => File::options().write(true).create(true).truncate(true).mode(0o600).open(path),
            None => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        };
        let file = file.map_err(|error| OutputError::Open(name, error))?;
        let regular = file.metadata().is_ok_and(|data| data.is_file());
        Ok(Output { file, path, regular, blocks: Vec::new(), done: 0, bytes: 0, frames: 0 })
    }

    pub(super) fn name(&self) -> String {
        name(self.path.as_deref())
    }

    /// Writes the blocks. With `end`, stops when that becomes readable; without, fails if the reader stops
    /// reading.
    pub(super) fn flush(&mut self, end: Option<BorrowedFd<'_>>) -> Result<Written, OutputError> {
        while self.done < self.blocks.len() {
            let written = if self.regular { self.write(usize::MAX) } else { self.write_with_room(end) };
            match written {
                Ok(Some(bytes)) => self.done += bytes,
                Ok(None) if end.is_some() => return Ok(Written::Interrupted),
                Ok(None) => return Err(OutputError::Stuck),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Written::Closed),
                Err(error) => return Err(self.failed(error)),
            }
        }
        self.settle(self.done);
        self.blocks.clear();
        self.done = 0;
        Ok(Written::All)
    }

    fn write(&mut self, most: usize) -> io::Result<Option<usize>> {
        let rest = &self.blocks[self.done..];
        self.file.write(&rest[..rest.len().min(most)]).map(Some)
    }

    /// Writes some bytes when there is room. Returns `None` if there is none and waiting has ended.
    fn write_with_room(&mut self, end: Option<BorrowedFd<'_>>) -> io::Result<Option<usize>> {
        let limit = Timespec::try_from(PATIENCE).ok().filter(|_| end.is_none());
        let mut fds = vec![PollFd::new(&self.file, PollFlags::OUT)];
        fds.extend(end.as_ref().map(|end| PollFd::new(end, PollFlags::IN)));
        poll(&mut fds, limit.as_ref())?;
        if fds[0].revents().is_empty() {
            return Ok(None);
        }
        self.write(AT_ONCE)
    }

    /// Counts the complete blocks in the first `len` bytes.
    fn settle(&mut self, len: usize) {
        let (bytes, frames) = whole(&self.blocks, len);
        self.bytes += bytes as u64;
        self.frames += frames;
    }

    /// Truncates the file after its last complete block.
    fn failed(&mut self, source: io::Error) -> OutputError {
        self.settle(self.done);
        if self.regular && self.path.is_some() {
            let _ = self.file.set_len(self.bytes);
        }
        OutputError::Write { name: self.name(), frames: self.frames, source }
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn name(path: Option<&Path>) -> String {
    path.map_or("standard output".to_owned(), |path| path.display().to_string())
}
