//! The daemon's main thread: serves one connection at a time, and carries out its requests on the device.
//!
//! The thread always waits for all events at once, so that no front-end can keep the daemon from ending.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::info;
use thiserror::Error;
use volt_http::Server as MetricsServer;
use volt_net::crash_note::CrashNote;
use volt_net::device::{DeviceError, NetDevice};
use volt_net::limiter::RateLimits;
use volt_net::port::watch::LinkWatch;
use volt_program::logging;
use volt_program::opener::{Asked, Opener};
use volt_program::signals::SignalSet;
use volt_virtio::notify::Notifier;
use volt_virtio::poller::{EventFlags, Poller};

use crate::connection::Connection;
use crate::endpoint::{Endpoint, Listener};
use crate::inquiry::{Asker, Respondent};
use crate::metrics::listener::MetricsListener;
use crate::own_file::OwnFile;
use crate::signals::Signals;
use crate::supervision::Line;

mod capture;
mod clients;
mod commit;
mod filter;
mod frontends;
mod handover;
mod inquiries;
mod progress;
mod state;
mod status;
mod upkeep;

use progress::Progress;

/// Time between two attempts to connect to a front-end, or to reopen a deleted interface.
const RETRY: Duration = Duration::from_millis(500);

/// Why the daemon ends.
#[derive(Debug, Error)]
pub(crate) enum ServerError {
    #[error("waiting for events failed")]
    Wait(#[from] io::Error),
    #[error("the device failed")]
    Device(#[from] DeviceError),
}

/// The events that the main thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Signal,
    Listener,
    Connection,
    ControlKick,
    Device,
    /// An interface changed.
    Links,
    /// The control socket.
    Control,
    /// A client of the control socket.
    Client,
    /// A query of the metrics server or the watchdog, by the line's number.
    Inquiry(usize),
    /// The capture client disconnected.
    Capture,
    /// The supervisor died.
    Line,
    /// The opener has reopened the interface, or failed.
    PortOpened,
    /// The opener has connected to a front-end, or failed.
    FrontendFound,
}

/// The daemon.
pub(crate) struct Server {
    device: NetDevice,
    max_ring_size: u16,
    endpoint: Endpoint,
    /// The file of the port's own socket.
    port_file: Option<OwnFile>,
    poller: Poller<Token>,
    /// Notified by the device.
    wake: Arc<Notifier>,
    /// Readable when the link state may have changed.
    links: Option<LinkWatch>,
    connection: Option<Connection>,
    /// The control socket.
    control: Option<Listener>,
    /// Clients of the control socket that have not sent their request yet.
    clients: VecDeque<UnixStream>,
    metrics: Option<MetricsListener>,
    /// The metrics server of this process; `None` under a supervisor, which has its own.
    metrics_server: Option<MetricsServer>,
    /// The line on which the metrics server will query this thread.
    asker: Option<Asker>,
    /// Lines on which others query this thread.
    inquiries: Vec<Option<Respondent>>,
    /// The client that captures frames.
    capture_client: Option<UnixStream>,
    opener: Arc<Opener>,
    /// A pending request to reopen the port.
    port_asked: Option<Asked>,
    /// A pending request to connect to a front-end.
    frontend_asked: Option<Asked>,
    supervisor: Option<Line>,
    /// Signals that the supervisor handles while it lives.
    blocked: SignalSet,
    /// Close the predecessor's connection on resume.
    drop_connection: bool,
    /// Under a supervisor: the note that a request is being carried out.
    request: Option<CrashNote>,
    /// When told to end, leave everything to the supervisor.
    leave: bool,
    started: Instant,
    restarts: u64,
    take_overs: u64,
    signals: Signals,
    /// When to try to reopen a deleted port.
    reopen: Option<Instant>,
    /// Why the last attempt failed.
    reopen_failure: String,
    /// When to try to connect to the front-end next.
    next_connect: Instant,
    waiting_logged: bool,
    /// After a refusal, no front-end is accepted before this time.
    accept_after: Option<Instant>,
    refused: u64,
    refusal_logged: Option<Instant>,
    queues_logged: Option<Instant>,
    /// Progress of the queue pairs, as of the last check.
    progress: Progress,
    /// Work to do before the next wait.
    pending: Pending,
}

#[derive(Default)]
struct Pending {
    stop: bool,
    accept: bool,
    messages: bool,
    control_queue: bool,
    client: bool,
    requests: bool,
    capture: bool,
    /// Rings may be broken.
    rings: bool,
    links: bool,
    /// Numbers of the lines with a query.
    inquiries: Vec<usize>,
    alone: bool,
    port_opened: bool,
    frontend_found: bool,
}

/// The parts of a daemon.
pub(crate) struct Parts {
    pub(crate) device: NetDevice,
    /// Notified by the device.
    pub(crate) wake: Arc<Notifier>,
    pub(crate) max_ring_size: u16,
    pub(crate) endpoint: Endpoint,
    pub(crate) port_file: Option<OwnFile>,
    pub(crate) control: Option<Listener>,
    pub(crate) metrics: Option<MetricsListener>,
    /// The line of this process's own metrics server, used without a supervisor.
    pub(crate) asker: Option<Asker>,
    /// Lines on which others query the main thread.
    pub(crate) inquiries: Vec<Respondent>,
    pub(crate) opener: Arc<Opener>,
    /// The supervisor, if there is one.
    pub(crate) supervisor: Option<Line>,
    /// Signals that are blocked because the supervisor handles them.
    pub(crate) blocked: SignalSet,
    /// Close the imported connection on resume.
    pub(crate) drop_connection: bool,
    pub(crate) request: Option<CrashNote>,
    /// When told to end, leave everything to systemd's store, by way of the supervisor.
    pub(crate) leave: bool,
    /// How often the supervisor has restarted the worker.
    pub(crate) restarts: u64,
    /// Becomes readable when the daemon is told to end.
    pub(crate) signals: Signals,
}

/// The ways a daemon ends without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The daemon ended by itself or was told to end. It removes everything that it created.
    Over,
    /// Everything belongs to another process now. This one must not touch it, not even to clean up.
    GivenAway,
}

