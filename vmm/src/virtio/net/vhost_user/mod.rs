//! The network device whose data path is another process: a vhost-user-net front-end.
//!
//! [`VhostUserNet::connect`] waits for the back-end, agrees with it on features and reads its configuration,
//! once. A thread ([`thread`]) then owns the connection: it sets the back-end up at each activation, stops it
//! at each reset, and looks after it. The control vring is served here, as for every network device
//! ([`control`]). No vCPU waits for the back-end but at a reset, which has to know that the vrings are no
//! longer written to, and that for a bounded time.
//!
//! # When the back-end goes
//!
//! It may end, break off, refuse or hang at any moment, in the middle of a request too; the guest runs on. A
//! hung one is found by the limit on each group of requests ([`ANSWER_LIMIT`](error::ANSWER_LIMIT)), of which
//! one that changes nothing is sent every two seconds. The socket is then tried at once, and after 10 ms, 20
//! ms and so on up to every second, for ever.
//!
//! - **What comes back is set up whole**: features, memory table, each vring with its used index from
//!   guest memory as base, kick and call, and the active pairs enabled. A back-end that completes its
//!   vrings in order finds there exactly what nobody has done, so that every descriptor is returned once.
//!   Then each vring is kicked and its interrupt raised, as the one before may have taken a kick or left
//!   an interrupt out.
//! - **It has to be what the guest knows**: the features that the guest acknowledged (or was offered, as
//!   long as it has not acknowledged any) and as many pairs. Otherwise one line names what is missing,
//!   and it is tried again. MAC and MTU stay those of the first connection.
//! - **Its link is the guest's**, for a back-end that can say when it goes down or comes up (BACKEND_REQ and
//!   CONFIG, as volt-netd has them): by `status` and a configuration interrupt.
//! - **The guest sees nothing of it**, unless `link-down-after=SECONDS` makes its link go down, by a
//!   configuration interrupt, when the back-end stays away that long.
//! - **A back-end that hangs is not dead**: it loses its connection, yet what it does to guest memory
//!   before it reads of that, nobody can prevent from here. Who starts another one in its place ends the
//!   first before.
//!
//! # While the machine is paused
//!
//! The back-end's rings run on: it sends what the guest has left in them, and receives until the guest's
//! buffers are full, where it stops by itself. Stopping them would take a conversation with a process that
//! may be away or hang, once at the pause and once at its end.
//!
//! | module | holds |
//! |---|---|
//! | [`connection`] | finding the back-end's socket; an end to what blocks on it |
//! | [`error`] | what goes wrong in the conversation |
//! | [`session`] | the vhost-user conversation: handshake, set-up, stop |
//! | `backend_channel` | what the back-end asks for by itself: that its configuration is read anew |
//! | [`setup`] | what the back-end is told, and what the driver changes of it |
//! | [`link_state`] | how often and how long it was away, when it is tried again |
//! | [`shared`] | what the device and the thread share |
//! | `thread` | the thread: activation, reset, the back-end's coming and going |
//! | [`link`] | the device's end of the thread |

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use log::info;
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use volt_net::config::{DUPLEX_UNKNOWN, MIN_MTU, Mac, NetConfig, SPEED_UNKNOWN, STATUS_LINK_UP};
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

// A PCI function has vectors for two vrings of each pair, and for the control vring; vhost-user's 8 bits name
// a few more.
const _: () = assert!(2 * MAX_QUEUE_PAIRS as usize + 1 == MAX_VRINGS);

/// Why there is no network device.
#[derive(Debug, Error)]
pub enum VhostUserNetError {
    /// Nobody answers at the socket.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The back-end does not do what is needed.
    #[error("network back-end at {socket}")]
    Session {
        /// Path of the socket.
        socket: String,
        /// What is missing, or what broke.
        #[source]
        source: SessionError,
    },
    /// More queue pairs than a device has, or none.
    #[error("{0} queue pairs asked for: 1 to {MAX_QUEUE_PAIRS} are possible")]
    Pairs(u16),
    /// An MTU that virtio does not allow.
    #[error("an MTU of {0} bytes is less than the smallest, {MIN_MTU}")]
    Mtu(u16),
    /// No random bytes for an address.
    #[error("no random MAC address: give one with mac=")]
    Random(#[source] getrandom::Error),
    /// No thread, no eventfd.
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
    /// The address after a reset; the driver may set another by the control vring.
    mac: Mac,
    config: Arc<Mutex<NetConfig>>,
    gate: Arc<PauseGate>,
    /// Serves the control vring, from activation to reset.
    control: Option<Worker>,
    link: Link,
}

impl VhostUserNet {
    /// Waits for the back-end as long as `config` says, and agrees with it on what the guest is offered.
    ///
    /// Blocks; interrupting the process is the way to give up early.
    ///
    /// # Errors
    ///
    /// No back-end in time, or one that lacks what is needed. See [`VhostUserNetError`].
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
            "{label}: connected, MAC {}, {pairs} queue pairs, offering {}",
            net_config.mac,
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

    /// Shows whether the back-end is there, how often it has gone and how long it was away.
    pub fn monitor(&self) -> Monitor {
        self.link.monitor()
    }
}

/// Features and configuration for the guest, from command line and back-end.
fn offer(config: &NetSocketConfig, session: &Session) -> Result<(Features, NetConfig), VhostUserNetError> {
    let theirs = session.config();
    let valid = |feature| theirs.filter(|_| session.features().contains(feature));
    let mac = match config.mac.or(valid(Features::NET_MAC).map(|theirs| theirs.mac)) {
        Some(mac) => mac,
        None => Mac::random().map_err(VhostUserNetError::Random)?,
    };
    // A back-end's bad MTU is as none; one on the command line deserves an answer.
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
        // By a new SET_FEATURES.
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

    /// Answers at once; the back-end is set up on the link's thread. A back-end that fails then is one
    /// that has gone: the guest keeps its device, and waits for traffic until there is one again.
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

/// The device beside its transport.
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
