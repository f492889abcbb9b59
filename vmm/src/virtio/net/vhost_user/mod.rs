//! A network device whose data path is another process: a vhost-user-net front-end.
//!
//! [`VhostUserNet::connect`] waits for the back-end, negotiates features and reads its configuration, once.
//! Then a thread ([`thread`]) owns the connection: it sets the back-end up at each activation, stops it at
//! each reset, and watches it. The control vring is served here, as for every network device ([`control`]). A
//! vCPU waits for the back-end only at a reset, which must know that the vrings are no longer written, and
//! only for a bounded time.
//!
//! # When the back-end disconnects
//!
//! The back-end may end, disconnect, refuse or hang at any moment, also in the middle of a request. The guest
//! keeps running. The limit on each group of requests ([`ANSWER_LIMIT`](error::ANSWER_LIMIT)) finds a hung
//! back-end; a request that changes nothing is sent every two seconds. Then volt-vmm tries to reconnect at
//! once, after 10 ms, 20 ms and so on, up to every second, forever.
//!
//! - **A new connection gets the whole set-up**: features, memory table, each vring with its used index from
//!   guest memory as base, kick and call, and the active pairs enabled. A back-end that completes its
//!   vrings in order finds there exactly the unfinished work, so that every descriptor is returned once.
//!   Then each vring is kicked and its interrupt raised, because the previous back-end may have consumed a
//!   kick or left out an interrupt.
//! - **The new back-end must match what the guest knows**: it needs the features that the guest acknowledged
//!   (or was offered, as long as it has not acknowledged any) and as many pairs. Otherwise one log line
//!   names the missing feature, and volt-vmm retries. MAC and MTU stay those of the first connection.
//! - **The guest's link follows the back-end's**, if the back-end can report changes (BACKEND_REQ and CONFIG,
//!   like volt-netd): by `status` and a configuration interrupt.
//! - **The guest does not notice the absence**, unless `link-down-after=SECONDS` sets its link down, with a
//!   configuration interrupt, when the back-end stays away that long.
//! - **A back-end that hangs is not dead**: it loses its connection, but until it notices, this process
//!   cannot stop its accesses to guest memory. End it before you start another one in its place.
//!
//! # While the machine is paused
//!
//! The back-end's rings continue. It sends the frames in them, and receives until the guest's buffers are
//! full. Stopping them would need requests to a process that may be away or hang, once at the pause and once
//! at its end.
//!
//! | module | holds |
//! |---|---|
//! | [`connection`] | connecting to the back-end; interrupting calls that block on its socket |
//! | [`error`] | errors of the protocol |
//! | [`session`] | the vhost-user protocol: handshake, set-up, stop |
//! | `backend_channel` | the back-end's own requests: its configuration has changed |
//! | [`setup`] | the back-end's settings, and the driver's changes of them |
//! | [`link_state`] | counters of absences, delays between attempts |
//! | [`shared`] | state shared by the device and the thread |
//! | `thread` | the thread: activation, reset, reconnection |
//! | [`link`] | the device's interface to the thread |

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use log::info;
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use volt_net::config::{DUPLEX_UNKNOWN, MIN_MTU, Mac, NetConfig, SPEED_UNKNOWN, STATUS_LINK_UP};
use volt_program::display::of;
use volt_virtio::features::{Class, Features};

use crate::board::pause_gate::PauseGate;
use crate::config::{MAX_QUEUE_PAIRS, NetSocketConfig};
use crate::virtio::handle::{DeviceHandle, DeviceKind};
use crate::virtio::net::changes::Change;
use crate::virtio::net::control::{self, OWN, Served, control_index};
use crate::virtio::net::vhost_user::connection::ConnectError;
use crate::virtio::net::vhost_user::error::SessionError;
use crate::virtio::net::vhost_user::link::{Link, Monitor};
use crate::virtio::net::vhost_user::session::Session;
use crate::virtio::net::vhost_user::setup::{DriverSettings, PASSED, Setup};
use crate::virtio::net::vhost_user::shared::Requirements;
use crate::virtio::pci::MAX_VRINGS;
use crate::virtio::status::{BackEndStatus, DeviceDetails, DeviceStatus, VhostUserNetStatus};
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, VirtioDevice, copy_config};

mod backend_channel;
pub mod connection;
pub mod error;
pub mod link;
pub mod link_state;
pub mod session;
pub mod setup;
pub mod shared;
mod thread;

