//! The network device: its features and configuration, and the start and stop of its queue pairs.
//!
//! [`NetDevice::start`] gives a pair's vrings and the port's queue to a worker. [`NetDevice::stop`] takes
//! them back. To change a running pair, a caller stops it, changes it, and starts it again. The callers are
//! the vhost-user session and the transport of a virtual machine monitor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use log::{debug, error};
use thiserror::Error;
use volt_virtio::features::Features;
use volt_virtio::notify::Notifier;

use crate::capture::Capture;
use crate::config::{DUPLEX_UNKNOWN, MIN_MTU, Mac, NetConfig, SPEED_UNKNOWN, STATUS_LINK_UP};
use crate::counters::{CounterMemory, Counters};
use crate::crash_note::{Watch, Watches};
use crate::filter::DeviceFilter;
use crate::health::Health;
use crate::limiter::{Limiter, RateLimits};
use crate::pair::Pair;
use crate::port::inject::Injector;
use crate::port::{Port, PortQueue, check_mac};
use crate::report::PairReport;
use crate::rx::Rx;
use crate::shared_words::WordsError;
use crate::state::FdId;
use crate::trouble::Trouble;
use crate::tx::Tx;
use crate::unshared::UnsharedCheck;
use crate::vring::Vring;
use crate::worker::{Worker, WorkerError};

mod announced;
mod captured;
mod port;
mod queues;
mod state;

pub use state::{DeviceState, HexBytes, RunState};

/// Features that the device has over every port.
const ALWAYS: Features = Features::VERSION_1
    .union(Features::EVENT_IDX)
    .union(Features::INDIRECT_DESC)
    .union(Features::IN_ORDER)
    .union(Features::NET_MRG_RXBUF)
    .union(Features::NET_CSUM)
    .union(Features::NET_GUEST_CSUM)
    .union(Features::NET_HOST_TSO4)
    .union(Features::NET_HOST_TSO6)
    .union(Features::NET_HOST_ECN)
    .union(Features::NET_GUEST_TSO4)
    .union(Features::NET_GUEST_TSO6)
    .union(Features::NET_GUEST_ECN)
    .union(Features::NET_STATUS)
    .union(Features::NET_MAC);

/// A pair's worker failed.
#[derive(Debug, Error)]
#[error("queue pair {pair}")]
pub struct DeviceError {
    /// The queue pair.
    pub pair: usize,
    /// The error of its worker.
    pub source: WorkerError,
}

/// Settings of a [`NetDevice`].
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Queue pairs, as many as the port has queues.
    pub pairs: u16,
    /// The device's address.
    pub mac: Mac,
    /// The MTU to offer. `None`: the port's MTU.
    pub mtu: Option<u16>,
}

/// The vrings of a pair that are ready to run.
#[derive(Debug, Default)]
pub struct PairVrings {
    /// The receive queue.
    pub rx: Option<Vring>,
    /// The transmit queue.
    pub tx: Option<Vring>,
    /// Whether to drop frames of the transmit queue.
    pub discard_tx: bool,
    /// Detects guest memory that is not shared. `None`: no check.
    pub unshared: Option<Arc<UnsharedCheck>>,
}

/// A virtio network device over a port.
#[derive(Debug)]
pub struct NetDevice {
    port: Box<dyn Port>,
    offered: Features,
    config: NetConfig,
    workers: Vec<Option<Worker>>,
    counters: CounterMemory,
    /// Number of the counters in a state.
    counters_id: FdId,
    /// For each pair, a frame that was received but not delivered before the pair stopped.
    stashes: Vec<Option<Vec<u8>>>,
    /// An address of the guest that the next pair to start announces.
    announcement: Option<Mac>,
    trouble: Trouble,
    limits: RateLimits,
    limiter: Option<Limiter>,
    busy_poll_us: u16,
    watches: Option<Watches>,
    /// For each pair that can receive frames of the program itself.
    injectors: BTreeMap<usize, Injector>,
    capture: Option<Capture>,
    filter: Option<DeviceFilter>,
    link_up: bool,
    /// Operations that the port refused at their last attempt.
    failing: Vec<&'static str>,
}

