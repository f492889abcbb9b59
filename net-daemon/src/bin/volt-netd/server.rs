//! The daemon's main thread: connections, one after the other, and what they say to the device.
//!
//! Waits for everything at once and never for one thing alone, so that no front-end can keep it from ending when
//! it is told to.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{info, warn};
use thiserror::Error;
use volt_net::error_chain;
use volt_net::event::notify::Notifier;
use volt_net::event::poller::{EventFlags, Poller};
use volt_net::net::device::{DeviceError, NetDevice};
use volt_net::vhost_user::channel::{Channel, ChannelError};
use volt_net::vhost_user::session::{Session, SessionError};

use crate::endpoint::{Endpoint, connect};

/// How long until a front-end that is not there, or an interface that is gone, is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// At most one line in this time about refused connections.
const REFUSALS: Duration = Duration::from_secs(10);
/// Most messages served before the rest of the daemon gets its turn.
const MESSAGES: usize = 64;

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
}

/// A front-end that is connected.
struct Connection {
    channel: Channel,
    session: Session,
    /// The control queue's kick, as it is watched.
    control: Option<Arc<Notifier>>,
}

/// How a connection goes on.
enum Service {
    /// There may be more to do at once.
    More,
    Idle,
    Ended(String),
}

/// The daemon.
pub(crate) struct Server {
    device: NetDevice,
    max_ring_size: u16,
    endpoint: Endpoint,
    poller: Poller<Token>,
    /// Notified by the device.
    wake: Arc<Notifier>,
    connection: Option<Connection>,
    /// When to try to open a port that is gone.
    reopen: Option<Instant>,
    /// Why that failed last.
    reopen_failure: String,
    /// When to look for a front-end that listens.
    next_connect: Instant,
    waiting_logged: bool,
    refused: u64,
    refusal_logged: Option<Instant>,
    /// What is to be done before the next wait.
    pending: Pending,
}

#[derive(Default)]
struct Pending {
    stop: bool,
    accept: bool,
    messages: bool,
    control: bool,
}

impl Server {
    /// A daemon for `device`, which notifies `wake`; it ends when `signals` becomes readable.
    pub(crate) fn new(
        device: NetDevice,
        max_ring_size: u16,
        endpoint: Endpoint,
        wake: Arc<Notifier>,
        signals: &impl AsFd,
    ) -> io::Result<Server> {
        let mut poller = Poller::new()?;
        poller.add(signals, EventFlags::IN, Token::Signal)?;
        poller.add(&*wake, EventFlags::IN, Token::Device)?;
        if let Endpoint::Listen(listener, _) = &endpoint {
            poller.add(listener, EventFlags::IN, Token::Listener)?;
        }
        Ok(Server {
            device,
            max_ring_size,
            endpoint,
            poller,
            wake,
            connection: None,
            reopen: None,
            reopen_failure: String::new(),
            next_connect: Instant::now(),
            waiting_logged: false,
            refused: 0,
            refusal_logged: None,
            pending: Pending::default(),
        })
    }

    /// Serves until a signal, or until the only connection has ended.
    pub(crate) fn run(mut self) -> Result<(), ServerError> {
        if let Endpoint::Connected(stream) = &mut self.endpoint
            && let Some(stream) = stream.take()
        {
            self.connect(stream)?;
        }
        while !self.finished() {
            self.connect_as_client()?;
            self.wait()?;
            if self.pending.stop {
                info!("told to end");
                self.disconnect("this daemon ends")?;
                return Ok(());
            }
            if std::mem::take(&mut self.pending.accept) {
                self.accept()?;
            }
            if std::mem::take(&mut self.pending.messages) {
                self.serve()?;
            }
            if std::mem::take(&mut self.pending.control) {
                self.serve_control();
            }
            self.watch_control()?;
            self.check_port()?;
        }
        Ok(())
    }

    fn finished(&self) -> bool {
        matches!(self.endpoint, Endpoint::Connected(None)) && self.connection.is_none()
    }

