//! The server: a thread that accepts clients, and one for each of them, which reads its request, has the
//! service answer it, and closes the connection.
//!
//! [`Server::start`] begins to serve and dropping the server ends it: then no client is accepted any more,
//! requests that are still being read are refused, work that is waited for is not waited for any more
//! ([`Outcome::Ends`]), and the answers to requests that have come are written, within [`Settings::end`]. For
//! each request the server calls its [`Service`] in this order: [`accept`](Service::accept) with the head,
//! [`answer`](Service::answer) with the body; or [`refuse`](Service::refuse) when there is none.
//!
//! Every wait is a poll(2) with a deadline, and nothing of a client's, be it half a head, half a body or an
//! answer that it does not read, holds up more than its own connection. What may take its time the service
//! gives to [`Turn::carry_out`].

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use thiserror::Error;

use crate::request::{Body, Head, RequestError};
use crate::response::{Response, TEXT};

mod connection;
mod shared;
mod work;

use connection::Connections;
use shared::{Count, Shared};
pub use work::{Ending, Late, Outcome, Turn, WorkError};

/// How long the threads of clients may take to end, when nothing is waited for any more.
const THREADS_END: Duration = Duration::from_secs(1);

/// What a server is called, and how much and how long it puts up with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of its thread; others have `-client` and `-work` behind it. The system shows 15 bytes.
    pub name: &'static str,
    /// Most clients at a time. Others wait, in the listener's backlog.
    pub clients: usize,
    /// How long a head may take from the connection on.
    pub head: Duration,
    /// How long a body may take from its head on.
    pub body: Duration,
    /// How long [`Turn::carry_out`] waits.
    pub work: Duration,
    /// How long it all may take, which only a client that does not read its answer comes to.
    pub connection: Duration,
    /// How long the server's end waits for answers to be written.
    pub end: Duration,
    /// Most bytes of a body.
    pub body_max: usize,
    /// Most descriptors with a request, up to [`DESCRIPTORS_MAX`](crate::DESCRIPTORS_MAX).
    pub descriptors: usize,
    /// Most work at a time, with what is not waited for any more.
    pub work_at_once: usize,
}

/// What a server serves. Its methods are called by the clients' threads, several at a time, but
/// [`Service::report`] by the accepting one too.
pub trait Service: Send + Sync + 'static {
    /// What a head asks for.
    type Task;

    /// Called once by the thread that accepts clients, before it does. Threads of clients are made by it, and
    /// so inherit a sandbox that it enters here.
    fn begin(&self) {}

    /// Looks at a head before its body is read, and perhaps at who sends it.
    ///
    /// # Errors
    ///
    /// The answer, if the body makes no difference to it.
    fn accept(&self, head: &Head, client: BorrowedFd<'_>) -> Result<Self::Task, Response>;

    /// Answers a request. What may take its time goes through [`Turn::carry_out`]: this call itself is not
    /// interrupted, and holds up the server's end.
    fn answer(&self, task: Self::Task, body: Body, turn: &Turn<'_>) -> Response;

    /// The answer to a request that is none, or does not come. `status` is that of the error.
    fn refuse(&self, status: crate::StatusCode, error: &RequestError) -> Response {
        Response::new(status, TEXT, format!("{error}\n"))
    }

    /// Told of whatever goes wrong, for a log.
    fn report(&self, error: &ServeError) {
        let _ = error;
    }
}

/// What goes wrong while a server serves, which goes on all the same.
#[derive(Debug, Error)]
pub enum ServeError {
    /// No client can be accepted; it is tried again.
    #[error("no client can be accepted")]
    Accept(#[source] io::Error),
    /// There is no thread for a client, whose connection is closed.
    #[error("there is no thread for a client")]
    Thread(#[source] io::Error),
    /// A request is refused, or does not come.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A client does not read its answer, or is gone.
    #[error("the answer cannot be sent")]
    Answer(#[source] io::Error),
}

/// A server, until it is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// How long its end may take.
    end: Duration,
}

impl Server {
    /// Serves whoever connects to `listener`: a socket for streams, Unix or TCP, that listens.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor or no thread left.
    pub fn start(
        listener: impl Into<OwnedFd>,
        settings: Settings,
        service: impl Service,
    ) -> io::Result<Server> {
        let listener = listener.into();
        // A client that is gone again is not waited for.
        rustix::io::ioctl_fionbio(&listener, true)?;
        let shared = Arc::new(Shared::new()?);
        let (name, end) = (settings.name.to_owned(), settings.end);
        let connections = Arc::new(Connections { shared: shared.clone(), settings, service });
        let accept_all = move || {
            connections.service.begin();
            connections.accept_all(&listener);
        };
        let thread = thread::Builder::new().name(name).spawn(accept_all)?;
        Ok(Server { shared, thread: Some(thread), end })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.begin_end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.shared.wait_for_none(Count::Requests, self.end);
        self.shared.finish_end();
        self.shared.wait_for_none(Count::Connections, THREADS_END);
    }
}

#[cfg(test)]
mod tests;
