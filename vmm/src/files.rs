//! Opening the user's files. The kind of a file is checked before an operation that could wait for it.

use std::fs::{self, File, FileType, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{OFlags, fcntl_setfl};
use thiserror::Error;

/// Why a file cannot be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file has another kind: a FIFO, whose opening would wait for its other end, or a device that acts
    /// when it is opened.
    #[error("it has the wrong kind")]
    Kind,
    /// The file is missing, there is no permission, or the like.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Opens `path` for reading, and with `write` for writing, too, if its kind is `wanted`.
///
/// # Errors
///
/// See [`OpenError`].
pub fn open(path: &Path, write: bool, wanted: impl Fn(FileType) -> bool) -> Result<File, OpenError> {
    let check = |metadata: fs::Metadata| wanted(metadata.file_type()).then_some(()).ok_or(OpenError::Kind);
    check(fs::metadata(path)?)?;
    // The file may have been replaced since.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = OpenOptions::new().read(true).write(write).custom_flags(flags).open(path)?;
    check(file.metadata()?)?;
    fcntl_setfl(&file, OFlags::empty()).map_err(io::Error::from)?;
    Ok(file)
}

/// Opens the regular file at `path` for reading.
///
/// # Errors
///
/// See [`OpenError`].
pub fn open_regular(path: &Path) -> Result<File, OpenError> {
    open(path, false, |kind| kind.is_file())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileTypeExt;

    use rustix::fs::{CWD, FileType as Node, Mode, fcntl_getfl, mknodat};

    use super::*;

    #[test]
    fn what_would_wait_or_act_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        mknodat(CWD, &fifo, Node::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
        for path in [&fifo, &dir.path().join("socket"), dir.path(), Path::new("/dev/zero")] {
            for write in [false, true] {
                let error = open(path, write, |kind| kind.is_file() || kind.is_block_device()).unwrap_err();
                assert!(matches!(error, OpenError::Kind), "{}: {error}", path.display());
            }
        }
        assert!(matches!(open_regular(&dir.path().join("absent")), Err(OpenError::System(_))));
        // Replaced between the check and the opening: nothing waits, either.
        assert!(matches!(
            open(&fifo, false, {
                let looks = std::cell::Cell::new(0);
                move |_| looks.replace(looks.get() + 1) == 0
            }),
            Err(OpenError::Kind)
        ));
    }

    #[test]
    fn a_file_is_opened_as_usual() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = open_regular(file.path()).unwrap();
        assert!(!fcntl_getfl(&open).unwrap().contains(OFlags::NONBLOCK));
    }
}
