//! What a command of the control vring changes about the data path is carried out by a thread of its own: the
//! one that reads the commands, and so a guest's bytes, makes neither threads nor descriptors.
//!
//! It is there as long as the control vring is served.

use std::io;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use volt_virtio::features::Features;

use crate::sandbox;
use crate::sandbox::lists::MAIN;

/// What a command changes about the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The driver uses the first N pairs from now on.
    Pairs(u16),
    /// These receive offloads, of those that it acknowledged, are in force from now on.
    Offloads(Features),
}

type Asked = (Change, SyncSender<()>);

/// Has changes carried out, until it is dropped.
pub(super) struct Changes {
    asked: Option<Sender<Asked>>,
    thread: Option<JoinHandle<()>>,
}

impl Changes {
    /// Starts the thread that calls `apply`. Called by one that may make threads.
    ///
    /// # Errors
    ///
    /// When there can be no thread.
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

    /// Has `change` carried out, and waits for that.
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
