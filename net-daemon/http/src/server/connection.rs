//! Clients: accepted one after the other, each served by a thread of a pool.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with, shutdown};

use super::shared::{Count, Counted, Shared};
use super::{ServeError, Service, Settings, Turn};
use crate::Method;
use crate::request::{Head, Incoming, RequestError};
use crate::response::Response;
use crate::socket::{Deadline, Received, Woken, receive, send_all, wait};

/// Delay after a temporary failure of the system.
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of bytes to read and drop after the response to a request that was not read completely.
const REST_MAX: usize = 1 << 20;
/// Time limit for reading these bytes.
const REST_LIMIT: Duration = Duration::from_secs(5);

/// The data that the threads of clients share.
#[derive(Debug)]
pub(super) struct Connections<S> {
    pub(super) shared: Arc<Shared>,
    pub(super) settings: Settings,
    pub(super) service: S,
}

/// A client with its place among those that are served.
type Client = (OwnedFd, Counted);

/// The threads for clients, as many as there are places. They end when this value is dropped.
#[derive(Debug)]
pub(super) struct Pool(Sender<Client>);

impl<S: Service> Connections<S> {
    /// Starts the threads for clients, and waits until all run.
    ///
    /// # Errors
    ///
    /// Fails if a thread cannot be started.
    pub(super) fn start_pool(self: &Arc<Self>) -> io::Result<Pool> {
        let (clients, queue) = channel();
        let queue = Arc::new(Mutex::new(queue));
        let (ready, started) = channel();
        let mut threads = Vec::new();
        for _ in 0..self.settings.clients {
            let (connections, queue, ready) = (self.clone(), queue.clone(), ready.clone());
            let body = move || {
                // Fails if another thread could not be started.
                let _ = ready.send(());
                connections.serve_all(&queue);
            };
            match thread::Builder::new().name(format!("{}-client", self.settings.name)).spawn(body) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    drop(clients);
                    threads.into_iter().for_each(|thread| drop(thread.join()));
                    return Err(error);
                }
            }
        }
        started.iter().take(self.settings.clients).for_each(drop);
        Ok(Pool(clients))
    }

    /// Serves clients of the queue until the server ends.
    fn serve_all(self: Arc<Self>, queue: &Mutex<Receiver<Client>>) {
        loop {
            // One idle thread waits for a client, the others for the lock.
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((client, place)) = next else { return };
            // A panic, which the panic hook reports, is a fault of one request.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                if let Err(error) = self.converse(client.as_fd()) {
                    self.service.report(&error);
                }
            }));
            drop(client);
            // The server's end may wait for it: the service is not used any more for this client.
            drop(place);
        }
    }

    /// Accepts clients until the server ends. Waits while all places are taken.
    pub(super) fn accept_all(self: Arc<Self>, listener: &OwnedFd, pool: &Pool) {
        while let Some(place) = self.shared.count(Count::Connections, self.settings.clients) {
            match self.accept(listener) {
                // The threads live as long as the pool.
                Ok(Some(client)) => drop(pool.0.send((client, place))),
                Ok(None) => {}
                Err(error) => {
                    self.service.report(&ServeError::Accept(error));
                    let _ = wait(self.shared.end(), PollFlags::IN, None, Some(Deadline::after(PAUSE)));
                }
            }
        }
    }

    /// Accepts the next client. Returns `None` if the server ends, or if the client is gone again.
    fn accept(&self, listener: &OwnedFd) -> io::Result<Option<OwnedFd>> {
        if wait(listener, PollFlags::IN, Some(self.shared.end()), None)? != Woken::Ready || self.shared.ends()
        {
            return Ok(None);
        }
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(client) => Ok(Some(client)),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Serves a client's request.
    fn converse(&self, client: BorrowedFd<'_>) -> Result<(), ServeError> {
        let deadline = Deadline::after(self.settings.connection);
        let mut incoming = Incoming::new(client, self.shared.end(), self.settings.descriptors);
        let head = incoming.head(self.settings.head);
        // The server's end waits for it from here on.
        let asked = self.shared.try_count(Count::Requests, usize::MAX);
        let (minor, with_body) =
            head.as_ref().map_or((1, true), |head| (head.minor(), *head.method() != Method::HEAD));
        let answer = head.and_then(|head| self.answer(&head, &mut incoming, client, deadline));
        let response = match answer {
            Ok(response) => response,
            Err(error) => match error.status() {
                Some(status) => {
                    let response = self.service.refuse(status, &error);
                    self.service.report(&error.into());
                    response
                }
                None => return Err(error.into()),
            },
        };
        // Closes the descriptors of a request that is refused.
        let complete = incoming.is_complete();
        drop(incoming);
        let bytes = response.encode(minor, with_body, SystemTime::now());
        let sent = send_all(client, &bytes, self.shared.over(), deadline).map_err(ServeError::Answer);
        drop(asked);
        sent?;
        self.close(client, complete, deadline);
        Ok(())
    }

    /// Returns the service's response to a request with this head. Reads the body if the service accepts it.
    fn answer(
        &self,
        head: &Head,
        incoming: &mut Incoming<'_>,
        client: BorrowedFd<'_>,
        deadline: Deadline,
    ) -> Result<Response, RequestError> {
        let task = match self.service.accept(head, client) {
            Ok(task) => task,
            Err(answer) => return Ok(answer),
        };
        let body = incoming.body(head, self.settings.body_max, self.settings.body)?;
        let turn = Turn { shared: &self.shared, socket: client, settings: &self.settings, deadline };
        Ok(self.service.answer(task, body, &turn))
    }

    /// Shuts down the sending side. Then reads the bytes that the client has sent or, if its request was not
    /// `complete`, still sends. Otherwise the close would reset the connection for a client that sends
    /// everything before it reads.
    fn close(&self, client: BorrowedFd<'_>, complete: bool, deadline: Deadline) {
        let _ = shutdown(client, Shutdown::Write);
        let deadline = Deadline::after(REST_LIMIT).or(deadline);
        let mut left = REST_MAX;
        while left > 0 {
            let (mut bytes, mut descriptors) = (Vec::new(), Vec::new());
            match receive(client, &mut bytes, left, &mut descriptors) {
                Ok(Received::Bytes(_) | Received::Truncated) => left -= bytes.len(),
                Ok(Received::Nothing) if !complete => {
                    let woken = wait(client, PollFlags::IN, Some(self.shared.end()), Some(deadline));
                    if !woken.is_ok_and(|woken| woken == Woken::Ready) {
                        return;
                    }
                }
                Ok(Received::Nothing | Received::End) | Err(_) => return,
            }
        }
    }
}
