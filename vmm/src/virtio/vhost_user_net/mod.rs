//! The network device whose data path is another process: a vhost-user-net front-end.
//!
//! [`VhostUserNet::connect`] waits for the back-end, agrees with it on features and reads its
//! configuration, once. A thread ([`link`]) then owns the connection: it sets the back-end up at each
//! activation, stops it at each reset, serves the control vring and notices when the back-end goes. No
//! vCPU waits for the back-end but at a reset, which has to know that the vrings are no longer written
//! to, and that for a bounded time.
//!
//! | module | holds |
//! |---|---|
//! | [`connection`] | finding the back-end's socket; a time limit for what blocks on it |
//! | [`session`] | the vhost-user conversation: handshake, set-up, stop |
//! | [`link`] | the thread |
//! | [`queue`] | the control vring's commands |

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use log::info;
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use volt_net::net::config::{DUPLEX_UNKNOWN, MIN_MTU, Mac, NetConfig, SPEED_UNKNOWN, STATUS_LINK_UP};
use volt_net::virtio::features::Features;

use crate::config::NetSocketConfig;
use crate::virtio::ring::Ring;
use crate::virtio::vhost_user_net::connection::ConnectError;
use crate::virtio::vhost_user_net::link::{Active, Control, Link};
use crate::virtio::vhost_user_net::queue::Requests;
use crate::virtio::vhost_user_net::session::{PASSED, Session, SessionError, Setup};
use crate::virtio::{ActivateError, Activation, VirtioDevice, copy_config};

pub mod connection;
pub mod link;
pub mod queue;
pub mod session;

/// Most queue pairs: vhost-user names a vring in 8 bits.
pub const MAX_PAIRS: u16 = 128;

/// Time for a back-end to answer a group of requests. Long, as a loaded host is no reason to give it up.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

const DATA_VRING_SIZE: u16 = 256;
const CONTROL_VRING_SIZE: u16 = 64;

/// What the VMM adds to the back-end's features: the control vring and the configuration space are its own.
/// Receive modes and filters are best effort by specification (5.1.6.5.1), and nothing is filtered here.
const OWN: Features = Features::MAC
    .with(Features::STATUS)
    .with(Features::CTRL_VQ)
    .with(Features::CTRL_RX)
    .with(Features::CTRL_VLAN)
    .with(Features::CTRL_MAC_ADDR);

/// Why there is no network device.
#[derive(Debug, Error)]
pub enum NetError {
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
    /// Queue pairs outside of what vhost-user can name.
    #[error("{0} queue pairs asked for: 1 to {MAX_PAIRS} are possible")]
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
    features: Features,
    pairs: u16,
    vring_sizes: Vec<u16>,
    /// The address after a reset; the driver may set another by the control vring.
    mac: Mac,
    config: Arc<Mutex<NetConfig>>,
    link: Link,
}

impl VhostUserNet {
    /// Waits for the back-end as long as `config` says, and agrees with it on what the guest is offered.
    ///
    /// Blocks; interrupting the process is the way to give up early.
    ///
    /// # Errors
    ///
    /// No back-end in time, or one that lacks what is needed. See [`NetError`].
    pub fn connect(config: &NetSocketConfig) -> Result<VhostUserNet, NetError> {
        let pairs = config.queues;
        if !(1..=MAX_PAIRS).contains(&pairs) {
            return Err(NetError::Pairs(pairs));
        }
        let socket = config.socket.display().to_string();
        let label = format!("net {socket}");
        let stream = connection::connect(&config.socket, config.timeout)?;
        let session = Session::open(stream, pairs)
            .map_err(|source| NetError::Session { socket: socket.clone(), source })?;
        let (features, net_config) = offer(config, &session)?;
        info!("{label}: connected, MAC {}, {pairs} queue pairs, offering {features}", net_config.mac);
        let mut vring_sizes = vec![DATA_VRING_SIZE; 2 * usize::from(pairs)];
        vring_sizes.push(CONTROL_VRING_SIZE);
        Ok(VhostUserNet {
            link: Link::spawn(label.clone(), session).map_err(NetError::Thread)?,
            label,
            features,
            pairs,
            vring_sizes,
            mac: net_config.mac,
            config: Arc::new(Mutex::new(net_config)),
        })
    }

    /// The control vring comes behind those of all pairs with MQ, and behind the first pair without
    /// (5.1.2).
    fn control_index(&self, acked: Features) -> u16 {
        2 * self.usable_pairs(acked)
    }

    fn usable_pairs(&self, acked: Features) -> u16 {
        if acked.has(Features::MQ) { self.pairs } else { 1 }
    }
}

/// Features and configuration for the guest, from command line and back-end.
fn offer(config: &NetSocketConfig, session: &Session) -> Result<(Features, NetConfig), NetError> {
    let theirs = session.config();
    let valid = |feature| theirs.filter(|_| session.features().has(feature));
    let mac = match config.mac.or(valid(Features::MAC).map(|theirs| theirs.mac)) {
        Some(mac) => mac,
        None => Mac::random().map_err(NetError::Random)?,
    };
    // A back-end's bad MTU is as none; one on the command line deserves an answer.
    let their_mtu = valid(Features::MTU).map(|theirs| theirs.mtu).filter(|mtu| *mtu >= MIN_MTU);
    if let Some(mtu) = config.mtu.filter(|mtu| *mtu < MIN_MTU) {
        return Err(NetError::Mtu(mtu));
    }
    let mtu = config.mtu.or(their_mtu);

    let mut features = session.features().common(PASSED).with(OWN);
    if mtu.is_some() {
        features = features.with(Features::MTU);
    }
    if config.queues > 1 {
        features = features.with(Features::MQ);
    }
    let net_config = NetConfig {
        mac,
        status: STATUS_LINK_UP,
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

    fn label(&self) -> &str {
        &self.label
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
    /// that has gone: the guest keeps a device without traffic.
    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let acked = activation.features;
        let control_index = self.control_index(acked);
        let control = match activation.take_vring(control_index) {
            Ok(vring) if acked.has(Features::CTRL_VQ) => Some(Control {
                ring: Ring::new(vring, &activation),
                requests: Requests::new(&self.label, acked, self.usable_pairs(acked), self.config.clone()),
            }),
            _ => None,
        };
        let mut vrings = vec![activation.take_vring(0)?, activation.take_vring(1)?];
        vrings.extend(activation.vrings.into_iter().filter(|vring| vring.index < control_index));
        let setup = Setup {
            memory: activation.memory,
            acked,
            vrings,
            interrupt: activation.interrupt,
            // The driver asks for more by the control vring (5.1.5).
            active_pairs: 1,
        };
        self.link.start(Active { setup, control });
        Ok(())
    }

    fn reset(&mut self) {
        self.link.stop();
        self.config.lock().unwrap_or_else(PoisonError::into_inner).mac = self.mac;
    }
}

#[cfg(test)]
mod daemon_tests;
#[cfg(test)]
mod peer;
#[cfg(test)]
mod tests;
