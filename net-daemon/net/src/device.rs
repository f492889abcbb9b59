//! The network device: what it offers, and the seam at which its queue pairs start and stop.
//!
//! [`NetDevice::start`] takes a pair's vrings and gives them, with the port's queue, to a worker;
//! [`NetDevice::stop`] takes them back. Whoever changes anything about a running pair stops it, changes it,
//! and starts it again. The callers are the vhost-user session and, in a virtual machine monitor, its
//! transport.

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

mod captured;
mod port;
mod state;

pub use state::{DeviceState, HexBytes, RunState};

/// What every port can serve.
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
    /// Which pair.
    pub pair: usize,
    /// How.
    pub source: WorkerError,
}

/// What the configuration space says.
#[derive(Clone, Copy, Debug)]
pub struct DeviceOptions {
    /// Queue pairs, as many as the port has queues.
    pub pairs: u16,
    /// The device's address.
    pub mac: Mac,
    /// The MTU to offer; otherwise the port's.
    pub mtu: Option<u16>,
}

/// The vrings of a pair that are ready to run.
#[derive(Debug, Default)]
pub struct PairVrings {
    /// The receive queue.
    pub rx: Option<Vring>,
    /// The transmit queue.
    pub tx: Option<Vring>,
    /// Whether frames of the transmit queue are to be dropped.
    pub discard_tx: bool,
    /// Whether the rings fill, where that is to be asked.
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
    /// Its number in a state.
    counters_id: FdId,
    /// Frames that were received and not delivered when their pair stopped.
    stashes: Vec<Option<Vec<u8>>>,
    trouble: Trouble,
    limits: RateLimits,
    limiter: Option<Limiter>,
    busy_poll_us: u16,
    watches: Option<Watches>,
    /// For each pair that has frames of the program's own.
    injectors: BTreeMap<usize, Injector>,
    capture: Option<Capture>,
    link_up: bool,
    /// What the port refused the last time.
    failing: Vec<&'static str>,
}

