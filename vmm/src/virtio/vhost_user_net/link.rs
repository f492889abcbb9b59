//! The thread between a network device and its back-end.
//!
//! [`Link::spawn`] gives it the session. [`Link::start`] hands it an activation and returns at once;
//! [`Link::stop`] takes it back and waits. In between it serves the control vring, and watches the socket:
//! when the back-end goes, for whatever reason, the device stays as it is and carries nothing.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};

use log::{debug, error, info, warn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::faults;
use crate::virtio::ring::Ring;
use crate::virtio::vhost_user_net::CONTROL_VRING_SIZE;
use crate::virtio::vhost_user_net::queue::Requests;
use crate::virtio::vhost_user_net::session::{Session, SessionError, Setup};

/// What the thread keeps from activation to reset.
pub struct Active {
    /// What the back-end is told.
    pub setup: Setup,
    /// The control vring, when the driver has one.
    pub control: Option<Control>,
}

/// The control vring and its server.
pub struct Control {
    /// The vring.
    pub ring: Ring,
    /// Its server.
    pub requests: Requests,
}

enum Command {
    Start(Box<Active>),
    Stop { done: Sender<()> },
    Quit,
}

/// What woke the thread.
#[derive(Clone, Copy)]
enum Token {
    Command,
    Peer,
    Control,
}

impl Token {
    const ALL: [Token; 3] = [Token::Command, Token::Peer, Token::Control];
}

/// The device's end of the thread; dropping it ends the thread and closes the connection.
pub struct Link {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
    started: bool,
}

impl Link {
    /// Starts the thread on a session after its handshake; `label` begins its log lines.
    ///
    /// # Errors
    ///
    /// When the process may have no more threads or files.
    pub fn spawn(label: String, session: Session) -> io::Result<Link> {
        let (commands, receiver) = mpsc::channel();
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let epoll = Epoll::new()?;
        watch(&epoll, wake.as_raw_fd(), EventSet::IN, Token::Command)?;
        // Only for its end: a back-end that says something unasked is not listened to.
        watch(&epoll, session.as_raw_fd(), EventSet::READ_HANG_UP, Token::Peer)?;
        let mut state = State {
            label,
            epoll,
            wake: wake.clone(),
            commands: receiver,
            session: Some(session),
            active: None,
        };
        let thread = thread::Builder::new().name("net".to_owned()).spawn(move || state.run())?;
        Ok(Link { commands, wake, thread: Some(thread), started: false })
    }

    /// Gives the thread an activation; the back-end is set up from it later.
    pub fn start(&mut self, active: Active) {
        self.started = true;
        self.send(Command::Start(Box::new(active)));
    }

    /// Takes the activation away, and waits until neither thread nor back-end use it.
    pub fn stop(&mut self) {
        if std::mem::take(&mut self.started) {
            let (done, wait) = mpsc::channel();
            self.send(Command::Stop { done });
            // Bounded, because everything is that the thread does. An error is the end of the thread.
            let _ = wait.recv();
        }
    }

    fn send(&self, command: Command) {
        // An error is the end of the thread.
        let _ = self.commands.send(command);
        let _ = self.wake.write(1);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.send(Command::Quit);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("a network device's thread ended in a panic");
        }
    }
}

fn watch(epoll: &Epoll, fd: RawFd, events: EventSet, token: Token) -> io::Result<()> {
    epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, token as u64))
}

/// The thread's own.
struct State {
    label: String,
    epoll: Epoll,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    /// None once the back-end has gone.
    session: Option<Session>,
    active: Option<Box<Active>>,
}

impl State {
    fn run(&mut self) {
        let mut events = [EpollEvent::default(); Token::ALL.len()];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return error!("{}: stopped, as waiting failed: {error}", self.label),
            };
            let mut quit = false;
            for event in &events[..count] {
                match Token::ALL.into_iter().find(|token| *token as u64 == event.data()) {
                    Some(Token::Command) => quit = self.take_commands(),
                    Some(Token::Peer) => self.lose("it closed the connection"),
                    Some(Token::Control) => self.serve_control(),
                    None => {}
                }
            }
            if quit {
                return;
            }
        }
    }

    /// Carries out what the device asked for; true at the end.
    fn take_commands(&mut self) -> bool {
        let _ = self.wake.read();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Start(active) => self.start(active),
                Command::Stop { done } => {
                    self.stop();
                    let _ = done.send(());
                }
                Command::Quit => return true,
            }
        }
        false
    }

    fn start(&mut self, active: Box<Active>) {
        if let Some(control) = &active.control {
            let watched = watch(&self.epoll, control.ring.kick().as_raw_fd(), EventSet::IN, Token::Control);
            if let Err(error) = watched {
                error!("{}: its control queue is not served: {error}", self.label);
                control.ring.give_up();
            }
        }
        if let Some(session) = &mut self.session {
            match session.start(&active.setup) {
                Ok(()) if faults::may_log() => {
                    info!("{}: the back-end serves {} vrings", self.label, active.setup.vrings.len());
                }
                Ok(()) => {}
                Err(error) => self.lose_for(&error),
            }
        }
        self.active = Some(active);
    }

    fn stop(&mut self) {
        let Some(active) = self.active.take() else { return };
        if let Some(control) = &active.control {
            self.unwatch(control.ring.kick().as_raw_fd());
        }
        if let Some(session) = &mut self.session
            && let Err(error) = session.stop(&active.setup)
        {
            self.lose_for(&error);
        }
    }

    fn serve_control(&mut self) {
        let Some(active) = &mut self.active else { return };
        let Active { setup, control: Some(control) } = &mut **active else { return };
        let _ = control.ring.kick().read();
        let mut lost = None;
        // Bounded, so that a guest that never stops asking does not keep the thread from its commands.
        for _ in 0..CONTROL_VRING_SIZE {
            let served = control.ring.serve(|chain| {
                control.requests.serve(chain, |pairs| {
                    setup.active_pairs = pairs;
                    lost = self.session.as_mut().and_then(|session| session.enable(setup).err());
                })
            });
            match served {
                Ok(true) => {}
                Ok(false) => return self.lose_if(lost),
                Err(error) => {
                    if faults::may_log() {
                        error!("{}: control queue stopped: {}", self.label, faults::chain(&error));
                    }
                    control.ring.give_up();
                    let kick = control.ring.kick().as_raw_fd();
                    self.unwatch(kick);
                    return self.lose_if(lost);
                }
            }
        }
        let _ = control.ring.kick().write(1);
        self.lose_if(lost);
    }

    fn unwatch(&self, fd: RawFd) {
        if let Err(error) = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default()) {
            debug!("{}: {error} when a descriptor is taken out of the poll set", self.label);
        }
    }

    fn lose_if(&mut self, error: Option<SessionError>) {
        if let Some(error) = error {
            self.lose_for(&error);
        }
    }

    fn lose_for(&mut self, error: &SessionError) {
        self.lose(&faults::chain(error));
    }

    /// The back-end is no more. The guest is not told: its device stays, and frames wait in its vrings.
    fn lose(&mut self, why: &str) {
        if let Some(session) = self.session.take() {
            self.unwatch(session.as_raw_fd());
            warn!("{}: the back-end has gone ({why}): the guest runs on without this network", self.label);
        }
    }
}