impl NetDevice {
    /// Creates a device over `port`. `wake` is notified when the port is gone or a ring is broken: see
    /// [`NetDevice::port_gone`] and [`NetDevice::take_broken`].
    ///
    /// # Errors
    ///
    /// Fails if there is no memory for the counters.
    pub fn new(
        port: Box<dyn Port>,
        options: DeviceOptions,
        wake: Arc<Notifier>,
    ) -> Result<NetDevice, WordsError> {
        let pairs = usize::from(options.pairs);
        let mut offered = ALWAYS.union(port.extra_features());
        if options.pairs > 1 {
            offered = offered.union(Features::NET_MQ).union(Features::NET_CTRL_VQ);
        }
        let mtu = options.mtu.or(port.mtu()).filter(|mtu| *mtu >= MIN_MTU);
        if mtu.is_some() {
            offered = offered.union(Features::NET_MTU);
        }
        let config = NetConfig {
            mac: options.mac,
            status: STATUS_LINK_UP,
            max_pairs: options.pairs,
            mtu: mtu.unwrap_or(0),
            speed: SPEED_UNKNOWN,
            duplex: DUPLEX_UNKNOWN,
        };
        check_mac(&*port, options.mac);
        let counters = CounterMemory::new(pairs)?;
        let workers = (0..pairs).map(|_| None).collect();
        let stashes = vec![None; pairs];
        let trouble = Trouble::new(2 * pairs, wake);
        Ok(NetDevice {
            port,
            offered,
            config,
            workers,
            counters,
            counters_id: FdId::fresh(),
            stashes,
            announcement: None,
            trouble,
            limits: RateLimits::default(),
            limiter: None,
            busy_poll_us: 0,
            watches: None,
            injectors: BTreeMap::new(),
            capture: None,
            filter: None,
            link_up: true,
            failing: Vec::new(),
        })
    }

    /// Returns the port.
    pub fn port(&self) -> &dyn Port {
        &*self.port
    }

    /// Makes the device clean up the port at its end: see [`Port::own`].
    pub fn own_port(&mut self) {
        self.port.own();
    }

    /// Lets workers report their progress to a supervisor. No pair may run yet.
    pub fn watched_by(&mut self, watches: Watches) {
        self.watches = Some(watches);
    }

    /// Delivers the frames of `injector` to the guest on `pair`, from the next start of the pair.
    pub fn inject(&mut self, pair: usize, injector: Injector) {
        self.injectors.insert(pair, injector);
    }

    /// Returns the crash note of vring `vring`, which is about to start, if there is a supervisor.
    pub fn watch(&mut self, vring: usize) -> Option<Watch> {
        self.watches.as_mut().map(|watches| watches.of(vring))
    }

    /// Returns the features that a driver may acknowledge.
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// Returns the configuration space.
    pub fn config(&self) -> NetConfig {
        self.config
    }

    /// Whether the port's interface was up at the last query. An interface that cannot be queried counts as
    /// up.
    pub fn link_is_up(&self) -> bool {
        self.link_up
    }

    /// Queries whether the port's interface is up.
    pub fn look_at_link(&mut self) {
        self.link_up = self.port.is_up().unwrap_or(true);
    }

    /// Returns the number of queue pairs.
    pub fn pairs(&self) -> usize {
        self.workers.len()
    }

    /// Returns the counters of pair `pair`, since the creation of the device.
    pub fn counters(&self, pair: usize) -> &Counters {
        self.counters.of(pair)
    }

    /// Returns the counters of all pairs, for another reader.
    pub fn counter_memory(&self) -> CounterMemory {
        self.counters.clone()
    }

    /// Returns the number of the counters' memory in a state; `None` if no other process can map it.
    pub fn counters_id(&self) -> Option<FdId> {
        self.counters.file().map(|_| self.counters_id)
    }

    /// Returns the rate limits in force.
    pub fn limits(&self) -> RateLimits {
        self.limits
    }

    /// Returns the name of the port.
    pub fn port_name(&self) -> &str {
        self.port.name()
    }

