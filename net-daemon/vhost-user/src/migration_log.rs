//! The front-end's log of written pages (SET_LOG_BASE): checks and mapping.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use log::warn;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;
use volt_net::state::{Exporter, FdId, Importer, Numbered, StateError};
use volt_virtio::dirty_log::DirtyLog;

use crate::mapping::{MapFault, map, short_file};
use crate::message::LogBase;

/// The reason why a log is refused.
#[derive(Debug, Error)]
pub enum LogError {
    /// It is empty or too large to map.
    #[error("a log of {size:#x} bytes at file offset {offset:#x} is empty or too large")]
    Size {
        /// Bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
    },
    /// It ends beyond its file.
    #[error("a log of {size:#x} bytes at offset {offset:#x} of a file that has only {file:#x}")]
    FileTooShort {
        /// Bytes.
        size: u64,
        /// Offset in its file.
        offset: u64,
        /// Bytes of the file.
        file: u64,
    },
    /// It has no bits for some of the memory.
    #[error(
        "the log of {size:#x} bytes is too small: it has no bit for {what} ({len:#x} bytes at guest address \
         {guest:#x}); the front-end must send a larger one first"
    )]
    TooSmall {
        /// Bytes of the log.
        size: u64,
        /// Memory region or used ring.
        what: &'static str,
        /// Guest address.
        guest: u64,
        /// Bytes there.
        len: u64,
    },
    /// The system cannot map it.
    #[error("the log cannot be mapped")]
    Map(#[source] MmapRegionError),
    /// Its descriptor cannot be examined.
    #[error("the log's file cannot be examined")]
    File(#[from] io::Error),
}

/// A log that the front-end shares.
#[derive(Debug)]
pub struct MigrationLog {
    base: LogBase,
    file: Numbered<OwnedFd>,
    /// `None`: the front-end took the file away under a previous process.
    pages: Option<Arc<DirtyLog>>,
}

/// A log in a state.
#[derive(Debug, Serialize, Deserialize)]
pub struct MigrationLogState {
    size: u64,
    offset: u64,
    fd: FdId,
}

impl MigrationLog {
    /// Checks and maps a log.
    ///
    /// # Errors
    ///
    /// See [`LogError`].
    pub fn new(base: LogBase, fd: OwnedFd) -> Result<MigrationLog, LogError> {
        let file = Numbered::fresh(fd);
        let pages = Some(check_and_map(base, &file)?);
        Ok(MigrationLog { base, file, pages })
    }

    /// Returns the pages; `None` if they cannot be marked any more.
    pub fn pages(&self) -> Option<&Arc<DirtyLog>> {
        self.pages.as_ref()
    }

    /// Checks that the log has bits for `len` bytes at guest address `guest`.
    ///
    /// # Errors
    ///
    /// Fails if it has not.
    pub fn check(&self, what: &'static str, guest: u64, len: u64) -> Result<(), LogError> {
        let covers = self.pages.as_ref().is_none_or(|pages| pages.covers(guest, len));
        covers.then_some(()).ok_or(LogError::TooSmall { size: self.base.size, what, guest, len })
    }

    /// Exports the log.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> MigrationLogState {
        let LogBase { size, offset } = self.base;
        MigrationLogState { size, offset, fd: self.file.export(out) }
    }

    /// Maps the log of a state again. Accepts a file that its owner has truncated or sealed meanwhile, which
    /// may have ended the previous process: its pages cannot be marked.
    ///
    /// # Errors
    ///
    /// Fails if its descriptor did not come.
    pub fn import(state: &MigrationLogState, from: &mut Importer) -> Result<MigrationLog, StateError> {
        let MigrationLogState { size, offset, fd } = *state;
        let base = LogBase { size, offset };
        let file = Numbered::known(fd, from.take(fd)?);
        let pages = check_and_map(base, &file).inspect_err(|error| {
            warn!(
                event = "log_unusable";
                "the front-end took its log of written pages away, and its guest is not served until it \
                 sends another or ends the migration: {}", volt_virtio::error_chain(error)
            );
        });
        Ok(MigrationLog { base, file, pages: pages.ok() })
    }
}

fn check_and_map(base: LogBase, file: &Numbered<OwnedFd>) -> Result<Arc<DirtyLog>, LogError> {
    let LogBase { size, offset } = base;
    match short_file(&clone(file)?, offset, size)? {
        Some(length) => Err(LogError::FileTooShort { size, offset, file: length }),
        None => map_pages(base, clone(file)?),
    }
}

fn clone(file: &Numbered<OwnedFd>) -> io::Result<File> {
    Ok(file.as_fd().try_clone_to_owned()?.into())
}

fn map_pages(base: LogBase, file: File) -> Result<Arc<DirtyLog>, LogError> {
    let LogBase { size, offset } = base;
    let piece = map(file, offset, size).map_err(|fault| match fault {
        MapFault::Size => LogError::Size { size, offset },
        MapFault::File(error) => LogError::File(error),
        MapFault::Map(error) => LogError::Map(error),
    })?;
    let pages = DirtyLog::new(piece.mapping, piece.offset, size);
    Ok(Arc::new(pages.ok_or(LogError::Size { size, offset })?))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

    use super::*;

    fn memfd(size: u64) -> OwnedFd {
        let fd = memfd_create("log", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, size).unwrap();
        fd
    }

    #[test]
    fn a_log_may_begin_anywhere_in_its_file() {
        let fd = memfd(0x3000);
        let read = fd.try_clone().unwrap();
        let log = MigrationLog::new(LogBase { size: 16, offset: 0x1ffd }, fd).unwrap();
        log.pages().unwrap().mark(0x4_1000, 1);
        let mut bytes = [0; 16];
        rustix::io::pread(&read, &mut bytes, 0x1ffd).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn sizes_are_checked_before_anything_is_mapped() {
        let error =
            |size, offset| MigrationLog::new(LogBase { size, offset }, memfd(0x2000)).expect_err("refused");
        assert!(matches!(error(0x2001, 0), LogError::FileTooShort { file: 0x2000, .. }));
        assert!(matches!(error(1, 0x2000), LogError::FileTooShort { .. }));
        assert!(matches!(error(u64::MAX, 2), LogError::FileTooShort { .. }));
        assert!(matches!(error(0, 0), LogError::Size { .. }));
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let endless = MigrationLog::new(LogBase { size: u64::MAX, offset: 0 }, null.into());
        assert!(matches!(endless, Err(LogError::Size { .. })));
    }

    #[test]
    fn memory_without_a_bit_is_named() {
        let log = MigrationLog::new(LogBase { size: 8, offset: 0 }, memfd(0x1000)).unwrap();
        assert!(log.check("region", 0, 64 * 4096).is_ok());
        let error = log.check("region", 0x3_f000, 0x1001).expect_err("one page too many").to_string();
        assert!(
            error.contains("0x8 bytes is too small") && error.contains("guest address 0x3f000"),
            "{error}"
        );
    }
}
