//! The network device: what it offers, and the seam at which its queue pairs start and stop.
//!
//! [`NetDevice::start`] takes a pair's vrings and gives them, with the port's queue, to a worker;
//! [`NetDevice::stop`] takes them back. Whoever changes anything about a running pair stops it, changes it, and
//! starts it again. The callers are the vhost-user session and, in a virtual machine monitor, its transport.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use log::{debug, error, info, warn};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_memory::mmap::MmapRegionError;

use crate::event::notify::Notifier;
use crate::event::worker::{Worker, WorkerError};
use crate::net::config::{DUPLEX_UNKNOWN, MIN_MTU, Mac, NetConfig, SPEED_UNKNOWN, STATUS_LINK_UP};
use crate::net::counters::Counters;
use crate::net::health::{GoneFlag, Health};
use crate::net::journal::Journal;
use crate::net::limiter::{Limiter, RateLimits};
use crate::net::pair::Pair;
use crate::net::rx::Rx;
use crate::net::tx::Tx;
use crate::net::unfilled::Unfilled;
use crate::net::vring::Vring;
use crate::port::macvtap::check_mac;
use crate::port::{Port, PortQueue};
use crate::virtio::features::Features;

/// What every port can serve.
const ALWAYS: Features = Features::VERSION_1
    .with(Features::EVENT_IDX)
    .with(Features::INDIRECT_DESC)
    .with(Features::IN_ORDER)
    .with(Features::MRG_RXBUF)
    .with(Features::CSUM)
    .with(Features::GUEST_CSUM)
    .with(Features::HOST_TSO4)
    .with(Features::HOST_TSO6)
    .with(Features::HOST_ECN)
    .with(Features::GUEST_TSO4)
    .with(Features::GUEST_TSO6)
    .with(Features::GUEST_ECN)
    .with(Features::STATUS)
    .with(Features::MAC);

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
    pub unfilled: Option<Arc<Unfilled>>,
}

/// A virtio network device over a port.
#[derive(Debug)]
pub struct NetDevice {
    port: Box<dyn Port>,
    offered: Features,
    config: NetConfig,
    workers: Vec<Option<Worker>>,
    counters: Vec<Arc<Counters>>,
    /// Frames that were received and not delivered when their pair stopped.
    stashes: Vec<Option<Vec<u8>>>,
    gone: GoneFlag,
    limits: RateLimits,
    limiter: Option<Limiter>,
    busy_poll_us: u16,
    journal: Journal,
    killers: BTreeMap<usize, u16>,
    link_up: bool,
    /// What the port refused the last time.
    failing: Vec<&'static str>,
}

/// What a device knows that its port does not, in a state.
#[derive(Debug, Serialize, Deserialize)]
pub struct DeviceState {
    /// Queue pairs.
    pub pairs: u16,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU, if the guest is told one.
    pub mtu: Option<u16>,
    /// Rate limits.
    #[serde(default)]
    pub limits: RateLimits,
    /// Microseconds for which workers poll before they sleep.
    #[serde(default)]
    pub busy_poll_us: u16,
}

/// What workers change by themselves: what is left of a stopped device beside a [`DeviceState`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Leftover {
    /// For each pair, its counters by name.
    pub counters: Vec<BTreeMap<String, u64>>,
    /// For each pair, a frame that was received and not delivered, in hexadecimal.
    pub stashes: Vec<Option<HexBytes>>,
}

/// Bytes that are text in a state.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HexBytes(#[serde(with = "crate::state::hex")] pub Vec<u8>);

