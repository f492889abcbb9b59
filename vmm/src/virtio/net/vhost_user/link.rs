//! The device's interface to the thread of its back-end.
//!
//! [`Link::spawn`] gives the thread ([`BackendThread`]) the first session. [`Link::start`] passes an
//! activation to it and returns at once. [`Link::stop`] takes the activation back and waits [`STOP_LIMIT`] at
//! most. Then it shuts the connection down, which ends any wait of the thread.

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

/// The device's interface to the thread. Dropping it ends the thread and closes the connection.
pub struct Link {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    started: bool,
}

/// Makes the thread check its activation again.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    /// Reports a change of the active pairs or offloads.
    pub fn wake(&self) {
        self.0.wake.notify();
    }
}

/// Shows the state of the link, from any thread and at any time.
#[derive(Clone)]
pub struct Monitor(Arc<Shared>);

impl Monitor {
    /// Returns the state of the link.
    pub fn state(&self) -> LinkState {
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Starts the thread with a session after its handshake. `label` starts its log lines.
    ///
    /// # Errors
    ///
    /// Fails if the process may have no more threads or files.
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

    /// Returns a view of the link's state.
    pub fn monitor(&self) -> Monitor {
        Monitor(self.shared.clone())
    }

    /// Returns a handle that wakes the thread after a change.
    pub fn waker(&self) -> Waker {
        Waker(self.shared.clone())
    }

    /// Passes an activation to the thread. The thread sets up the back-end with it, now and after each
    /// reconnection.
    pub fn start(&mut self, setup: Setup) {
        self.started = true;
        self.send(Command::Start(Box::new(setup)));
    }

    /// Takes the activation back, and waits until neither thread nor back-end use it. A back-end that does
    /// not stop in time loses its connection.
    pub fn stop(&mut self) {
        if !std::mem::take(&mut self.started) {
            return;
        }
        let (done, wait) = mpsc::channel();
        // During a handshake the back-end has no vrings, so there is no need to wait.
        let grace = if self.monitor().state().is_connected() { STOP_LIMIT } else { Duration::ZERO };
        self.send(Command::Stop { done });
        if wait.recv_timeout(grace) == Err(RecvTimeoutError::Timeout) {
            self.shared.cancellation.cancel();
            // This is soon. An error is the end of the thread.
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
            error!(event = "thread_panicked"; "a network device's thread ended with a panic");
        }
    }
}
