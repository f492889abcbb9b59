//! A daemon that captures frames for this client.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use thiserror::Error;
use volt_net::capture::CaptureOptions;
use volt_net::capture::ring::{Captured, Garbled, RingReader, readers};
use volt_net::shared_words::WordsError;

use crate::control::{Capturing, ControlError, Reply, Request, ask};

/// Why there are no frames.
#[derive(Debug, Error)]
pub(crate) enum SourceError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the daemon's memory of captured frames cannot be used")]
    Memory(#[from] WordsError),
}

/// A capture that runs as long as this.
#[derive(Debug)]
pub(super) struct Source {
    /// Ends with the daemon.
    pub(super) connection: UnixStream,
    pub(super) what: Capturing,
    /// One for each pair.
    rings: Vec<RingReader>,
}

impl Source {
    /// Asks the daemon that is controlled at `path`.
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

    /// The earliest frame of all rings, and the number of its ring. Where it is the `last` time that somebody
    /// asks, with those that the daemon still holds.
    pub(super) fn next(&mut self, last: bool) -> Option<(usize, u64)> {
        let times = self.rings.iter_mut().enumerate();
        times.filter_map(|(ring, reader)| Some((ring, reader.next_time(last)?))).min_by_key(|(_, time)| *time)
    }

    /// Takes that frame.
    pub(super) fn take(&mut self, ring: usize) -> Result<Captured, Garbled> {
        self.rings[ring].take()
    }

    /// Frames of ring `ring` that were lost.
    pub(super) fn lost(&self, ring: usize) -> u64 {
        self.rings[ring].lost()
    }
}