impl NetDevice {
    /// A device over `port`. `wake` is notified when the port is found gone.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub fn new(
        port: Box<dyn Port>,
        options: DeviceOptions,
        wake: Arc<Notifier>,
    ) -> Result<NetDevice, MmapRegionError> {
        Ok(NetDevice::with_journal(port, options, wake, Journal::new()?, BTreeMap::new()))
    }

    /// The same for a process whose end another one watches: workers note what they do in `journal`, and leave the
    /// chains out whose indexes in the available ring are in `killers`, by vring.
    pub fn with_journal(
        port: Box<dyn Port>,
        options: DeviceOptions,
        wake: Arc<Notifier>,
        journal: Journal,
        killers: BTreeMap<usize, u16>,
    ) -> NetDevice {
        let pairs = usize::from(options.pairs);
        let mut offered = ALWAYS.with(port.extra_features());
        if options.pairs > 1 {
            offered = offered.with(Features::MQ).with(Features::CTRL_VQ);
        }
        let mtu = options.mtu.or(port.mtu()).filter(|mtu| *mtu >= MIN_MTU);
        if mtu.is_some() {
            offered = offered.with(Features::MTU);
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
        let counters = (0..pairs).map(|_| Arc::default()).collect();
        let workers = (0..pairs).map(|_| None).collect();
        let stashes = vec![None; pairs];
        let gone = GoneFlag::new(wake);
        NetDevice {
            port,
            offered,
            config,
            workers,
            counters,
            stashes,
            gone,
            limits: RateLimits::default(),
            limiter: None,
            busy_poll_us: 0,
            journal,
            killers,
            link_up: true,
            failing: Vec::new(),
        }
    }

    /// Writes out what does not change while the device runs.
    pub fn export(&self) -> DeviceState {
        let mtu = self.offered.has(Features::MTU).then_some(self.config.mtu);
        DeviceState {
            pairs: self.config.max_pairs,
            mac: self.config.mac.0,
            mtu,
            limits: self.limits,
            busy_poll_us: self.busy_poll_us,
        }
    }

    /// Writes out what workers change. Of pairs that run, no frame.
    pub fn leftover(&self) -> Leftover {
        let counters = self.counters.iter();
        Leftover {
            counters: counters
                .map(|c| c.all().map(|(name, count)| (name.to_owned(), count)).collect())
                .collect(),
            stashes: self.stashes.iter().map(|stash| stash.clone().map(HexBytes)).collect(),
        }
    }

    /// Goes on from what another process left. No pair may run yet.
    pub fn set_leftover(&mut self, leftover: Leftover) {
        for (counters, counts) in self.counters.iter().zip(&leftover.counters) {
            counters.set(counts);
        }
        for (stash, frame) in self.stashes.iter_mut().zip(leftover.stashes) {
            *stash = frame.map(|bytes| bytes.0);
        }
    }

    /// The port.
    pub fn port(&self) -> &dyn Port {
        &*self.port
    }

    /// The port is this device's to clean up: see [`Port::own`].
    pub fn own_port(&mut self) {
        self.port.own();
    }

    /// What a vring that is about to start needs for the supervisor: its note, and the index of a chain to leave out.
    pub fn watch(&mut self, vring: usize) -> (crate::net::journal::Note, Option<u16>) {
        (self.journal.note(vring), self.killers.remove(&vring))
    }

    /// Gives up the frames that were received and not delivered: the guest they were for has gone.
    pub fn give_up_stashes(&mut self) {
        for (stash, counters) in self.stashes.iter_mut().zip(&self.counters) {
            if stash.take().is_some() {
                counters.rx_failed.add(1);
            }
        }
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
        &self.counters[pair]
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

    /// Runs `pair`, which must be stopped, with the `vrings` that are ready, for a driver with these `features` in force.
    ///
    /// # Errors
    ///
    /// When there can be no worker; the pair is stopped then. Also as long as one that did not stop may touch the rings.
    pub fn start(&mut self, pair: usize, vrings: PairVrings, features: Features) -> Result<(), DeviceError> {
        if self.workers[pair].as_ref().is_some_and(Worker::is_stuck) {
            self.stop(pair)?;
        }
        assert!(self.workers[pair].is_none(), "pair {pair} runs already");
        let mut queue = self.port.queue(pair);
        if let Some(limiter) = &self.limiter {
            let limited = limiter.limit(queue);
            queue = limited.map_err(|error| DeviceError { pair, source: WorkerError::Start(error) })?;
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
            counters: self.counters[pair].clone(),
            health: Health::new(self.port.name().to_owned(), self.gone.clone()),
            unfilled: vrings.unfilled,
            broken: Vec::new(),
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

    /// Stops `pair` if it runs, and returns the numbers of the virtqueues that the driver broke meanwhile.
    ///
    /// # Errors
    ///
    /// When the worker does not come back; this process can then not serve the guest's memory safely any more.
    pub fn stop(&mut self, pair: usize) -> Result<Vec<usize>, DeviceError> {
        let Some(worker) = self.workers[pair].take() else { return Ok(Vec::new()) };
        let pair_back = worker.stop().map_err(|(source, stuck)| {
            self.workers[pair] = stuck;
            DeviceError { pair, source }
        })?;
        if pair_back.stash.is_some() {
            self.stashes[pair] = pair_back.stash;
        }
        Ok(pair_back.broken)
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

    /// Lets workers look for frames by themselves for so many microseconds before they sleep, from their next start on: frames
    /// that follow one another closely get through sooner, and each worker takes that much more processor time. 0: not at all.
    pub fn set_busy_poll(&mut self, microseconds: u16) {
        self.busy_poll_us = microseconds;
    }

    /// What [`NetDevice::set_busy_poll`] was told.
    pub fn busy_poll(&self) -> u16 {
        self.busy_poll_us
    }

    /// Sets the port's offloads to what the driver acknowledged: for frames that come from now on. Those that wait already
    /// are finished or dropped by pairs that are started with these features. A port that refuses is logged: it is gone, and
    /// will be set when it is back, or it goes on handing over plain frames.
    pub fn set_offloads(&mut self, acked: Features) {
        let result = self.port.set_offloads(acked);
        self.log(result, "setting offloads");
    }

    /// Lets the port spread frames over exactly the pairs that are `active`. While none is, the port stays as it
    /// was, so that frames wait for the guest instead of being dropped. A port that refuses is logged.
    pub fn attach(&mut self, active: &[bool]) {
        if active.contains(&true) {
            let result = self.port.attach(active);
            self.log(result, "attaching queues");
        }
    }

    /// Tells a failure when it is new: a guest can bring about as many as it likes, on an interface that is gone.
    fn log(&mut self, result: io::Result<()>, doing: &'static str) {
        match result {
            Ok(()) => self.failing.retain(|failing| *failing != doing),
            Err(error) if self.failing.contains(&doing) => {
                debug!("{}: {doing} failed again: {error}", self.port.name());
            }
            Err(error) => {
                warn!("{}: {doing} failed: {error}", self.port.name());
                self.failing.push(doing);
            }
        }
    }

    /// Whether a worker found the port gone since the last call.
    pub fn port_gone(&self) -> bool {
        self.gone.take()
    }

    /// Opens the port again. Pairs that run go on with its old queues until they are stopped and started.
    ///
    /// # Errors
    ///
    /// While the port cannot be opened.
    pub fn reopen_port(&mut self) -> io::Result<()> {
        self.port.reopen()?;
        info!("{}: opened again", self.port.name());
        Ok(())
    }
}

impl Drop for NetDevice {
    /// No worker may touch the guest's memory once the device is gone.
    fn drop(&mut self) {
        for pair in 0..self.pairs() {
            if let Err(error) = self.stop(pair) {
                error!("{}", crate::error_chain(&error));
            }
        }
    }
}
