//! Test support: a half of a queue pair between a driver and one end of a socket pair.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};
use volt_virtio::notify::Notifier;
use volt_virtio::ring::RingError;
use volt_virtio::testing::Driver;

use crate::batch::Turn;
use crate::counters::Counters;
use crate::health::Health;
use crate::port::queue::FdQueue;
use crate::rx::Rx;
use crate::trouble::Trouble;
use crate::tx::Tx;
use crate::vring::Vring;

/// For operations that take milliseconds on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done`.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns a frame with header: `len` bytes after 12 zeroes, different for each `seed`.
pub(crate) fn frame(len: usize, seed: usize) -> Vec<u8> {
    let payload = (0..len).map(|i| (i * 31 + seed * 7 + i / 256) as u8);
    [0; 12].into_iter().chain(payload).collect()
}

/// The far end of the port.
pub(crate) struct Wire(UnixDatagram);

impl Wire {
    pub(crate) fn receive(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 0x2_0000];
        let len = self.0.recv(&mut bytes).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    pub(crate) fn send(&self, frame: &[u8]) {
        assert_eq!(self.0.send(frame).unwrap(), frame.len());
    }
}

pub(crate) fn notifier() -> Arc<Notifier> {
    Arc::new(Notifier::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap()).unwrap())
}

/// The objects that a half needs to run.
pub(crate) struct Rig {
    pub(crate) queue: Arc<FdQueue>,
    pub(crate) health: Health,
    pub(crate) trouble: Trouble,
    pub(crate) counters: Counters,
}

impl Rig {
    pub(crate) fn new() -> (Rig, Wire) {
        // On a busy machine, stopping a worker interrupts it, in any test.
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let queue = Arc::new(FdQueue::new(OwnedFd::from(ours)).unwrap());
        let trouble = Trouble::new(2, notifier());
        let health = Health::new("wire".to_owned(), trouble.clone());
        (Rig { queue, health, trouble, counters: Counters::default() }, Wire(theirs))
    }

    pub(crate) fn vring(driver: &Driver, index: usize) -> Vring {
        Vring {
            index,
            ring: driver.ring(),
            kick: notifier(),
            call: Some(notifier()),
            err: None,
            bad_chain_logged: false,
            watch: None,
        }
    }

    pub(crate) fn tx(&mut self, tx: &mut Tx) -> Result<Turn, RingError> {
        tx.run(&*self.queue, &mut self.health, &self.counters)
    }

    pub(crate) fn rx(&mut self, rx: &mut Rx) -> Result<Turn, RingError> {
        rx.run(&*self.queue, &mut self.health, &self.counters)
    }
}
