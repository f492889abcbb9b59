//! What may take its time: carried out on a thread of its own, and waited for with an eye on the clock, the
//! client and the server's end.
//!
//! The wait ends with whatever comes first; the work is never interrupted. Whoever gave it away and has to
//! answer before it is done takes care that it is undone later, or told.

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

/// What a service has for one request: time, until the client or the server ends.
#[derive(Debug)]
pub struct Turn<'c> {
    pub(super) shared: &'c Arc<Shared>,
    pub(super) socket: BorrowedFd<'c>,
    pub(super) settings: &'c Settings,
    /// Of the connection.
    pub(super) deadline: Deadline,
}

/// Whether a server ends, for work that goes on without it.
#[derive(Clone, Debug)]
pub struct Ending(Arc<Shared>);

impl Ending {
    /// True from the end on.
    pub fn has_begun(&self) -> bool {
        self.0.ends()
    }
}

/// What a wait for work came to.
#[derive(Debug)]
pub enum Outcome<T> {
    /// It is done.
    Done(T),
    /// It takes longer than [`Settings::work`].
    Late(Late<T>),
    /// The server ends, and whatever is being done goes on. It was not begun if the server had ended before.
    Ends,
    /// The client has closed its connection. What it asked for is done all the same.
    Gone,
    /// It was not begun, or it panicked.
    Failed(WorkError),
}

/// Why work was not done.
#[derive(Debug, Error)]
pub enum WorkError {
    /// So much goes on already, by requests that were answered before it was done.
    #[error("{0} requests are still being carried out")]
    TooMany(usize),
    /// No thread, or nothing to wait for it by.
    #[error("there is no thread for it")]
    Thread(#[from] io::Error),
    /// A defect of the service.
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
    /// Waits for it once more, for `limit` at most; `None` when it is still not done, or the server ends.
    pub fn wait(self, limit: Duration) -> Option<T> {
        match self.work.wait(&self.shared, None, Deadline::after(limit)) {
            Outcome::Done(done) => Some(done),
            _ => None,
        }
    }
}

impl Turn<'_> {
    /// Whether the server ends, for work to know it when this turn is over.
    pub fn ending(&self) -> Ending {
        Ending(self.shared.clone())
    }

    /// Runs `work` on a thread of its own and waits for it: until it is done, [`Settings::work`] is over, the
    /// client is gone, or the server ends.
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

/// Work on its thread.
#[derive(Debug)]
struct Work<T> {
    /// Can be read when the thread has nothing more to do.
    over: Arc<OwnedFd>,
    result: Receiver<T>,
}

/// Says so when it is dropped, also by a panic.
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
            // Dropped in the other order: when it is over, whoever waits finds a result or that there is
            // none.
            let _say = say;
            let _counted = counted;
            let send = send;
            // Perhaps nobody waits for it any more.
            let _ = send.send(work());
        };
        thread::Builder::new().name(name).spawn(body)?;
        Ok(Work { over, result })
    }
}

impl<T> Work<T> {
    /// Waits for it until `deadline`, and as long as `client` is there.
    fn wait(self, shared: &Arc<Shared>, client: Option<BorrowedFd<'_>>, deadline: Deadline) -> Outcome<T> {
        let mut waited_for = vec![
            PollFd::from_borrowed_fd(self.over.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shared.end(), PollFlags::IN),
        ];
        // Without any events it tells of the other side's end alone.
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