impl Server {
    /// Creates a daemon without a front-end.
    pub(crate) fn new(mut parts: Parts) -> io::Result<Server> {
        let mut poller = Poller::new()?;
        let links = upkeep::watch_links(&mut poller);
        if links.is_some() {
            parts.device.look_at_link();
        }
        poller.add(&parts.signals, EventFlags::IN, Token::Signal)?;
        poller.add(&*parts.wake, EventFlags::IN, Token::Device)?;
        if let Endpoint::Listen(listener) = &parts.endpoint {
            poller.add(listener, EventFlags::IN, Token::Listener)?;
        }
        if let Some(control) = &parts.control {
            poller.add(control, EventFlags::IN, Token::Control)?;
        }
        for (number, inquiry) in parts.inquiries.iter().enumerate() {
            poller.add(inquiry, EventFlags::IN | EventFlags::RDHUP, Token::Inquiry(number))?;
        }
        if let Some(supervisor) = &parts.supervisor {
            // The supervisor never speaks first: only its death matters.
            poller.add(supervisor, EventFlags::RDHUP | EventFlags::ET, Token::Line)?;
        }
        Ok(Server {
            device: parts.device,
            max_ring_size: parts.max_ring_size,
            endpoint: parts.endpoint,
            port_file: parts.port_file,
            poller,
            wake: parts.wake,
            links,
            connection: None,
            control: parts.control,
            clients: VecDeque::new(),
            metrics: parts.metrics,
            metrics_server: None,
            asker: parts.asker,
            inquiries: parts.inquiries.into_iter().map(Some).collect(),
            capture_client: None,
            opener: parts.opener,
            port_asked: None,
            frontend_asked: None,
            supervisor: parts.supervisor,
            blocked: parts.blocked,
            drop_connection: parts.drop_connection,
            request: parts.request,
            leave: parts.leave,
            started: Instant::now(),
            restarts: parts.restarts,
            take_overs: 0,
            signals: parts.signals,
            reopen: None,
            reopen_failure: String::new(),
            next_connect: Instant::now(),
            waiting_logged: false,
            accept_after: None,
            refused: 0,
            refusal_logged: None,
            queues_logged: None,
            progress: Progress::default(),
            pending: Pending::default(),
        })
    }

    /// Sets the device's rate limits. Call before the daemon serves.
    pub(crate) fn set_limits(&mut self, limits: RateLimits) {
        self.device.set_limits(limits);
    }

    /// Sets the polling time of the device's workers. Call before the daemon serves.
    pub(crate) fn set_busy_poll(&mut self, microseconds: u16) {
        self.device.set_busy_poll(microseconds);
    }

    /// Serves until a signal arrives, the only connection ends, or another process takes over.
    pub(crate) fn run(mut self) -> Result<End, ServerError> {
        let end = self.attend();
        // After an error, the next worker inherits everything, including the socket files.
        if matches!(end, Ok(End::GivenAway)) || (end.is_err() && self.supervisor.is_some()) {
            self.abandon();
        }
        end
    }

