//! A queue pair: one receive and one transmit half over one queue of the port, owned by one worker.

use std::sync::Arc;

use log::warn;
use volt_virtio::notify::Notifier;
use volt_virtio::ring::RingError;

use crate::batch::Turn;
use crate::config::Mac;
use crate::counters::PairCounters;
use crate::health::Health;
use crate::port::PortQueue;
use crate::report::{PairReport, RingReport};
use crate::rx::Rx;
use crate::trouble::Trouble;
use crate::tx::Tx;
use crate::unshared::UnsharedCheck;
use crate::vring::Vring;

/// A queue pair that can run. Either half may be missing: it is not started, not enabled, or broken by the
/// driver.
#[derive(Debug)]
pub struct Pair {
    /// The receive half.
    pub rx: Option<Rx>,
    /// The transmit half.
    pub tx: Option<Tx>,
    /// The port's queue.
    pub queue: Arc<dyn PortQueue>,
    /// The counters of the pair.
    pub counters: PairCounters,
    /// The condition of the port.
    pub health: Health,
    /// Detects guest memory that is not shared. `None`: no check.
    pub unshared: Option<Arc<UnsharedCheck>>,
    /// Receives the rings that the driver broke.
    pub trouble: Trouble,
    /// A received frame that waits for buffers of the guest while the pair does not run.
    pub stash: Option<Vec<u8>>,
    /// An address of the guest that is to be announced on the network.
    pub announcement: Option<Mac>,
}

impl Pair {
    /// Notifies the driver on both rings, in case the previous server of the rings died between publication
    /// and notification.
    pub fn call_all(&self) {
        self.vrings().for_each(|vring| vring.call(&self.counters));
    }

    /// Changes the call descriptor of vring `index`, and notifies the driver once: a notification on the old
    /// descriptor may have been missed.
    pub(crate) fn set_call(&mut self, index: usize, call: Option<Arc<Notifier>>) {
        let rx = self.rx.as_mut().map(|rx| &mut rx.vring);
        let vrings = rx.into_iter().chain(self.tx.as_mut().map(|tx| &mut tx.vring));
        for vring in vrings.filter(|vring| vring.index == index) {
            vring.call = call.clone();
            vring.call(&self.counters);
        }
    }

    /// Returns the vrings that run.
    pub fn vrings(&self) -> impl Iterator<Item = &Vring> {
        let rx = self.rx.iter().map(|rx| &rx.vring);
        rx.chain(self.tx.iter().map(|tx| &tx.vring))
    }

    /// Counts the marks in a log of written pages. Not for each batch: rings without a log would pay for it.
    fn count_marks(&self) {
        let marked = self.vrings().map(|vring| vring.ring.take_marked()).sum();
        self.counters.pages_marked.add(marked);
    }

    /// Returns a report on the rings.
    pub(crate) fn report(&self, rx_waits: bool, tx_waits: bool) -> PairReport {
        self.count_marks();
        let report = |vring: &Vring, waits| RingReport {
            vring: vring.index,
            size: vring.ring.size(),
            available: vring.ring.available(),
            waits,
        };
        PairReport {
            rx: self.rx.as_ref().map(|rx| report(&rx.vring, rx_waits)),
            tx: self.tx.as_ref().map(|tx| report(&tx.vring, tx_waits)),
        }
    }

    /// Counts a kick, and checks for guest memory that is not shared.
    pub fn kicked(&self) {
        self.counters.kicks.add(1);
        if let Some(unshared) = &self.unshared {
            unshared.kicked(self.vrings());
        }
    }

    /// Leaves the rings in a state in which their driver kicks for new work, so that the next worker can wait
    /// for kicks.
    pub fn leave(&mut self) {
        if let Some(tx) = &mut self.tx {
            // The next worker will find the error.
            let _ = tx.vring.ring.enable_kicks();
        }
        self.stash = self.rx.as_mut().and_then(Rx::take_stash);
        self.count_marks();
    }

    /// Checks a port that reports an error.
    pub fn probe(&mut self) {
        if let Err(error) = self.queue.probe() {
            self.health.failed(&error);
        }
    }

    /// Whether a polled transmit ring has something to send.
    #[inline]
    pub fn wants_to_send(&self) -> bool {
        self.tx.as_ref().is_some_and(|tx| tx.polled && tx.vring.ring.has_available())
    }

    /// Asks the driver for kicks before the worker stops polling the transmit ring. Returns whether there is
    /// something to send already.
    pub fn expect_kicks(&mut self) -> bool {
        let Some(tx) = self.tx.as_mut().filter(|tx| tx.polled) else { return false };
        tx.expect_kicks().unwrap_or_else(|error| {
            self.tx_broken(error);
            false
        })
    }

    /// Moves one batch from the wire to the guest.
    #[inline]
    pub fn run_rx(&mut self) -> Turn {
        let Some(rx) = &mut self.rx else { return Turn::Idle };
        match rx.run(&*self.queue, &mut self.health, &self.counters) {
            Ok(turn) => turn,
            Err(error) => {
                if let Some(rx) = self.rx.take() {
                    self.ring_broken(&rx.vring, error);
                }
                Turn::Idle
            }
        }
    }

    /// Moves one batch from the guest to the wire.
    #[inline]
    pub fn run_tx(&mut self) -> Turn {
        let Some(tx) = &mut self.tx else { return Turn::Idle };
        match tx.run(&*self.queue, &mut self.health, &self.counters) {
            Ok(turn) => turn,
            Err(error) => {
                self.tx_broken(error);
                Turn::Idle
            }
        }
    }

    fn tx_broken(&mut self, error: RingError) {
        if let Some(tx) = self.tx.take() {
            self.ring_broken(&tx.vring, error);
        }
    }

    /// Reports a ring that cannot be trusted, once: to the log, to the device's owner, and to the front-end.
    #[cold]
    fn ring_broken(&self, vring: &Vring, error: RingError) {
        warn!(
            event = "vring_stopped", vring = vring.index;
            "vring {} stopped: {error}; only a reset by the driver starts it again", vring.index
        );
        self.trouble.ring_is_broken(vring.index);
        if let Some(err) = &vring.err {
            err.notify();
        }
    }
}