// A PCI function has vectors for two vrings of each pair and for the control vring. The 8 bits of vhost-user
// allow a few more.
const _: () = assert!(2 * MAX_QUEUE_PAIRS as usize + 1 == MAX_VRINGS);

/// Why a network device cannot be created.
#[derive(Debug, Error)]
pub enum VhostUserNetError {
    /// Nothing listens at the socket.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The back-end lacks something, or its connection broke.
    #[error("network back-end at {socket}")]
    Session {
        /// Path of the socket.
        socket: String,
        /// The error.
        #[source]
        source: SessionError,
    },
    /// The number of queue pairs is not possible.
    #[error("{0} queue pairs are not possible: choose 1 to {MAX_QUEUE_PAIRS}")]
    Pairs(u16),
    /// An MTU that virtio does not allow.
    #[error("an MTU of {0} bytes is too small: the smallest is {MIN_MTU}")]
    Mtu(u16),
    /// There are no random bytes for an address.
    #[error("no random MAC address: give one with mac=")]
    Random(#[source] getrandom::Error),
    /// There is no thread or eventfd.
    #[error("cannot start a thread for the network device")]
    Thread(#[source] std::io::Error),
}

/// A network device served by a vhost-user back-end.
pub struct VhostUserNet {
    label: String,
    socket: String,
    features: Features,
    pairs: u16,
    vring_sizes: Vec<u16>,
    /// The address after a reset. The driver may set another one with the control vring.
    mac: Mac,
    config: Arc<Mutex<NetConfig>>,
    gate: Arc<PauseGate>,
    /// Serves the control vring, from activation to reset.
    control: Option<Worker>,
    link: Link,
}

impl VhostUserNet {
    /// Waits for the back-end as long as `config` allows, and negotiates the guest's features with it.
    ///
    /// Blocks. Interrupt the process to give up early.
    ///
    /// # Errors
    ///
    /// Fails if no back-end appears in time, or if it lacks something. See [`VhostUserNetError`].
    pub fn connect(
        config: &NetSocketConfig,
        gate: &Arc<PauseGate>,
    ) -> Result<VhostUserNet, VhostUserNetError> {
        let pairs = config.queues;
        if !(1..=MAX_QUEUE_PAIRS).contains(&pairs) {
            return Err(VhostUserNetError::Pairs(pairs));
        }
        let socket = config.socket.display().to_string();
        let label = format!("net {socket}");
        let stream = connection::connect(&config.socket, config.timeout)?;
        let session = Session::open(stream, pairs)
            .map_err(|source| VhostUserNetError::Session { socket: socket.clone(), source })?;
        let (features, net_config) = offer(config, &session)?;
        info!(
            event = "back_end_connected", device:% = label, pairs;
            "{label}: connected, MAC {}, {}, offering {}",
            net_config.mac,
            of(pairs.into(), "queue pair"),
            features.named(Class::Net)
        );
        let required = Requirements {
            socket: config.socket.clone(),
            pairs,
            offered: features.intersection(PASSED),
            mtu: session.mtu(),
            link_down_after: config.link_down_after,
        };
        let mac = net_config.mac;
        let config = Arc::new(Mutex::new(net_config));
        let link = Link::spawn(label.clone(), session, required, config.clone())
            .map_err(VhostUserNetError::Thread)?;
        let vring_sizes = control::vring_sizes(pairs);
        let gate = gate.clone();
        Ok(VhostUserNet {
            label,
            socket,
            features,
            pairs,
            vring_sizes,
            mac,
            config,
            gate,
            control: None,
            link,
        })
    }

    /// Returns a view of the connection: whether it exists, how often it was lost, and for how long.
    pub fn monitor(&self) -> Monitor {
        self.link.monitor()
    }
}

/// Returns features and configuration for the guest, from command line and back-end.
fn offer(config: &NetSocketConfig, session: &Session) -> Result<(Features, NetConfig), VhostUserNetError> {
    let theirs = session.config();
    let valid = |feature| theirs.filter(|_| session.features().contains(feature));
    let mac = match config.mac.or(valid(Features::NET_MAC).map(|theirs| theirs.mac)) {
        Some(mac) => mac,
        None => Mac::random().map_err(VhostUserNetError::Random)?,
    };
    // A back-end's bad MTU is ignored. A bad one on the command line is an error.
    if let Some(mtu) = config.mtu.filter(|mtu| *mtu < MIN_MTU) {
        return Err(VhostUserNetError::Mtu(mtu));
    }
    let mtu = config.mtu.or(session.mtu());

    let mut features = session.features().intersection(PASSED).union(OWN);
    if mtu.is_some() {
        features = features.union(Features::NET_MTU);
    }
    if config.queues > 1 {
        features = features.union(Features::NET_MQ);
    }
    if features.contains(Features::NET_GUEST_CSUM) {
        // With a new SET_FEATURES.
        features = features.union(Features::NET_CTRL_GUEST_OFFLOADS);
    }
    let net_config = NetConfig {
        mac,
        status: if session.link_up() { STATUS_LINK_UP } else { 0 },
        max_pairs: config.queues,
        mtu: mtu.unwrap_or(0),
        speed: SPEED_UNKNOWN,
        duplex: DUPLEX_UNKNOWN,
    };
    Ok((features, net_config))
}

impl VirtioDevice for VhostUserNet {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn name(&self) -> &str {
        &self.socket
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn handle(&self) -> Arc<dyn DeviceHandle> {
        Arc::new(Handle {
            label: self.label.clone(),
            socket: self.socket.clone(),
            pairs: self.pairs,
            config: self.config.clone(),
            monitor: self.monitor(),
        })
    }

    fn mac(&self) -> Option<Mac> {
        Some(self.mac)
    }

    fn features(&self) -> Features {
        self.features
    }

    fn vring_sizes(&self) -> &[u16] {
        &self.vring_sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = *self.config.lock().unwrap_or_else(PoisonError::into_inner);
        copy_config(&config.to_bytes(), offset, data);
    }

    /// Returns at once. The link's thread sets up the back-end. A failure then counts as a lost connection:
    /// the guest keeps its device, and waits for traffic until there is a back-end again.
    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let acked = activation.features;
        let settings = Arc::new(DriverSettings::new(acked));
        let (wanted, waker) = (settings.clone(), self.link.waker());
        let served = Served { label: &self.label, pairs: self.pairs, config: &self.config, gate: &self.gate };
        let apply = move |change| {
            match change {
                Change::Pairs(pairs) => wanted.set_pairs(pairs),
                Change::Offloads(offloads) => wanted.set_offloads(offloads),
            }
            waker.wake();
        };
        let first = activation.take_vring(0).and_then(|rx| Ok(vec![rx, activation.take_vring(1)?]));
        let started = Arc::new(OnceLock::from(first.is_ok()));
        self.control = control::serve(&served, &mut activation, started, apply)?;
        let mut vrings = first?;
        let end = control_index(acked, self.pairs);
        vrings.extend(activation.vrings.into_iter().filter(|vring| vring.index < end));
        let (memory, interrupt) = (activation.memory, activation.interrupt);
        self.link.start(Setup { memory, acked, vrings, interrupt, settings });
        Ok(())
    }

    fn reset(&mut self) {
        self.control = None;
        self.link.stop();
        self.config.lock().unwrap_or_else(PoisonError::into_inner).mac = self.mac;
    }
}

/// The interface to the device beside its transport.
struct Handle {
    label: String,
    socket: String,
    pairs: u16,
    config: Arc<Mutex<NetConfig>>,
    monitor: Monitor,
}

impl DeviceHandle for Handle {
    fn status(&self) -> DeviceStatus {
        let state = self.monitor.state();
        let config = *self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let away = state.away_since.map(|since| since.elapsed());
        let net = VhostUserNetStatus {
            socket: self.socket.clone(),
            guest_mac: config.mac.to_string(),
            queue_pairs: self.pairs,
            link_up: config.status & STATUS_LINK_UP != 0,
            back_end: if state.is_connected() { BackEndStatus::Connected } else { BackEndStatus::Away },
            losses: state.losses,
            away_seconds: (state.away_total + away.unwrap_or_default()).as_secs_f64(),
            away_now_seconds: away.map(|away| away.as_secs_f64()),
        };
        DeviceStatus { device: self.label.clone(), details: Some(DeviceDetails::VhostUserNet(net)) }
    }
}

#[cfg(test)]
mod connect_tests;
#[cfg(test)]
mod daemon_tests;
#[cfg(test)]
mod peer;
#[cfg(test)]
mod reconnect_tests;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