    fn attend(&mut self) -> Result<End, ServerError> {
        if let Endpoint::Connected(stream) = &mut self.endpoint
            && let Some(stream) = stream.take()
        {
            self.connect(stream)?;
        }
        self.commit();
        self.serve_metrics()?;
        if self.device.port().is_gone() {
            self.reopen = Some(Instant::now());
        }
        while !self.finished() {
            self.connect_as_client()?;
            self.accept_again()?;
            self.wait()?;
            if self.pending.stop {
                return self.end();
            }
            if std::mem::take(&mut self.pending.alone) && self.supervisor.is_some() {
                self.lose_supervisor(&io::ErrorKind::UnexpectedEof.into());
            }
            if std::mem::take(&mut self.pending.accept) {
                self.accept()?;
            }
            if std::mem::take(&mut self.pending.messages) {
                self.serve()?;
            }
            if std::mem::take(&mut self.pending.control_queue) {
                self.serve_control_queue();
            }
            if std::mem::take(&mut self.pending.client) {
                self.accept_client()?;
            }
            if std::mem::take(&mut self.pending.requests) && self.serve_clients()? == Some(End::GivenAway) {
                return Ok(End::GivenAway);
            }
            if std::mem::take(&mut self.pending.capture) {
                self.end_capture()?;
            }
            self.watch_control_queue()?;
            if std::mem::take(&mut self.pending.port_opened) {
                self.port_opened()?;
            }
            if std::mem::take(&mut self.pending.frontend_found) {
                self.frontend_found()?;
            }
            self.check_port()?;
            if std::mem::take(&mut self.pending.rings) {
                self.check_rings();
            }
            if std::mem::take(&mut self.pending.links) {
                self.check_link();
            }
            for number in std::mem::take(&mut self.pending.inquiries) {
                self.answer_inquiry(number)?;
            }
        }
        Ok(End::Over)
    }

    fn end(&mut self) -> Result<End, ServerError> {
        let by = self.signals.who();
        info!(target: logging::END, event = "told_to_end", by:%; "told to end by {by}");
        if self.leave {
            if let Some(connection) = &mut self.connection {
                connection.session.pause(&mut self.device)?;
            }
            self.commit();
            return Ok(End::GivenAway);
        }
        self.disconnect("this daemon ends")?;
        Ok(End::Over)
    }

    /// Forgets everything without touching it, because another process owns it. Only the capture client is
    /// disconnected: it can connect to the new owner.
    fn abandon(mut self) {
        drop(self.capture_client.take());
        std::mem::forget(self);
    }

    fn finished(&self) -> bool {
        matches!(self.endpoint, Endpoint::Connected(None)) && self.connection.is_none()
    }

    fn wait(&mut self) -> io::Result<()> {
        let timeout = self.timeout();
        let (pending, wake, reopen) = (&mut self.pending, &self.wake, &mut self.reopen);
        let device = &self.device;
        let control_kick = self.connection.as_ref().and_then(|connection| connection.control_kick.as_ref());
        self.poller.wait(timeout, |token, _| match token {
            Token::Signal => pending.stop = true,
            Token::Listener => pending.accept = true,
            Token::Connection => pending.messages = true,
            Token::ControlKick => {
                if let Some(kicked) = control_kick {
                    kicked.clear();
                }
                pending.control_queue = true;
            }
            Token::Control => pending.client = true,
            Token::Client => pending.requests = true,
            Token::Inquiry(number) => pending.inquiries.push(number),
            Token::Capture => pending.capture = true,
            Token::Links => pending.links = true,
            Token::Line => pending.alone = true,
            Token::PortOpened => pending.port_opened = true,
            Token::FrontendFound => pending.frontend_found = true,
            Token::Device => {
                wake.clear();
                pending.rings = true;
                if device.port_gone() {
                    reopen.get_or_insert_with(Instant::now);
                }
            }
        })
    }

    /// Returns the time until the next scheduled work; `None` if only an event can cause work.
    fn timeout(&self) -> Option<Duration> {
        if self.pending.messages || self.pending.control_queue {
            return Some(Duration::ZERO);
        }
        let looks = matches!(self.endpoint, Endpoint::Client(_))
            && self.connection.is_none()
            && self.frontend_asked.is_none();
        let reopen = self.reopen.filter(|_| self.port_asked.is_none());
        let due = [reopen, self.accept_after, looks.then_some(self.next_connect)];
        let next = due.into_iter().flatten().min();
        next.map(|when| when.saturating_duration_since(Instant::now()))
    }
}