    fn wait(&mut self) -> io::Result<()> {
        let timeout = self.timeout();
        let (pending, wake, reopen) = (&mut self.pending, &self.wake, &mut self.reopen);
        let device = &self.device;
        self.poller.wait(timeout, |token, _| match token {
            Token::Signal => pending.stop = true,
            Token::Listener => pending.accept = true,
            Token::Connection => pending.messages = true,
            Token::ControlKick => pending.control = true,
            Token::Device => {
                wake.clear();
                if device.port_gone() {
                    reopen.get_or_insert_with(Instant::now);
                }
            }
        })
    }

    /// `None` where nothing is to be done before something happens.
    fn timeout(&self) -> Option<Duration> {
        if self.pending.messages || self.pending.control {
            return Some(Duration::ZERO);
        }
        let client = matches!(self.endpoint, Endpoint::Client(_)) && self.connection.is_none();
        let next = self.reopen.into_iter().chain(client.then_some(self.next_connect)).min();
        next.map(|when| when.saturating_duration_since(Instant::now()))
    }

    /// Takes a new front-end, or refuses it while there is another.
    fn accept(&mut self) -> Result<(), ServerError> {
        let Endpoint::Listen(listener, _) = &self.endpoint else { return Ok(()) };
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => {
                warn!("accepting a connection failed: {error}");
                // Out of descriptors, most likely: not again at once.
                std::thread::sleep(Duration::from_millis(10));
                return Ok(());
            }
        };
        match &self.connection {
            Some(connection) if !connection.channel.is_hung_up() => {
                self.refuse();
                return Ok(());
            }
            // The news of its end may be behind that of the new one.
            Some(_) => self.disconnect("closed by the front-end")?,
            None => {}
        }
        self.connect(stream)
    }

    fn refuse(&mut self) {
        self.refused += 1;
        if self.refusal_logged.is_none_or(|when| when.elapsed() >= REFUSALS) {
            warn!(
                "a second front-end was refused: this daemon serves one at a time ({} refused so far)",
                self.refused
            );
            self.refusal_logged = Some(Instant::now());
        }
    }

    fn connect_as_client(&mut self) -> Result<(), ServerError> {
        let Endpoint::Client(path) = &self.endpoint else { return Ok(()) };
        if self.connection.is_some() || self.next_connect > Instant::now() {
            return Ok(());
        }
        // Also after a connection that ends at once.
        self.next_connect = Instant::now() + RETRY;
        match connect(path) {
            Ok(stream) => {
                self.waiting_logged = false;
                self.connect(stream)
            }
            Err(error) => {
                if !self.waiting_logged {
                    info!("waiting for a front-end at {}: {error}", path.display());
                    self.waiting_logged = true;
                }
                Ok(())
            }
        }
    }

    fn connect(&mut self, stream: UnixStream) -> Result<(), ServerError> {
        let channel = Channel::new(stream)?;
        let edge = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        self.poller.add(&channel, edge, Token::Connection)?;
        info!("front-end connected");
        let session = Session::new(&self.device, self.max_ring_size);
        self.connection = Some(Connection { channel, session, control: None });
        self.pending.messages = true;
        Ok(())
    }

    /// Ends the connection, if there is one.
    fn disconnect(&mut self, why: &str) -> Result<(), ServerError> {
        let Some(connection) = self.connection.take() else { return Ok(()) };
        connection.session.close(&mut self.device)?;
        self.poller.remove(&connection.channel)?;
        if let Some(kick) = connection.control {
            self.poller.remove(&*kick)?;
        }
        info!("front-end gone: {why}");
        let counters = (0..self.device.pairs()).map(|pair| (pair, self.device.counters(pair)));
        for (pair, counters) in counters.filter(|(_, counters)| counters.all().any(|(_, count)| count > 0)) {
            info!("queue pair {pair} so far: {counters}");
        }
        Ok(())
    }

    fn serve(&mut self) -> Result<(), ServerError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        match connection.serve(&mut self.device)? {
            Service::More => self.pending.messages = true,
            Service::Idle => {}
            Service::Ended(why) => self.disconnect(&why)?,
        }
        Ok(())
    }

    fn serve_control(&mut self) {
        if let Some(connection) = &mut self.connection {
            self.pending.control = connection.session.control_kicked(&mut self.device);
        }
    }

    /// The control queue comes and goes with what the front-end sets up.
    fn watch_control(&mut self) -> Result<(), ServerError> {
        let Some(connection) = &mut self.connection else { return Ok(()) };
        let now = connection.session.control_kick();
        if now.map(Arc::as_ptr) == connection.control.as_ref().map(Arc::as_ptr) {
            return Ok(());
        }
        if let Some(old) = connection.control.take() {
            self.poller.remove(&*old)?;
        }
        if let Some(kick) = now {
            match self.poller.add(&**kick, EventFlags::IN | EventFlags::ET, Token::ControlKick) {
                Ok(()) => connection.control = Some(kick.clone()),
                Err(error) => warn!("cannot wait for the control queue's kick descriptor: {error}"),
            }
            // It may have been kicked before.
            self.pending.control = true;
        }
        Ok(())
    }

    /// Opens an interface that is gone again, as soon as it can be.
    fn check_port(&mut self) -> Result<(), ServerError> {
        if self.reopen.is_none_or(|when| when > Instant::now()) {
            return Ok(());
        }
        match self.device.reopen_port() {
            Ok(()) => {
                self.reopen = None;
                self.reopen_failure.clear();
                if let Some(connection) = &mut self.connection {
                    connection.session.port_changed(&mut self.device)?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                warn!(
                    "{}: its descriptors came from whoever started this daemon: start it again with new ones",
                    self.device.port_name()
                );
                self.reopen = None;
            }
            Err(error) => {
                let failure = error_chain(&error);
                if failure != self.reopen_failure {
                    warn!("{} cannot be opened again yet: {failure}", self.device.port_name());
                    self.reopen_failure = failure;
                }
                self.reopen = Some(Instant::now() + RETRY);
            }
        }
        Ok(())
    }
}

