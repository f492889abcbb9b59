//! Connections to front-ends, one at a time.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use log::{info, warn};
use volt_vhost_user::channel::{Channel, ChannelError};
use volt_vhost_user::session::{Session, SessionError};
use volt_virtio::error_chain;
use volt_virtio::poller::EventFlags;

use super::{RETRY, Server, ServerError, Token};
use crate::connection::{Connection, Ended};
use crate::endpoint::Endpoint;
use crate::opener::Request;

/// Time from a refusal to the next front-end: a refused front-end reconnects at once, again and again.
const HOLD_OFF: Duration = Duration::from_secs(1);
/// Least time between two log lines about refused connections.
const REFUSALS: Duration = Duration::from_secs(10);
/// Errors of `accept` without a client, or with one that has disconnected.
const NOBODY: [io::ErrorKind; 3] =
    [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted, io::ErrorKind::ConnectionAborted];
/// Highest number of messages served before other events.
const MESSAGES: usize = 64;

impl Server {
    /// Accepts a new front-end, or refuses it while another is connected.
    pub(super) fn accept(&mut self) -> Result<(), ServerError> {
        let Endpoint::Listen(listener) = &self.endpoint else { return Ok(()) };
        let stream = match listener.accept() {
            Ok(stream) => stream,
            Err(error) if NOBODY.contains(&error.kind()) => return Ok(()),
            Err(error) => {
                warn!(event = "front_end_accept_failed"; "cannot accept a front-end: {error}");
                // Probably out of descriptors: do not retry at once.
                return Ok(self.hold_off()?);
            }
        };
        match &self.connection {
            Some(connection) if !connection.channel.is_hung_up() => {
                self.refuse();
                return Ok(self.hold_off()?);
            }
            // The event for the old connection's end may come after that for the new one.
            Some(_) => self.disconnect("closed by the front-end")?,
            None => {}
        }
        self.connect(stream)
    }

    fn refuse(&mut self) {
        self.refused += 1;
        if self.refusal_logged.is_none_or(|when| when.elapsed() >= REFUSALS) {
            warn!(
                event = "second_front_end_refused", refused = self.refused;
                "a second front-end was refused: this daemon serves one at a time ({} refused so far)",
                self.refused
            );
            self.refusal_logged = Some(Instant::now());
        }
    }

    /// Accepts no front-end for a while. New ones wait in the listener's queue.
    fn hold_off(&mut self) -> io::Result<()> {
        let Endpoint::Listen(listener) = &self.endpoint else { return Ok(()) };
        if self.accept_after.replace(Instant::now() + HOLD_OFF).is_none() {
            self.poller.remove(listener)?;
        }
        Ok(())
    }

    /// Accepts front-ends again when the hold-off is over.
    pub(super) fn accept_again(&mut self) -> io::Result<()> {
        let Endpoint::Listen(listener) = &self.endpoint else { return Ok(()) };
        if self.accept_after.is_some_and(|after| after <= Instant::now()) {
            self.accept_after = None;
            self.poller.add(listener, EventFlags::IN, Token::Listener)?;
        }
        Ok(())
    }

    pub(super) fn connect_as_client(&mut self) -> Result<(), ServerError> {
        let busy = self.connection.is_some() || self.frontend_asked.is_some();
        if self.endpoint.frontend().is_none() || busy || self.next_connect > Instant::now() {
            return Ok(());
        }
        // The delay also applies after a connection that ends at once.
        self.next_connect = Instant::now() + RETRY;
        let asked = self.opener.ask(&Request::Connect).and_then(|asked| {
            self.poller.add(&asked, EventFlags::IN, Token::FrontendFound)?;
            Ok(asked)
        });
        match asked {
            Ok(asked) => self.frontend_asked = Some(asked),
            Err(error) => self.wait_for_frontend(&error),
        }
        Ok(())
    }

    /// Takes the connection to a front-end from the opener, if it has one.
    pub(super) fn frontend_found(&mut self) -> Result<(), ServerError> {
        let Some(asked) = self.frontend_asked.take() else { return Ok(()) };
        self.poller.remove(&asked)?;
        match asked.take().map(|mut fds| fds.pop()) {
            Ok(Some(stream)) => {
                self.waiting_logged = false;
                self.connect(stream.into())
            }
            Ok(None) => Ok(()),
            Err(error) => {
                self.wait_for_frontend(&error);
                Ok(())
            }
        }
    }

    fn wait_for_frontend(&mut self, why: &io::Error) {
        if let Some(path) = self.endpoint.frontend().filter(|_| !self.waiting_logged) {
            info!(
                event = "waiting_for_front_end", path:% = path.display();
                "waiting for a front-end at {}: {why}", path.display()
            );
            self.waiting_logged = true;
        }
    }

