//! Reports of workers to the device's owner, who must react: the port is gone, or a driver broke its ring.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use volt_virtio::notify::Notifier;

/// Flags that workers set and the device's owner takes.
#[derive(Clone, Debug)]
pub struct Trouble {
    flags: Arc<Flags>,
    wake: Arc<Notifier>,
}

#[derive(Debug)]
struct Flags {
    port_gone: AtomicBool,
    /// One for each vring.
    broken: Vec<AtomicBool>,
}

impl Trouble {
    /// Creates the flags for a device with so many data vrings. `wake` is notified of each report.
    pub fn new(vrings: usize, wake: Arc<Notifier>) -> Trouble {
        let broken = (0..vrings).map(|_| AtomicBool::new(false)).collect();
        Trouble { flags: Arc::new(Flags { port_gone: AtomicBool::new(false), broken }), wake }
    }

    /// Reports that the interface must be reopened.
    pub(crate) fn port_is_gone(&self) {
        self.flags.port_gone.store(true, Relaxed);
        self.wake.notify();
    }

    /// Reports that vring `vring` is not served any more.
    pub(crate) fn ring_is_broken(&self, vring: usize) {
        if let Some(broken) = self.flags.broken.get(vring) {
            broken.store(true, Relaxed);
        }
        self.wake.notify();
    }

    /// Whether the port was found gone since the last call.
    pub fn take_port_gone(&self) -> bool {
        self.flags.port_gone.swap(false, Relaxed)
    }

    /// Returns the vrings that were found broken since the last call.
    pub fn take_broken(&self) -> Vec<usize> {
        let vrings = self.flags.broken.iter().enumerate();
        vrings.filter(|(_, broken)| broken.swap(false, Relaxed)).map(|(vring, _)| vring).collect()
    }
}