impl Connection {
    /// Serves the messages that have come, and sends the replies.
    fn serve(&mut self, device: &mut NetDevice) -> Result<Service, DeviceError> {
        for _ in 0..MESSAGES {
            match self.step(device) {
                Ok(true) => {}
                Ok(false) => return Ok(Service::Idle),
                Err(Ended::Channel(error @ (ChannelError::Closed | ChannelError::ClosedInside))) => {
                    return Ok(Service::Ended(error.to_string()));
                }
                Err(Ended::Channel(error)) => {
                    warn!("the connection is closed: {}", error_chain(&error));
                    return Ok(Service::Ended("protocol error".to_owned()));
                }
                Err(Ended::Session(SessionError::Device(error))) => return Err(error),
                Err(Ended::Session(error)) => {
                    warn!("the connection is closed, a request is refused: {}", error_chain(&error));
                    return Ok(Service::Ended("request refused".to_owned()));
                }
            }
        }
        Ok(Service::More)
    }

    /// One message; `false` when there is none, or the front-end has not read its last reply.
    fn step(&mut self, device: &mut NetDevice) -> Result<bool, Ended> {
        if !self.channel.flush()? {
            return Ok(false);
        }
        let Some(message) = self.channel.receive()? else { return Ok(false) };
        if let Some(reply) = self.session.handle(message, device)? {
            self.channel.send(&reply)?;
        }
        Ok(true)
    }
}

/// What ended a connection.
enum Ended {
    Channel(ChannelError),
    Session(SessionError),
}

impl From<ChannelError> for Ended {
    fn from(error: ChannelError) -> Ended {
        Ended::Channel(error)
    }
}

impl From<SessionError> for Ended {
    fn from(error: SessionError) -> Ended {
        Ended::Session(error)
    }
}