    pub(super) fn connect(&mut self, stream: UnixStream) -> Result<(), ServerError> {
        let channel = Channel::new(stream)?;
        info!(event = "front_end_connected"; "front-end connected");
        let session = Session::new(&self.device, self.max_ring_size);
        self.connection = Some(Connection::new(channel, session));
        self.watch_connection()?;
        self.commit();
        Ok(())
    }

    /// Watches the connection, and marks it for a first read: messages may be waiting.
    pub(super) fn watch_connection(&mut self) -> io::Result<()> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let edge = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        self.poller.add(&connection.channel, edge, Token::Connection)?;
        self.pending.messages = true;
        Ok(())
    }

    /// Ends the connection, if there is one.
    pub(super) fn disconnect(&mut self, why: &str) -> Result<(), ServerError> {
        let Some(connection) = self.connection.take() else { return Ok(()) };
        connection.session.close(&mut self.device)?;
        self.poller.remove(&connection.channel)?;
        if let Some(kick) = connection.control_kick {
            self.poller.remove(&*kick)?;
        }
        info!(event = "front_end_gone", why; "front-end gone: {why}");
        let counters = (0..self.device.pairs()).map(|pair| (pair, self.device.counters(pair)));
        for (pair, counters) in counters.filter(|(_, counters)| counters.all().any(|(_, count)| count > 0)) {
            info!(event = "pair_counters", pair; "queue pair {pair} so far: {counters}");
        }
        self.commit();
        Ok(())
    }

    /// Carries out and answers the messages that have arrived.
    pub(super) fn serve(&mut self) -> Result<(), ServerError> {
        for _ in 0..MESSAGES {
            let error = match self.step() {
                Ok(true) => continue,
                Ok(false) => return Ok(()),
                Err(error) => error,
            };
            let why = match error {
                Ended::Channel(error @ (ChannelError::Closed | ChannelError::ClosedInside)) => {
                    return self.left(&error.to_string());
                }
                // For instance, the front-end disconnected before it had read all replies.
                Ended::Channel(error @ ChannelError::System(_)) => {
                    warn!(event = "connection_failed"; "closing the connection: {}", error_chain(&error));
                    return self.left("socket error");
                }
                Ended::Channel(error) => {
                    warn!(event = "protocol_error"; "closing the connection: {}", error_chain(&error));
                    "protocol error".to_owned()
                }
                Ended::Session(SessionError::Device(error)) => return Err(error.into()),
                Ended::Session(error) => {
                    warn!(
                        event = "connection_refused";
                        "closing the connection, as a request is refused: {}", error_chain(&error)
                    );
                    "request refused".to_owned()
                }
            };
            self.disconnect(&why)?;
            return Ok(self.hold_off()?);
        }
        self.pending.messages = true;
        Ok(())
    }

    /// Ends a connection that the front-end has closed. A front-end that asks for the number of queues and
    /// disconnects at once probably needs more queues. It also reconnects at once.
    fn left(&mut self, why: &str) -> Result<(), ServerError> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let too_few = connection.session.left_at_queues() && connection.since.elapsed() < HOLD_OFF;
        self.disconnect(why)?;
        if too_few {
            self.complain_of_queues();
            return Ok(self.hold_off()?);
        }
        // A front-end that waited for the end of this connection may connect now.
        self.accept_after = self.accept_after.map(|_| Instant::now());
        Ok(())
    }

    fn complain_of_queues(&mut self) {
        if self.queues_logged.is_none_or(|when| when.elapsed() >= REFUSALS) {
            warn!(
                event = "queue_pairs_too_few", pairs = self.device.pairs();
                "the front-end asked for the number of queues and disconnected: if it has more than {} queue \
                 pairs (queues= of QEMU's netdev), give this daemon the same number with --queues",
                self.device.pairs()
            );
            self.queues_logged = Some(Instant::now());
        }
    }

    /// Serves one message. Returns `false` if there is none, or the front-end has not read its last reply.
    fn step(&mut self) -> Result<bool, Ended> {
        if !self.flush()? {
            return Ok(false);
        }
        let Some(connection) = &mut self.connection else { return Ok(false) };
        let id = connection.channel.id();
        let message = match &self.supervisor {
            Some(supervisor) => {
                match connection.channel.receive_with(|socket, begun| supervisor.read(socket, id, begun)) {
                    // The supervisor has not read anything from the connection.
                    Err(ChannelError::System(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                        self.lose_supervisor(&error);
                        return Ok(true);
                    }
                    // The supervisor may have read something.
                    Err(ChannelError::System(error)) if error.kind() == io::ErrorKind::TimedOut => {
                        self.lose_supervisor(&error);
                        return Err(ChannelError::from(error).into());
                    }
                    result => result?,
                }
            }
            None => connection.channel.receive()?,
        };
        let Some(message) = message else { return Ok(false) };
        if let Some(note) = &mut self.request {
            note.serving(0);
        }
        let reply = connection.session.handle(message, &mut self.device);
        if let Some(note) = &self.request {
            note.idle();
        }
        self.conclude(reply?.unwrap_or_default())?;
        Ok(true)
    }
}
