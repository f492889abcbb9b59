//! One half of a queue pair, between a fuzzed driver and the end of a socket pair.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use volt_net::counters::Counters;
use volt_net::health::Health;
use volt_net::port::queue::FdQueue;
use volt_net::trouble::Trouble;
use volt_net::vring::Vring;
use volt_virtio::notify::Notifier;
use volt_virtio::ring::Ring;

use super::guest::{Driver, Guest};

/// The environment of a half, and the other end of its port.
pub(super) struct Rig {
    pub(super) queue: FdQueue,
    pub(super) health: Health,
    pub(super) counters: Counters,
    pub(super) wire: UnixDatagram,
}

impl Rig {
    pub(super) fn new() -> Rig {
        let (ours, wire) = UnixDatagram::pair().expect("a socket pair");
        wire.set_nonblocking(true).expect("a socket");
        Rig {
            queue: FdQueue::new(OwnedFd::from(ours)).expect("a socket"),
            health: Health::new("wire".to_owned(), Trouble::new(2, notifier())),
            counters: Counters::default(),
            wire,
        }
    }

    /// Returns the next frame that the device has sent, header first.
    pub(super) fn receive(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 0x1_1000];
        let len = self.wire.recv(&mut bytes).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }
}

pub(super) fn notifier() -> Arc<Notifier> {
    Arc::new(Notifier::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd")).expect("an eventfd"))
}

/// Starts the driver's ring; returns `None` if a border of memory cuts it.
pub(super) fn vring(guest: &Guest, driver: &Driver) -> Option<Vring> {
    let ring = Ring::start(guest.memory.clone(), driver.layout, driver.features).ok()?;
    Some(Vring {
        index: 0,
        ring,
        kick: notifier(),
        call: Some(notifier()),
        err: None,
        bad_chain_logged: false,
        watch: None,
    })
}
