//! Where a capture is written: a file, or a pipe whose reader may be slow, stop, or go.
//!
//! Nobody but this client waits for it, and not so that it could not be told to end: a pipe is written to
//! when it has room, as much as it then surely takes.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use thiserror::Error;

use super::pcapng::whole;

/// What a pipe with any room takes at once (`PIPE_BUF`).
const AT_ONCE: usize = 4096;
/// How long a reader may take for its next bytes when this client has been told to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why nothing more can be written.
#[derive(Debug, Error)]
pub(crate) enum OutputError {
    #[error(
        "a capture is no text for a terminal: write it to a file by --out FILE, or pipe it to a reader, as \
         'volt-netd ctl capture | tcpdump -r -' does"
    )]
    Terminal,
    #[error("cannot write {0}: does its directory exist, and may this user write there?")]
    Open(String, #[source] io::Error),
    #[error("writing {name} failed after {frames} frames, which are whole; the daemon goes on")]
    Write { name: String, frames: u64, source: io::Error },
    #[error("who reads standard output has stopped, and what it has not taken is lost")]
    Stuck,
}

/// How far writing came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    All,
    /// Told to end before.
    Interrupted,
    /// The reader has gone.
    Closed,
}

/// A file or a pipe, with blocks that are to be written to it.
#[derive(Debug)]
pub(super) struct Output {
    file: File,
    /// `None` for standard output.
    path: Option<PathBuf>,
    regular: bool,
    /// Blocks, as from the last whole one.
    pub(super) blocks: Vec<u8>,
    /// Of these, bytes that are written.
    done: usize,
    /// Bytes, and frames, of all blocks before.
    bytes: u64,
    frames: u64,
}

/// A file that can be opened later, or standard output. Nothing is touched yet.
pub(super) fn target(out: Option<&Path>) -> Result<Option<PathBuf>, OutputError> {
    match out.filter(|path| *path != Path::new("-")) {
        None if io::stdout().is_terminal() => Err(OutputError::Terminal),
        path => Ok(path.map(Path::to_owned)),
    }
}

impl Output {
    /// Opens what [`target`] found.
    pub(super) fn open(path: Option<PathBuf>) -> Result<Output, OutputError> {
        let name = name(path.as_deref());
        let file = match &path {
            // What the guest sends and gets is for nobody else.
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

    /// Writes the blocks. With `end`, not beyond that becoming readable; without, no longer than the reader
    /// reads.
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

    /// `None` where there is no room and none is waited for any more.
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

    /// Counts what is whole of the first `len` bytes.
    fn settle(&mut self, len: usize) {
        let (bytes, frames) = whole(&self.blocks, len);
        self.bytes += bytes as u64;
        self.frames += frames;
    }

    /// Leaves whole blocks only.
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
