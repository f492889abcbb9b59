//! The server: a thread that accepts clients, and a thread for each place of a client, which reads its
//! request, calls the service, sends the response, and closes the connection.
//!
//! All of these threads start before [`Server::start`] returns, and end soon after the server. So a program
//! that forks while it serves does not fork in the middle of a thread's start or end, when the standard
//! library holds a lock that the child would never get. Only [`Turn::carry_out`] starts threads later.
//!
//! [`Server::start`] starts to serve. Dropping the server ends it: it accepts no more clients, refuses
//! requests that are still being read, stops waiting for work ([`Outcome::Ends`]), and writes the responses
//! to complete requests, within [`Settings::end`]. For each request the server calls its [`Service`] in this
//! order: [`accept`](Service::accept) with the head, [`answer`](Service::answer) with the body. Without a
//! valid request, it calls [`refuse`](Service::refuse).
//!
//! Every wait is a poll(2) with a deadline. A client that sends half a head or half a body, or does not read
//! its response, delays only its own connection. A service passes slow work to [`Turn::carry_out`].

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::channel;
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

/// Time limit for the threads of clients to end, after all waits have ended.
const THREADS_END: Duration = Duration::from_secs(1);

/// The name and the limits of a server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of its thread. Other threads append `-client` and `-work`. The system shows 15 bytes.
    pub name: &'static str,
    /// Maximum number of clients at a time, each with a thread. Others wait in the listener's backlog.
    pub clients: usize,
    /// Time limit for a head, from the connection on.
    pub head: Duration,
    /// Time limit for a body, from its head on.
    pub body: Duration,
    /// Time for which [`Turn::carry_out`] waits.
    pub work: Duration,
    /// Time limit for the whole connection. Only a client that does not read its response reaches it.
    pub connection: Duration,
    /// Time for which the server's end waits for responses to be written.
    pub end: Duration,
    /// Maximum length of a body in bytes.
    pub body_max: usize,
    /// Maximum number of descriptors with a request, up to [`DESCRIPTORS_MAX`](crate::DESCRIPTORS_MAX).
    pub descriptors: usize,
    /// Maximum number of work closures at a time, including those that nobody waits for any more.
    pub work_at_once: usize,
}

/// The service of a server. The threads of clients call its methods concurrently. The accepting thread calls
/// [`Service::report`], too.
pub trait Service: Send + Sync + 'static {
    /// The request of a head, as the service understands it.
    type Task;

    /// Called once by the accepting thread before it accepts clients. The threads of clients are its
    /// children, and so inherit a sandbox that it enters here.
    fn begin(&self) {}

    /// Checks a head before its body is read, and can check the client.
    ///
    /// # Errors
    ///
    /// Returns the response, if the body does not matter for it.
    fn accept(&self, head: &Head, client: BorrowedFd<'_>) -> Result<Self::Task, Response>;

    /// Responds to a request. Slow work must go through [`Turn::carry_out`]: this call itself is not
    /// interrupted, and delays the server's end.
    fn answer(&self, task: Self::Task, body: Body, turn: &Turn<'_>) -> Response;

    /// Returns the response to an invalid or incomplete request. `status` is that of the error.
    fn refuse(&self, status: crate::StatusCode, error: &RequestError) -> Response {
        Response::new(status, TEXT, format!("{error}\n"))
    }

    /// Receives all errors, for a log.
    fn report(&self, error: &ServeError) {
        let _ = error;
    }
}

/// An error while a server serves. The server continues.
#[derive(Debug, Error)]
pub enum ServeError {
    /// A client cannot be accepted. The server tries again.
    #[error("cannot accept a client")]
    Accept(#[source] io::Error),
    /// A request is refused, or did not arrive.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A client does not read its response, or is gone.
    #[error("the response cannot be sent")]
    Answer(#[source] io::Error),
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Time limit for its end.
    end: Duration,
}

impl Server {
    /// Serves the clients of `listener`: a listening stream socket, Unix or TCP.
    ///
    /// # Errors
    ///
    /// Fails if the process has no descriptor or no thread left.
    pub fn start(
        listener: impl Into<OwnedFd>,
        settings: Settings,
        service: impl Service,
    ) -> io::Result<Server> {
        let listener = listener.into();
        // So that accept does not wait for a client that is gone again.
        rustix::io::ioctl_fionbio(&listener, true)?;
        let shared = Arc::new(Shared::new()?);
        let (name, end) = (settings.name.to_owned(), settings.end);
        let connections = Arc::new(Connections { shared: shared.clone(), settings, service });
        let (ready, started) = channel();
        let accept_all = move || {
            connections.service.begin();
            let pool = connections.start_pool();
            let pool = pool.map_err(|error| ready.send(Err(error)));
            let Ok(pool) = pool else { return };
            let _ = ready.send(Ok(()));
            connections.accept_all(&listener, &pool);
        };
        let thread = thread::Builder::new().name(name).spawn(accept_all)?;
        let server = Server { shared, thread: Some(thread), end };
        // Disconnected: the service has panicked.
        started.recv().unwrap_or(Err(io::ErrorKind::Other.into()))?;
        Ok(server)
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
