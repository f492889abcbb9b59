//! The network device: what it offers, and the seam at which its queue pairs start and stop.
//!
//! [`NetDevice::start`] takes a pair's vrings and gives them, with the port's queue, to a worker;
//! [`NetDevice::stop`] takes them back. Whoever changes anything about a running pair stops it, changes it, and
//! starts it again. The callers are the vhost-user session and, in a virtual machine monitor, its transport.

use std::io;
use std::sync::Arc;

use log::{debug, error, info, warn};
use thiserror::Error;

use crate::event::notify::Notifier;
use crate::event::worker::{Worker, WorkerError};
use crate::net::config::{DUPLEX_UNKNOWN, MIN_MTU, Mac, NetConfig, SPEED_UNKNOWN, STATUS_LINK_UP};
use crate::net::counters::Counters;
use crate::net::health::{GoneFlag, Health};
use crate::net::pair::Pair;
use crate::net::rx::Rx;
use crate::net::tx::Tx;
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
}

/// A virtio network device over a port.
#[derive(Debug)]
pub struct NetDevice {
    port: Box<dyn Port>,
    offered: Features,
    config: NetConfig,
    workers: Vec<Option<Worker>>,
    counters: Vec<Arc<Counters>>,
    gone: GoneFlag,
}

impl NetDevice {
    /// A device over `port`. `wake` is notified when the port is found gone.
    pub fn new(port: Box<dyn Port>, options: DeviceOptions, wake: Arc<Notifier>) -> NetDevice {
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
        NetDevice { port, offered, config, workers, counters, gone: GoneFlag::new(wake) }
    }

    /// The features that a driver may acknowledge.
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// The configuration space.
    pub fn config(&self) -> NetConfig {
        self.config
    }

    /// Queue pairs.
    pub fn pairs(&self) -> usize {
        self.workers.len()
    }

    /// What pair `pair` has counted since the device was made.
    pub fn counters(&self, pair: usize) -> &Counters {
        &self.counters[pair]
    }

    /// Name of the port.
    pub fn port_name(&self) -> &str {
        self.port.name()
    }

    /// The port's queue for `pair`, for whoever serves it by other means than [`NetDevice::start`].
    pub fn queue(&self, pair: usize) -> Arc<dyn PortQueue> {
        self.port.queue(pair)
    }

    /// Runs `pair`, which must be stopped, with the `vrings` that are ready.
    ///
    /// # Errors
    ///
    /// When there can be no worker; the pair is stopped then.
    pub fn start(&mut self, pair: usize, vrings: PairVrings, features: Features) -> Result<(), DeviceError> {
        assert!(self.workers[pair].is_none(), "pair {pair} runs already");
        let running = Pair {
            rx: vrings.rx.map(|vring| Rx::new(vring, features)),
            tx: vrings.tx.map(|vring| Tx::new(vring, vrings.discard_tx)),
            queue: self.port.queue(pair),
            counters: self.counters[pair].clone(),
            health: Health::new(self.port.name().to_owned(), self.gone.clone()),
            broken: Vec::new(),
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
        let worker = Worker::start(format!("pair{pair}"), running);
        self.workers[pair] = Some(worker.map_err(|(source, _)| DeviceError { pair, source })?);
        Ok(())
    }

    /// Stops `pair` if it runs, and returns the numbers of the virtqueues that the driver broke meanwhile.
    ///
    /// # Errors
    ///
    /// When the worker does not come back; this process can then not serve the guest's memory safely any more.
    pub fn stop(&mut self, pair: usize) -> Result<Vec<usize>, DeviceError> {
        let Some(worker) = self.workers[pair].take() else { return Ok(Vec::new()) };
        let pair_back = worker.stop().map_err(|source| DeviceError { pair, source })?;
        Ok(pair_back.broken)
    }

    /// Whether `pair` has a worker.
    pub fn runs(&self, pair: usize) -> bool {
        self.workers[pair].is_some()
    }

    /// Sets the port's offloads to what the driver acknowledged. A port that refuses is logged: it is gone, and
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

    fn log(&self, result: io::Result<()>, doing: &str) {
        if let Err(error) = result {
            warn!("{}: {doing} failed: {error}", self.port.name());
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
