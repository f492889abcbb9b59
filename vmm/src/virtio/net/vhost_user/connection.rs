//! Connecting to the back-end, and interrupting calls that block on its socket: after a time limit, or by
//! another thread.

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

/// Interval of the attempts to connect.
const RETRY: Duration = Duration::from_millis(100);

/// Why no back-end was found.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Nothing listened within the limit.
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
    /// Waiting would not help: no permission, a path that is too long, or a file that is not a socket.
    #[error("cannot connect to the network back-end at {}", socket.display())]
    Refused {
        /// Path of the socket.
        socket: PathBuf,
        /// The error.
        #[source]
        source: unix::ConnectError,
    },
}

/// Connects to the socket at `path`, as soon as a back-end listens there. `limit` bounds the wait.
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

/// Returns whether [`try_connect`] fails like this while there is no back-end: no socket yet, a stale one, or
/// a listener too busy to accept.
pub(super) fn is_absent(error: &unix::ConnectError) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, NotFound, WouldBlock};
    let unix::ConnectError::System(error) = error else { return false };
    matches!(error.kind(), NotFound | ConnectionRefused | WouldBlock | Interrupted)
}

/// Connects to the socket at `path` without waiting.
pub(super) fn try_connect(path: &Path) -> Result<UnixStream, unix::ConnectError> {
    let stream = opener::connect(path)?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Lets one thread interrupt the wait of another on a connection.
#[derive(Default)]
pub(super) struct Cancellation(Mutex<State>);

#[derive(Default)]
struct State {
    /// The connection in use.
    stream: Option<UnixStream>,
    /// Whether this connection was shut down.
    cancelled: bool,
    /// Whether no connection may be used.
    forbidden: bool,
}

impl Cancellation {
    /// Registers the connection that is used from here on. Returns false if none may be used now.
    ///
    /// # Errors
    ///
    /// Fails if the process may open no more files.
    pub(super) fn attach(&self, stream: &UnixStream) -> io::Result<bool> {
        let copy = stream.try_clone()?;
        let mut state = self.state();
        if state.forbidden {
            return Ok(false);
        }
        (state.stream, state.cancelled) = (Some(copy), false);
        Ok(true)
    }

    /// Removes the connection. Its user closes it.
    pub(super) fn detach(&self) {
        self.state().stream = None;
    }

    /// Shuts the connection down, and forbids further ones until [`Cancellation::allow`].
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

    /// Returns whether [`Cancellation::cancel`] ended the connection.
    pub(super) fn has_cancelled(&self) -> bool {
        self.state().cancelled
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs `work`, which blocks on `stream`. Shuts the stream down after `limit`, so that `work` ends. The flag
/// tells whether that was necessary.
///
/// A time-out of the socket would not work: the vhost crate repeats a call that ends with EAGAIN.
///
/// # Errors
///
/// Fails if no thread for the timer can be created. Then `work` has not run.
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
