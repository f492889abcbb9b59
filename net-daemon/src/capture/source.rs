//! A daemon that captures frames for this client.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;
use volt_net::capture::CaptureOptions;
use volt_net::capture::ring::{Captured, Garbled, RingReader, readers};
use volt_net::shared_words::WordsError;

use crate::control::{Capturing, ControlError, Reply, Request, ask};

/// Why a daemon does not capture.
#[derive(Debug, Error)]
pub(crate) enum SourceError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("cannot use the daemon's memory of captured frames")]
    Memory(#[from] WordsError),
}

/// A daemon's capture, which ends when this is dropped.
#[derive(Debug)]
pub(super) struct Source {
    /// Closed when the daemon ends.
    pub(super) connection: UnixStream,
    pub(super) what: Capturing,
    /// One ring for each pair.
    rings: Vec<RingReader>,
}

impl Source {
    /// Starts a capture of the daemon with control socket `path`.
    pub(super) fn ask(path: &Path, options: CaptureOptions, limit: Duration) -> Result<Source, SourceError> {
        match ask(path, &Request::Capture(options), limit)? {
            (connection, Reply::Capture(what), mut fds) if !what.pairs.is_empty() => {
                let memory = fds.pop().ok_or(ControlError::Answer)?;
                let rings = readers(memory, what.pairs.len())?;
                Ok(Source { connection, what, rings })
            }
            (_, Reply::Refused(why), _) => Err(ControlError::Refused(why).into()),
            _ => Err(ControlError::Answer.into()),
        }
    }

    /// Returns the ring and the time of the earliest frame of all rings. With `last`, includes the frames
    /// that the daemon still holds.
    pub(super) fn next(&mut self, last: bool) -> Option<(usize, u64)> {
        let times = self.rings.iter_mut().enumerate();
        times.filter_map(|(ring, reader)| Some((ring, reader.next_time(last)?))).min_by_key(|(_, time)| *time)
    }

    /// Takes the next frame of a ring.
    pub(super) fn take(&mut self, ring: usize) -> Result<Captured, Garbled> {
        self.rings[ring].take()
    }

    /// Returns the number of frames that the ring has lost.
    pub(super) fn lost(&self, ring: usize) -> u64 {
        self.rings[ring].lost()
    }
}
