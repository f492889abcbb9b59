//! Changes of the data path by commands of the control vring. A separate thread carries them out, so that the
//! thread that reads the commands, and therefore a guest's bytes, creates neither threads nor descriptors.
//!
//! The thread exists while the control vring is served.

use std::io;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use volt_virtio::features::Features;

use crate::sandbox;
use crate::sandbox::lists::MAIN;

/// A change of the data path by a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The driver uses the first N pairs from now on.
    Pairs(u16),
    /// These receive offloads are in force from now on, a subset of the acknowledged ones.
    Offloads(Features),
}

type Asked = (Change, SyncSender<()>);

/// Carries out changes until it is dropped.
pub(super) struct Changes {
    asked: Option<Sender<Asked>>,
    thread: Option<JoinHandle<()>>,
}

impl Changes {
    /// Starts the thread that calls `apply`. The caller must be allowed to create threads.
    ///
    /// # Errors
    ///
    /// Fails if no thread can be created.
    pub(super) fn new(mut apply: impl FnMut(Change) + Send + 'static) -> io::Result<Changes> {
        let (asked, received) = channel::<Asked>();
        let thread = sandbox::spawn(&MAIN, "net-change", move || {
            for (change, done) in received {
                apply(change);
                let _ = done.send(());
            }
        })?;
        Ok(Changes { asked: Some(asked), thread: Some(thread) })
    }

    /// Carries out `change`, and waits for it.
    pub(super) fn carry_out(&self, change: Change) {
        let (done, answer) = sync_channel(1);
        let asked = self.asked.as_ref().expect("until it is dropped");
        // A thread that panics ends the process.
        if asked.send((change, done)).is_ok() {
            let _ = answer.recv();
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.asked = None;
        self.thread.take().map(JoinHandle::join);
    }
}