impl NetDevice {
    /// A device over `port`. `wake` is notified when the port is found gone or a ring broken: see
    /// [`NetDevice::port_gone`] and [`NetDevice::take_broken`].
    ///
    /// # Errors
    ///
    /// When there is no memory for its counters.
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
            trouble,
            limits: RateLimits::default(),
            limiter: None,
            busy_poll_us: 0,
            watches: None,
            injectors: BTreeMap::new(),
            capture: None,
            link_up: true,
            failing: Vec::new(),
        })
    }

    /// The port.
    pub fn port(&self) -> &dyn Port {
        &*self.port
    }

    /// The port is this device's to clean up: see [`Port::own`].
    pub fn own_port(&mut self) {
        self.port.own();
    }

    /// Lets workers tell a supervisor what they do. No pair may run yet.
    pub fn watched_by(&mut self, watches: Watches) {
        self.watches = Some(watches);
    }

    /// Gives frames that are left with `injector` to the guest on `pair`, from its next start on.
    pub fn inject(&mut self, pair: usize, injector: Injector) {
        self.injectors.insert(pair, injector);
    }

    /// What vring `vring`, which is about to start, tells a supervisor, if there is one.
    pub fn watch(&mut self, vring: usize) -> Option<Watch> {
        self.watches.as_mut().map(|watches| watches.of(vring))
    }

    /// The features that a driver may acknowledge.
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// The configuration space.
    pub fn config(&self) -> NetConfig {
        self.config
    }

    /// Whether the port's interface was set up when it was asked last. One that cannot be asked is up.
    pub fn link_is_up(&self) -> bool {
        self.link_up
    }

    /// Asks the port's interface whether it is set up.
    pub fn look_at_link(&mut self) {
        self.link_up = self.port.is_up().unwrap_or(true);
    }

    /// Queue pairs.
    pub fn pairs(&self) -> usize {
        self.workers.len()
    }

    /// What pair `pair` has counted since the device was made.
    pub fn counters(&self, pair: usize) -> &Counters {
        self.counters.of(pair)
    }

    /// The counters of all pairs, for another reader.
    pub fn counter_memory(&self) -> CounterMemory {
        self.counters.clone()
    }

    /// Number of the counters' memory in a state; `None` where no other process can have it.
    pub fn counters_id(&self) -> Option<FdId> {
        self.counters.file().map(|_| self.counters_id)
    }

    /// The rate limits in force.
    pub fn limits(&self) -> RateLimits {
        self.limits
    }

    /// Name of the port.
    pub fn port_name(&self) -> &str {
        self.port.name()
    }

    /// The port's queue for `pair`, for whoever serves it by other means than [`NetDevice::start`].
    pub fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.port.queue(pair)
    }

    /// Runs `pair`, which must be stopped, with the `vrings` that are ready, for a driver with these
    /// `features` in force.
    ///
    /// # Errors
    ///
    /// When there can be no worker; the pair is stopped then. Also as long as one that did not stop may touch
    /// the rings.
    pub fn start(&mut self, pair: usize, vrings: PairVrings, features: Features) -> Result<(), DeviceError> {
        if self.workers[pair].as_ref().is_some_and(Worker::is_stuck) {
            self.stop(pair)?;
        }
        assert!(self.workers[pair].is_none(), "pair {pair} runs already");
        let mut queue = self.port.queue(pair);
        if let Some(limiter) = &self.limiter {
            let limited = limiter.limit(queue, self.counters.pair(pair));
            queue = limited.map_err(|error| DeviceError { pair, source: WorkerError::Start(error) })?;
        }
        if let Some(injector) = self.injectors.get(&pair) {
            queue = injector.before(queue);
        }
        if let Some(capture) = &self.capture {
            queue = capture.before(pair, queue);
        }
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
            Ok(worker) => self.workers[pair] = Some(worker),
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
    /// When the worker does not come back; this process can then not serve the guest's memory safely any
    /// more.
    pub fn stop(&mut self, pair: usize) -> Result<(), DeviceError> {
        let Some(worker) = self.workers[pair].take() else { return Ok(()) };
        let pair_back = worker.stop().map_err(|(source, stuck)| {
            self.workers[pair] = stuck;
            DeviceError { pair, source }
        })?;
        if pair_back.stash.is_some() {
            self.stashes[pair] = pair_back.stash;
        }
        Ok(())
    }

    /// The vrings that their driver broke since the last call. They are not served any more, and are not to
    /// be started again before a reset.
    pub fn take_broken(&self) -> Vec<usize> {
        self.trouble.take_broken()
    }

    /// Notifies the driver of vring `vring` of `pair` by another descriptor from now on, while the pair runs.
    /// Whether it does.
    ///
    /// # Errors
    ///
    /// When the worker does not answer, as [`NetDevice::stop`].
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

    /// Asks `pair`, if it runs, what it has and waits for: see [`Worker::ask_report`].
    pub fn ask_report(&self, pair: usize) -> Option<Receiver<PairReport>> {
        self.workers[pair].as_ref().map(Worker::ask_report)
    }

    /// Whether `pair` has a worker.
    pub fn runs(&self, pair: usize) -> bool {
        self.workers[pair].as_ref().is_some_and(|worker| !worker.is_stuck())
    }

    /// Limits the rate of all pairs together, of each from its next start on.
    pub fn set_limits(&mut self, limits: RateLimits) {
        self.limits = limits;
        self.limiter = Limiter::new(limits);
    }

    /// Lets workers look for frames by themselves for so many microseconds before they sleep, from their next
    /// start on: frames that follow one another closely get through sooner, and each worker takes that much
    /// more processor time. 0: not at all.
    pub fn set_busy_poll(&mut self, microseconds: u16) {
        self.busy_poll_us = microseconds;
    }

    /// What [`NetDevice::set_busy_poll`] was told.
    pub fn busy_poll(&self) -> u16 {
        self.busy_poll_us
    }
}

impl Drop for NetDevice {
    /// No worker may touch the guest's memory once the device is gone.
    fn drop(&mut self) {
        for pair in 0..self.pairs() {
            if let Err(error) = self.stop(pair) {
                error!(event = "queue_pair_not_stopped", pair; "{}", volt_virtio::error_chain(&error));
            }
        }
    }
}
