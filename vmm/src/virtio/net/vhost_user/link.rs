//! The device's end of the thread that looks after the back-end.
//!
//! [`Link::spawn`] gives the thread ([`BackendThread`]) the first session. [`Link::start`] hands it an
//! activation and returns at once; [`Link::stop`] takes it back and waits, for [`STOP_LIMIT`] at most: then
//! the connection is shut down, which ends whatever the thread waits for.

use std::io;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use log::error;
use volt_net::config::NetConfig;
use volt_virtio::notify::Notifier;

use crate::sandbox::{self, lists::BACK_END};
use crate::virtio::net::vhost_user::connection::Cancellation;
use crate::virtio::net::vhost_user::link_state::LinkState;
use crate::virtio::net::vhost_user::session::Session;
use crate::virtio::net::vhost_user::setup::Setup;
use crate::virtio::net::vhost_user::shared::{Command, Requirements, STOP_LIMIT, Shared};
use crate::virtio::net::vhost_user::thread::BackendThread;

/// The device's end of the thread; dropping it ends the thread and closes the connection.
pub struct Link {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    started: bool,
}

/// Makes the thread look at its activation again.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// Says that the number of active pairs is another.
    pub fn wake(&self) {
        self.0.wake.notify();
    }
}

/// Shows how the link is, from any thread and for as long as one likes.
#[derive(Clone)]
pub struct Monitor(Arc<Shared>);

impl Monitor {
    /// How the link is and was.
    pub fn state(&self) -> LinkState {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Starts the thread on a session after its handshake; `label` begins its log lines.
    ///
    /// # Errors
    ///
    /// When the process may have no more threads or files.
    pub fn spawn(
        label: String,
        session: Session,
        required: Requirements,
        config: Arc<Mutex<NetConfig>>,
    ) -> io::Result<Link> {
        let (commands, receiver) = mpsc::channel();
        let shared = Arc::new(Shared {
            config,
            state: Mutex::default(),
            cancellation: Cancellation::default(),
            wake: Notifier::eventfd()?,
        });
        let thread = BackendThread::new(label, session, required, shared.clone(), receiver)?;
        let thread = sandbox::spawn(&BACK_END, "net", move || thread.run())?;
        Ok(Link { commands, shared, thread: Some(thread), started: false })
    }

    /// For who wants to know how the link is and was.
    pub fn monitor(&self) -> Monitor {
        Monitor(self.shared.clone())
    }

    /// For who changes what the thread has.
    pub fn waker(&self) -> Waker {
        Waker(self.shared.clone())
    }

    /// Gives the thread an activation; the back-end is set up from it later, and at each return.
    pub fn start(&mut self, setup: Setup) {
        self.started = true;
        self.send(Command::Start(Box::new(setup)));
    }

    /// Takes the activation away, and waits until neither thread nor back-end use it. A back-end that
    /// does not give it back in time loses its connection.
    pub fn stop(&mut self) {
        if !std::mem::take(&mut self.started) {
            return;
        }
        let (done, wait) = mpsc::channel();
        // Whoever is still shaking hands has no vrings, so nothing has to be waited for.
        let grace = if self.monitor().state().is_connected() { STOP_LIMIT } else { Duration::ZERO };
        self.send(Command::Stop { done });
        if wait.recv_timeout(grace) == Err(RecvTimeoutError::Timeout) {
            self.shared.cancellation.cancel();
            // Soon now. An error is the end of the thread.
            let _ = wait.recv();
            self.shared.cancellation.allow();
        }
    }

    fn send(&self, command: Command) {
        // An error is the end of the thread.
        let _ = self.commands.send(command);
        self.shared.wake.notify();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.send(Command::Quit);
        self.shared.cancellation.cancel();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!(event = "thread_panicked"; "a network device's thread ended in a panic");
        }
    }
}
