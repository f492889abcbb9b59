//! Finding the back-end's socket, and an end to whatever blocks on it: by a limit in time, or by another
//! thread.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use log::info;
use thiserror::Error;
use volt_program::unix;

use crate::opener;
use crate::sandbox::{self, lists::BACK_END};

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// Why no back-end was found.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nobody listened for as long as was allowed.
    #[error(
        "no network back-end at {} after {} s: start one, like 'volt-netd --tap tap0 --socket {}', or allow \
         more time with --net-timeout",
        socket.display(), waited.as_secs(), socket.display()
    )]
    Absent {
        /// Path of the socket.
        socket: PathBuf,
        /// The limit that passed.
        waited: Duration,
    },
    /// Waiting would not help: no permission, a path that is too long, a file that is no socket.
    #[error("cannot connect to the network back-end at {}", socket.display())]
    Refused {
        /// Path of the socket.
        socket: PathBuf,
        /// The reason.
        #[source]
        source: unix::ConnectError,
    },
}

/// Connects to the socket at `path`, as soon as somebody listens there; `limit` bounds the wait.
///
/// # Errors
///
/// See [`ConnectError`].
pub fn connect(path: &Path, limit: Option<Duration>) -> Result<UnixStream, ConnectError> {
    let started = Instant::now();
    let mut told = false;
    loop {
        match try_connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if is_absent(&error) => {}
            Err(source) => return Err(ConnectError::Refused { socket: path.to_owned(), source }),
        }
        if let Some(limit) = limit.filter(|limit| started.elapsed() >= *limit) {
            return Err(ConnectError::Absent { socket: path.to_owned(), waited: limit });
        }
        if !told {
            info!(
                event = "waiting_for_back_end", path:% = path.display();
                "waiting for a network back-end to listen at {}", path.display()
            );
            told = true;
        }
        thread::sleep(RETRY);
    }
}

/// Whether that is how [`try_connect`] fails while no back-end is there: no socket yet, or a stale one, or
/// a listener too busy to accept.
pub(super) fn is_absent(error: &unix::ConnectError) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, NotFound, WouldBlock};
    let unix::ConnectError::System(error) = error else { return false };
    matches!(error.kind(), NotFound | ConnectionRefused | WouldBlock | Interrupted)
}

/// Connects to the socket at `path` without waiting for anything.
pub(super) fn try_connect(path: &Path) -> Result<UnixStream, unix::ConnectError> {
    let stream = opener::connect(path)?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Lets one thread end what another waits for on a connection.
#[derive(Default)]
pub(super) struct Cancellation(Mutex<State>);

#[derive(Default)]
struct State {
    /// The connection in use.
    stream: Option<UnixStream>,
    /// This connection was shut down.
    cancelled: bool,
    /// No connection is to be used.
    forbidden: bool,
}

impl Cancellation {
    /// Takes note of the connection that is used from here on; false when none is to be used now.
    ///
    /// # Errors
    ///
    /// When the process may open no more files.
    pub(super) fn attach(&self, stream: &UnixStream) -> io::Result<bool> {
        let copy = stream.try_clone()?;
        let mut state = self.state();
        if state.forbidden {
            return Ok(false);
        }
        (state.stream, state.cancelled) = (Some(copy), false);
        Ok(true)
    }

    /// Forgets the connection, which its user closes.
    pub(super) fn detach(&self) {
        self.state().stream = None;
    }

    /// Shuts the connection down, and keeps another from being used until [`Cancellation::allow`].
    pub(super) fn cancel(&self) {
        let mut state = self.state();
        state.forbidden = true;
        if let Some(stream) = &state.stream {
            // Fails only for a stream that is down already.
            let _ = stream.shutdown(Shutdown::Both);
            state.cancelled = true;
        }
    }

    /// Allows connections again.
    pub(super) fn allow(&self) {
        self.state().forbidden = false;
    }

    /// Whether it was [`Cancellation::cancel`] that ended the connection.
    pub(super) fn has_cancelled(&self) -> bool {
        self.state().cancelled
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work`, which blocks on `stream`, and shuts the stream down after `limit`, so that `work` comes to
/// an end. The flag says whether that was necessary.
///
/// A time-out of the socket itself would not do: the vhost crate repeats a call that ends with EAGAIN.
///
/// # Errors
///
/// When there can be no thread to keep the time; then `work` has not run.
pub fn within<T>(limit: Duration, stream: &UnixStream, work: impl FnOnce() -> T) -> io::Result<(T, bool)> {
    let (done, wait) = mpsc::channel::<()>();
    let late = AtomicBool::new(false);
    let is_late = &late;
    let result = thread::scope(|scope| {
        sandbox::spawn_scoped(scope, &BACK_END, "net-timer", move || {
            if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                is_late.store(true, Ordering::Release);
                // Fails only for a stream that is down already.
                let _ = stream.shutdown(Shutdown::Both);
            }
        })?;
        let result = work();
        drop(done);
        Ok::<T, io::Error>(result)
    })?;
    Ok((result, late.into_inner()))
}