    /// Returns the port's queue for `pair`, for a caller that serves it without [`NetDevice::start`]. Nothing
    /// stands in front of it, not even the filter.
    pub fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.port.queue(pair)
    }

    /// Starts `pair`, which must be stopped, with the `vrings` that are ready and the `features` in force.
    ///
    /// # Errors
    ///
    /// Fails if no worker can be started; the pair is then stopped. Also fails while an earlier worker that
    /// did not stop may still touch the rings.
    pub fn start(&mut self, pair: usize, vrings: PairVrings, features: Features) -> Result<(), DeviceError> {
        if self.workers[pair].as_ref().is_some_and(Worker::is_stuck) {
            self.stop(pair)?;
        }
        assert!(self.workers[pair].is_none(), "pair {pair} runs already");
        let queue = self.queues(pair)?;
        let mut rx = vrings.rx.map(|vring| Rx::new(vring, features));
        if let Some(rx) = &mut rx
            && let Some(frame) = self.stashes[pair].take()
        {
            rx.put_stash(&frame);
        }
        let running = Pair {
            rx,
            tx: vrings.tx.map(|vring| Tx::new(vring, vrings.discard_tx)),
            queue,
            counters: self.counters.pair(pair),
            health: Health::new(self.port.name().to_owned(), self.trouble.clone()),
            unshared: vrings.unshared,
            trouble: self.trouble.clone(),
            stash: None,
            announcement: None,
        };
        if running.vrings().next().is_none() {
            return Ok(());
        }
        for vring in running.vrings() {
            debug!(
                "vring {} runs: {} entries, from index {}",
                vring.index,
                vring.ring.size(),
                vring.ring.base()
            );
        }
        let polling = Duration::from_micros(self.busy_poll_us.into());
        match Worker::start(format!("pair{pair}"), running, polling) {
            Ok(worker) => {
                self.workers[pair] = Some(worker);
                self.pass_announcement();
            }
            Err((source, mut back)) => {
                self.stashes[pair] = back.rx.as_mut().and_then(Rx::take_stash);
                return Err(DeviceError { pair, source });
            }
        }
        Ok(())
    }

    /// Stops `pair` if it runs.
    ///
    /// # Errors
    ///
    /// Fails if the worker does not stop. This process can then no longer serve the guest's memory safely.
    pub fn stop(&mut self, pair: usize) -> Result<(), DeviceError> {
        let Some(worker) = self.workers[pair].take() else { return Ok(()) };
        let pair_back = worker.stop().map_err(|(source, stuck)| {
            self.workers[pair] = stuck;
            DeviceError { pair, source }
        })?;
        if pair_back.stash.is_some() {
            self.stashes[pair] = pair_back.stash;
        }
        self.announcement = self.announcement.or(pair_back.announcement);
        Ok(())
    }

    /// Returns the vrings that their driver broke since the last call. They are not served any more and must
    /// not be started again before a reset.
    pub fn take_broken(&self) -> Vec<usize> {
        self.trouble.take_broken()
    }

    /// Makes vring `vring` of `pair` notify its driver by another descriptor. Returns whether the pair runs.
    ///
    /// # Errors
    ///
    /// Fails if the worker does not answer, as [`NetDevice::stop`].
    pub fn set_call(
        &mut self,
        pair: usize,
        vring: usize,
        call: Option<Arc<Notifier>>,
    ) -> Result<bool, DeviceError> {
        let Some(worker) = self.workers[pair].as_mut().filter(|worker| !worker.is_stuck()) else {
            return Ok(false);
        };
        worker.set_call(vring, call).map_err(|source| DeviceError { pair, source })?;
        Ok(true)
    }

    /// Asks `pair`, if it runs, for a report on its rings: see [`Worker::ask_report`].
    pub fn ask_report(&self, pair: usize) -> Option<Receiver<PairReport>> {
        self.workers[pair].as_ref().map(Worker::ask_report)
    }

    /// Whether `pair` has a worker that is not stuck.
    pub fn runs(&self, pair: usize) -> bool {
        self.workers[pair].as_ref().is_some_and(|worker| !worker.is_stuck())
    }

    /// Limits the rate of all pairs together. Applies to each pair from its next start.
    pub fn set_limits(&mut self, limits: RateLimits) {
        self.limits = limits;
        self.limiter = Limiter::new(limits);
    }

    /// Lets workers poll for frames for so many microseconds before they sleep, from their next start.
    /// Polling lowers latency at the cost of CPU time. 0 disables it.
    pub fn set_busy_poll(&mut self, microseconds: u16) {
        self.busy_poll_us = microseconds;
    }

    /// Returns the time set by [`NetDevice::set_busy_poll`].
    pub fn busy_poll(&self) -> u16 {
        self.busy_poll_us
    }
}

impl Drop for NetDevice {
    /// Stops all workers: none may touch guest memory after the device is gone.
    fn drop(&mut self) {
        for pair in 0..self.pairs() {
            if let Err(error) = self.stop(pair) {
                error!(event = "queue_pair_not_stopped", pair; "{}", volt_virtio::error_chain(&error));
            }
        }
    }
}
