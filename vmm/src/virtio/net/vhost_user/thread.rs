//! The thread between a network device and its back-end.
//!
//! It holds the session and the activation. It sets up the back-end at each activation, tells it which pairs
//! are active, stops it at each reset, and watches it. The back-end counts as lost if it closes the
//! connection, fails in a request, or does not answer the one that is sent every [`PROBE_EVERY`]. Then the
//! thread tries to reconnect, forever, and sets up the new connection with the present state of the guest's
//! device.

use std::io;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{debug, error, info, warn};
use thiserror::Error;
use volt_net::config::{NetConfig, STATUS_LINK_UP};
use volt_virtio::error_chain;
use volt_virtio::poller::{EventFlags, Poller};

use crate::faults::{self, LogBudget};
use crate::virtio::net::vhost_user::connection;
use crate::virtio::net::vhost_user::error::SessionError;
use crate::virtio::net::vhost_user::link_state::{Backoff, LinkState};
use crate::virtio::net::vhost_user::session::Session;
use crate::virtio::net::vhost_user::setup::Setup;
use crate::virtio::net::vhost_user::shared::{Command, Requirements, STOP_LIMIT, Shared};

/// Interval of the requests that only check that the back-end answers.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// A connection that is lost before this is unstable. The next attempt is delayed.
const STEADY: Duration = Duration::from_millis(100);

/// Why an attempt to reconnect failed.
#[derive(Debug, Error)]
enum RetryError {
    #[error("cannot connect")]
    Connect(#[source] volt_program::unix::ConnectError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("the guest resets its device")]
    Cut,
    #[error("the host is out of resources")]
    Host(#[from] io::Error),
}

impl RetryError {
    /// Whether this error is typical of an absent or dying back-end, and therefore not logged.
    fn is_absence(&self) -> bool {
        match self {
            RetryError::Connect(error) => connection::is_absent(error),
            RetryError::Session(error) => matches!(error, SessionError::Closed { .. }),
            RetryError::Cut => true,
            RetryError::Host(_) => false,
        }
    }
}

enum BackEnd {
    Connected {
        session: Session,
        since: Instant,
        probe_at: Instant,
    },
    Away {
        since: Instant,
        retry_at: Instant,
        /// The last refusal that was logged.
        logged: String,
    },
}

/// The event that woke the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Command,
    Peer,
    Request,
}

/// The state of the thread.
pub(super) struct BackendThread {
    label: String,
    required: Requirements,
    shared: Arc<Shared>,
    commands: Receiver<Command>,
    poller: Poller<Token>,
    back_end: BackEnd,
    active: Option<Box<Setup>>,
    backoff: Backoff,
    budget: LogBudget,
}

impl BackendThread {
    pub(super) fn new(
        label: String,
        session: Session,
        required: Requirements,
        shared: Arc<Shared>,
        commands: Receiver<Command>,
    ) -> io::Result<BackendThread> {
        let mut poller = Poller::new()?;
        poller.add(&shared.wake, EventFlags::IN, Token::Command)?;
        shared.cancellation.attach(session.stream())?;
        watch(&mut poller, &session)?;
        let now = Instant::now();
        Ok(BackendThread {
            label,
            required,
            shared,
            commands,
            poller,
            back_end: BackEnd::Connected { session, since: now, probe_at: now + PROBE_EVERY },
            active: None,
            backoff: Backoff::default(),
            budget: LogBudget::new(),
        })
    }

    pub(super) fn run(mut self) {
        loop {
            let (mut ended, mut asked) = (false, false);
            let waited = self.poller.wait(Some(self.timeout()), |token, _| match token {
                // Commands are checked in each round.
                Token::Command => {}
                Token::Peer => ended = true,
                Token::Request => asked = true,
            });
            if let Err(error) = waited {
                return error!(
                    event = "device_wait_failed", device:% = self.label;
                    "{}: stopped: waiting failed: {error}", self.label
                );
            }
            // Before the end of a connection, which this process itself causes at the end of the device.
            if self.take_commands() {
                return;
            }
            if ended {
                self.lose("it closed the connection");
            } else if asked {
                self.take_requests();
            }
            self.follow();
            self.keep_time();
        }
    }

