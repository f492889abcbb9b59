//! The file of a socket that the daemon created. The last process that owns it removes it.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use volt_program::opener::{Opener, WirePath};
use volt_program::unix::SocketFile;

use crate::opener::{self, Request};

/// The file of a socket. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct OwnFile {
    file: SocketFile,
    /// Whether this process removes the file.
    owned: bool,
    /// The opener, if it removes the file for this process.
    opener: Option<Arc<Opener>>,
}

/// An [`OwnFile`] in a state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FileState {
    #[serde(with = "volt_net::state::path")]
    pub(crate) path: PathBuf,
    inode: (u64, u64),
}

impl OwnFile {
    /// Owns a new socket's file.
    pub(crate) fn new(file: SocketFile) -> OwnFile {
        OwnFile { file, owned: true, opener: None }
    }

    /// Imports the file of a state. Another process may still own it.
    pub(crate) fn import(state: FileState) -> OwnFile {
        OwnFile { file: SocketFile::again(state.path, state.inode), owned: false, opener: None }
    }

    /// Exports the file. The successor removes it.
    pub(crate) fn export(&self) -> FileState {
        FileState { path: self.path().to_owned(), inode: self.file.inode() }
    }

    /// Makes this process the owner of an imported file.
    pub(crate) fn own(&mut self) {
        self.owned = true;
    }

    /// Returns its path.
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Makes `opener` remove the file, and returns the file for the opener's duties.
    pub(crate) fn removed_by(&mut self, opener: &Arc<Opener>) -> (WirePath, (u64, u64)) {
        self.opener = Some(opener.clone());
        (WirePath(self.path().to_owned()), self.file.inode())
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        match &self.opener {
            _ if !self.owned => {}
            Some(opener) => opener::ask_and_wait(opener, &Request::RemoveFiles),
            None => self.file.remove(),
        }
    }
}
