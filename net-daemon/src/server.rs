//! The daemon's main thread: connections, one after the other, and what they say to the device.
//!
//! Waits for everything at once and never for one thing alone, so that no front-end can keep it from ending
//! when it is told to.
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
use crate::signals::Signals;
use crate::supervision::Line;

mod capture;
mod clients;
mod commit;
mod frontends;
mod handover;
mod inquiries;
mod progress;
mod state;
mod status;
mod upkeep;

use progress::Progress;

/// How long until a front-end that is not there, or an interface that is gone, is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Why the daemon ends.
#[derive(Debug, Error)]
pub(crate) enum ServerError {
    #[error("waiting for events failed")]
    Wait(#[from] io::Error),
    #[error("the device failed")]
    Device(#[from] DeviceError),
}

/// What the main thread waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Signal,
    Listener,
    Connection,
    ControlKick,
    Device,
    /// News of interfaces.
    Links,
    /// The control socket, and its clients.
    Control,
    Client,
    /// A question of who serves metrics or feeds the watchdog, by its number.
    Inquiry(usize),
    /// The end of the client that captures frames.
    Capture,
    /// The supervisor's end.
    Line,
    /// The opener has an answer.
    PortOpened,
    FrontendFound,
}

/// The daemon.
pub(crate) struct Server {
    device: NetDevice,
    max_ring_size: u16,
    endpoint: Endpoint,
    poller: Poller<Token>,
    /// Notified by the device.
    wake: Arc<Notifier>,
    /// Tells when to look whether the port's interface is up.
    links: Option<LinkWatch>,
    connection: Option<Connection>,
    /// The control socket.
    control: Option<Listener>,
    /// Clients of the control socket whose request has not come.
    clients: VecDeque<UnixStream>,
    metrics: Option<MetricsListener>,
    /// Serves them, where no supervisor does.
    metrics_server: Option<MetricsServer>,
    /// What that one will ask this thread by.
    asker: Option<Asker>,
    /// Who asks how everything stands.
    inquiries: Vec<Option<Respondent>>,
    /// Whoever captures frames.
    capture_client: Option<UnixStream>,
    opener: Arc<Opener>,
    /// The port is being opened again.
    port_asked: Option<Asked>,
    /// A front-end that listens is being looked for.
    frontend_asked: Option<Asked>,
    supervisor: Option<Line>,
    /// Signals that are the supervisor's while there is one.
    blocked: SignalSet,
    /// The connection of the process before is not to be gone on with.
    drop_connection: bool,
    /// Below a supervisor: where it is noted that a request is being carried out.
    request: Option<CrashNote>,
    /// Told to end, everything is left to the supervisor instead.
    leave: bool,
    started: Instant,
    restarts: u64,
    take_overs: u64,
    signals: Signals,
    /// When to try to open a port that is gone.
    reopen: Option<Instant>,
    /// Why that failed last.
    reopen_failure: String,
    /// When to look for a front-end that listens.
    next_connect: Instant,
    waiting_logged: bool,
    /// After a refusal nobody is let in before this.
    accept_after: Option<Instant>,
    refused: u64,
    refusal_logged: Option<Instant>,
    queues_logged: Option<Instant>,
    /// What the last looks at the queue pairs saw.
    progress: Progress,
    /// What is to be done before the next wait.
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
    /// By their numbers.
    inquiries: Vec<usize>,
    alone: bool,
    port_opened: bool,
    frontend_found: bool,
}

/// What a daemon is made of.
pub(crate) struct Parts {
    pub(crate) device: NetDevice,
    /// Notified by the device.
    pub(crate) wake: Arc<Notifier>,
    pub(crate) max_ring_size: u16,
    pub(crate) endpoint: Endpoint,
    pub(crate) control: Option<Listener>,
    pub(crate) metrics: Option<MetricsListener>,
    /// Of a line of this process's own, for metrics where no supervisor serves them.
    pub(crate) asker: Option<Asker>,
    /// Who asks how everything stands.
    pub(crate) inquiries: Vec<Respondent>,
    pub(crate) opener: Arc<Opener>,
    /// The supervisor, if there is one.
    pub(crate) supervisor: Option<Line>,
    /// Signals that are blocked because they are the supervisor's.
    pub(crate) blocked: SignalSet,
    /// The connection that is imported is not to be gone on with.
    pub(crate) drop_connection: bool,
    pub(crate) request: Option<CrashNote>,
    /// Told to end, leave everything to the supervisor's supervisor.
    pub(crate) leave: bool,
    /// How often the supervisor has started a worker again.
    pub(crate) restarts: u64,
    /// Becomes readable when the daemon is told to end.
    pub(crate) signals: Signals,
}

/// How a daemon ends without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By itself or told to: what it made is taken down.
    Over,
    /// Everything is another process's now: nothing may be touched any more, not even to clean up.
    GivenAway,
}

impl Server {
    /// A daemon that has no front-end yet.
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
            // It never speaks first: only its end is of interest.
            poller.add(supervisor, EventFlags::RDHUP | EventFlags::ET, Token::Line)?;
        }
        Ok(Server {
            device: parts.device,
            max_ring_size: parts.max_ring_size,
            endpoint: parts.endpoint,
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

    /// Limits the device's rate. Before it serves anybody.
    pub(crate) fn set_limits(&mut self, limits: RateLimits) {
        self.device.set_limits(limits);
    }

    /// Lets the device's workers poll. Before it serves anybody.
    pub(crate) fn set_busy_poll(&mut self, microseconds: u16) {
        self.device.set_busy_poll(microseconds);
    }

    /// Serves until a signal, until the only connection has ended, or until another process takes over.
    pub(crate) fn run(mut self) -> Result<End, ServerError> {
        let end = self.attend();
        // What this process had is the next worker's after an error, the sockets' files too.
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

    /// Forgets everything without touching it: it is somebody else's. Who captures frames goes there too.
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

    /// `None` where nothing is to be done before something happens.
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