    /// Returns the time until something is due.
    fn timeout(&self) -> Duration {
        let due = match &self.back_end {
            BackEnd::Connected { probe_at, .. } => *probe_at,
            BackEnd::Away { retry_at, .. } => {
                self.link_down_at().map_or(*retry_at, |down_at| down_at.min(*retry_at))
            }
        };
        due.saturating_duration_since(Instant::now())
    }

    /// Carries out the device's commands. Returns true at the end.
    fn take_commands(&mut self) -> bool {
        self.shared.wake.clear();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Start(setup)) => self.start(setup),
                Ok(Command::Stop { done }) => {
                    self.stop();
                    let _ = done.send(());
                }
                Ok(Command::Quit) | Err(TryRecvError::Disconnected) => return true,
                Err(TryRecvError::Empty) => return false,
            }
        }
    }

    fn start(&mut self, setup: Box<Setup>) {
        if let BackEnd::Connected { session, .. } = &mut self.back_end {
            match session.start(&setup) {
                Ok(()) if faults::may_log() => {
                    info!(
                        event = "back_end_serves", device:% = self.label;
                        "{}: the back-end serves {} vrings", self.label, setup.vrings.len()
                    );
                }
                Ok(()) => {}
                Err(error) => self.lose_for(&error),
            }
        }
        self.active = Some(setup);
    }

    fn stop(&mut self) {
        let Some(setup) = self.active.take() else { return };
        if let BackEnd::Connected { session, .. } = &mut self.back_end
            && let Err(error) = session.stop(&setup)
        {
            self.lose_for(&error);
        }
    }

    /// Handles the back-end's own requests, and updates the guest's link.
    fn take_requests(&mut self) {
        let BackEnd::Connected { session, .. } = &mut self.back_end else { return };
        match session.take_requests() {
            Ok(()) => {
                let up = session.link_up();
                self.set_link(up);
            }
            Err(error) => self.lose_for(&error),
        }
    }

    /// Tells the back-end the driver's changes.
    fn follow(&mut self) {
        if let (BackEnd::Connected { session, .. }, Some(setup)) = (&mut self.back_end, &self.active)
            && let Err(error) = session.follow(setup)
        {
            self.lose_for(&error);
        }
    }

    /// Does everything that is due.
    fn keep_time(&mut self) {
        let now = Instant::now();
        match &mut self.back_end {
            BackEnd::Connected { session, probe_at, .. } if *probe_at <= now => match session.probe() {
                Ok(()) => *probe_at = Instant::now() + PROBE_EVERY,
                Err(error) => self.lose_for(&error),
            },
            BackEnd::Away { retry_at, .. } if *retry_at <= now => match self.attempt() {
                Ok(session) => self.found(session),
                Err(error) => self.try_later(&error),
            },
            _ => {}
        }
        if self.link_down_at().is_some_and(|at| at <= Instant::now()) {
            self.set_link(false);
        }
    }

    fn lose_for(&mut self, error: &SessionError) {
        if self.shared.cancellation.has_cancelled() {
            let limit = STOP_LIMIT.as_secs();
            return self.lose(&format!("it did not stop within {limit} s when the guest reset its device"));
        }
        self.lose(&error_chain(error));
    }

    /// Handles a lost back-end. The guest is not notified: its device stays, and frames wait in its vrings.
    fn lose(&mut self, why: &str) {
        let BackEnd::Connected { session, since: found, .. } = &self.back_end else { return };
        if let Err(error) = self.poller.remove(session) {
            debug!("{}: a descriptor cannot be removed from the poll set: {error}", self.label);
        }
        self.shared.cancellation.detach();
        if found.elapsed() >= STEADY {
            self.backoff.reset();
        }
        let since = Instant::now();
        // Closes the connection, so that a back-end that still runs releases the guest's memory.
        self.back_end =
            BackEnd::Away { since, retry_at: since + self.backoff.delay(), logged: String::new() };
        self.state().lost(since);
        if self.budget.take() {
            warn!(
                event = "back_end_gone", device:% = self.label;
                "{}: lost the back-end ({why}): the guest runs without this network until volt-vmm can \
                 reconnect",
                self.label
            );
        }
    }

    /// Makes one attempt to connect to a back-end that can serve the guest.
    fn attempt(&mut self) -> Result<Session, RetryError> {
        let stream = connection::try_connect(&self.required.socket).map_err(RetryError::Connect)?;
        if !self.shared.cancellation.attach(&stream)? {
            return Err(RetryError::Cut);
        }
        let mut session = Session::open(stream, self.required.pairs)?;
        match &self.active {
            Some(setup) => session.start(setup)?,
            None => {
                let missing = self.required.offered.difference(session.features());
                if !missing.is_empty() {
                    return Err(SessionError::Offered(missing).into());
                }
            }
        }
        watch(&mut self.poller, &session)?;
        Ok(session)
    }

    fn try_later(&mut self, error: &RetryError) {
        self.shared.cancellation.detach();
        let text = error_chain(error);
        debug!("{}: {text}", self.label);
        let delay = self.backoff.delay();
        let BackEnd::Away { retry_at, logged, .. } = &mut self.back_end else { return };
        *retry_at = Instant::now() + delay;
        if !error.is_absence() && *logged != text && self.budget.take() {
            warn!(
                event = "back_end_not_taken", device:% = self.label;
                "{}: a new back-end cannot be used, retrying: {text}", self.label
            );
            *logged = text;
        }
    }

    fn found(&mut self, session: Session) {
        let now = Instant::now();
        let (theirs, before, up) = (session.mtu(), self.required.mtu, session.link_up());
        self.back_end = BackEnd::Connected { session, since: now, probe_at: now + PROBE_EVERY };
        self.set_link(up);
        let (away, losses) = {
            let mut state = self.state();
            (state.found(now), state.losses)
        };
        if self.budget.take() {
            let seconds = away.as_secs_f32();
            info!(
                event = "back_end_back", device:% = self.label, seconds, losses;
                "{}: the back-end is back after {seconds:.3} s; disconnections so far: {losses}", self.label
            );
            if theirs != before {
                let text = |mtu: Option<u16>| mtu.map_or("none".to_owned(), |mtu| mtu.to_string());
                let (theirs, before) = (text(theirs), text(before));
                warn!(
                    event = "back_end_mtu_changed", device:% = self.label;
                    "{}: its MTU is {theirs} and was {before}; the guest keeps the old one", self.label
                );
            }
        }
    }

    /// Returns when to set the guest's link down, unless it is down.
    fn link_down_at(&self) -> Option<Instant> {
        match self.back_end {
            BackEnd::Away { since, .. } if self.config().status & STATUS_LINK_UP != 0 => {
                since.checked_add(self.required.link_down_after?)
            }
            _ => None,
        }
    }

    /// Sets the guest's link up or down (virtio 1.2, 5.1.4), and logs a change.
    fn set_link(&self, up: bool) {
        let mut config = self.config();
        let status = if up { config.status | STATUS_LINK_UP } else { config.status & !STATUS_LINK_UP };
        if std::mem::replace(&mut config.status, status) == status {
            return;
        }
        drop(config);
        if let Some(setup) = &self.active {
            setup.interrupt.config_changed();
        }
        if self.budget.take() {
            info!(
                event = "link_changed", device:% = self.label, up;
                "{}: the guest sees its link {}", self.label, if up { "up" } else { "down" }
            );
        }
    }

    fn config(&self) -> MutexGuard<'_, NetConfig> {
        self.shared.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, LinkState> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches the connection only for its end: a back-end has a channel for its own requests. Without one, they
/// are ignored.
fn watch(poller: &mut Poller<Token>, session: &Session) -> io::Result<()> {
    if let Some(channel) = session.channel() {
        poller.add(channel, EventFlags::IN, Token::Request)?;
    }
    poller.add(session, EventFlags::RDHUP, Token::Peer)
}
