//! Slow work: it runs on a thread of its own. The server waits for it, and watches the time, the client, and
//! the server's end meanwhile.
//!
//! The wait ends with the first of these events. The work is never interrupted. A service that must respond
//! before its work is done has to undo the work later, or to report it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use thiserror::Error;

use super::Settings;
use super::shared::{Count, Counted, Shared};
use crate::socket::Deadline;

/// The context of one request: its time limits, the client and the server.
#[derive(Debug)]
pub struct Turn<'c> {
    pub(super) shared: &'c Arc<Shared>,
    pub(super) socket: BorrowedFd<'c>,
    pub(super) settings: &'c Settings,
    /// The deadline of the connection.
    pub(super) deadline: Deadline,
}

/// Whether a server ends, for work that nobody waits for any more.
#[derive(Clone, Debug)]
pub struct Ending(Arc<Shared>);

impl Ending {
    /// Whether the end has begun.
    pub fn has_begun(&self) -> bool {
        self.0.ends()
    }
}

/// The result of a wait for work.
#[derive(Debug)]
pub enum Outcome<T> {
    /// The work is done.
    Done(T),
    /// It takes longer than [`Settings::work`].
    Late(Late<T>),
    /// The server ends, and the work continues. It was not started if the server had ended before.
    Ends,
    /// The client has closed its connection. The work is completed nevertheless.
    Gone,
    /// The work was not started, or it panicked.
    Failed(WorkError),
}

/// The reason why work was not done.
#[derive(Debug, Error)]
pub enum WorkError {
    /// Too much work is running already, for requests that were answered before it was done.
    #[error("{0} requests are still being carried out")]
    TooMany(usize),
    /// No thread or no eventfd can be created for it.
    #[error("cannot start a thread for it")]
    Thread(#[from] io::Error),
    /// The work panicked, which is a bug of the service.
    #[error("it panicked")]
    Panicked,
}

/// Work that was not done in time.
#[derive(Debug)]
pub struct Late<T> {
    work: Work<T>,
    shared: Arc<Shared>,
}

impl<T> Late<T> {
    /// Waits for the work once more, for up to `limit`. Returns `None` if it is still not done, or if the
    /// server ends.
    pub fn wait(self, limit: Duration) -> Option<T> {
        match self.work.wait(&self.shared, None, Deadline::after(limit)) {
            Outcome::Done(done) => Some(done),
            _ => None,
        }
    }
}

impl Turn<'_> {
    /// Returns a handle by which work can see that the server ends, even after this turn.
    pub fn ending(&self) -> Ending {
        Ending(self.shared.clone())
    }

    /// Runs `work` on a thread of its own. Waits until it is done, [`Settings::work`] is over, the client is
    /// gone, or the server ends.
    pub fn carry_out<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Outcome<T> {
        if self.shared.ends() {
            return Outcome::Ends;
        }
        let most = self.settings.work_at_once;
        let Some(counted) = self.shared.try_count(Count::Work, most) else {
            return Outcome::Failed(WorkError::TooMany(most));
        };
        let deadline = Deadline::after(self.settings.work).or(self.deadline);
        match Work::start(format!("{}-work", self.settings.name), counted, work) {
            Ok(work) => work.wait(self.shared, Some(self.socket), deadline),
            Err(error) => Outcome::Failed(error.into()),
        }
    }
}

/// Work with its thread.
#[derive(Debug)]
struct Work<T> {
    /// Becomes readable when the thread has nothing more to do.
    over: Arc<OwnedFd>,
    result: Receiver<T>,
}

/// Notifies when it is dropped, even by a panic.
struct SayOver(Arc<OwnedFd>);

impl Drop for SayOver {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

impl<T: Send + 'static> Work<T> {
    fn start(
        name: String,
        counted: Counted,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Work<T>> {
        let over = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (send, result) = sync_channel(1);
        let say = SayOver(over.clone());
        let body = move || {
            // Dropped in reverse order: at the notification, the result is available, or is known to be
            // missing.
            let _say = say;
            let _counted = counted;
            let send = send;
            // Possibly nobody waits for it any more.
            let _ = send.send(work());
        };
        thread::Builder::new().name(name).spawn(body)?;
        Ok(Work { over, result })
    }
}

impl<T> Work<T> {
    /// Waits for the work until `deadline`, and while `client` is connected.
    fn wait(self, shared: &Arc<Shared>, client: Option<BorrowedFd<'_>>, deadline: Deadline) -> Outcome<T> {
        let mut waited_for = vec![
            PollFd::from_borrowed_fd(self.over.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shared.end(), PollFlags::IN),
        ];
        // Without events, a poll reports only the end of the other side.
        waited_for.extend(client.map(|client| PollFd::from_borrowed_fd(client, PollFlags::empty())));
        let woken = loop {
            match poll(&mut waited_for, Some(&deadline.left())) {
                Err(Errno::INTR) => {}
                Err(error) => return Outcome::Failed(WorkError::Thread(error.into())),
                Ok(count) => break count > 0,
            }
        };
        let happened: Vec<_> = waited_for.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(waited_for);
        match self.result.try_recv() {
            Ok(done) => Outcome::Done(done),
            Err(TryRecvError::Disconnected) => Outcome::Failed(WorkError::Panicked),
            Err(TryRecvError::Empty) if !woken => Outcome::Late(Late { work: self, shared: shared.clone() }),
            Err(TryRecvError::Empty) if happened[1] => Outcome::Ends,
            Err(TryRecvError::Empty) => Outcome::Gone,
        }
    }
}
