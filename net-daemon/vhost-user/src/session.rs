//! The session of one front-end: its settings so far, and their effect on the device.
//!
//! Life cycle: a session is created empty when a front-end connects. [`Session::handle`] carries out each
//! message, with one function for each request. [`Session::close`] ends the session with its connection. A
//! request that changes a pair stops the pair, changes the set-up, and starts the parts of the pair that can
//! run.

use std::sync::Arc;

use log::{debug, info, warn};
use thiserror::Error;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
use volt_net::config::Mac;
use volt_net::control::command::{Command, Limits};
use volt_net::control::queue::ControlQueue;
use volt_net::device::{DeviceError, NetDevice, PairVrings};
use volt_net::unshared::UnsharedCheck;
use volt_net::worker::WorkerError;
use volt_virtio::features::{Class, Features};
use volt_virtio::memory::GuestMemory;
use volt_virtio::notify::{Notifier, NotifyError};

use crate::backend_channel::{BackendChannel, NoSocket};
use crate::memory::{MAX_SLOTS, MemoryTable, RegionError};
use crate::message::{
    ConfigRange, FrontendReq, Header, LogBase, MemoryRegion, Message, MessageError, VringAddr, VringFd,
    VringState, decode_u64, policy, unserved_waits,
};
use crate::migration_log::{LogError, MigrationLog};
use crate::vring::{Processing, SharedNotifier, VringSetup, VringStanding};

mod migration;
mod requests;
mod running;
pub mod state;

/// The offered protocol features.
///
/// BACKEND_REQ carries only link state changes. User-mode Linux 6.1 has no interrupt for a device without it.
/// INFLIGHT_SHMFD is not offered: the used index has all of its information, and Cloud Hypervisor replays
/// rings less well with it.
const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::LOG_SHMFD)
    .union(Protocol::RARP)
    .union(GPA_ADDRESSES)
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::RESET_DEVICE);

/// Ring addresses, and the user addresses of memory regions, are guest addresses. No released front-end but
/// QEMU 11.1 uses it.
const GPA_ADDRESSES: Protocol = Protocol::from_bits_retain(1 << 21);

/// Bytes of configuration space that can be read. Bytes beyond the device's own are zero.
const CONFIG_SPACE: usize = 256;

/// The reason why a request is refused.
#[derive(Debug, Error)]
pub enum Fault {
    /// The message is malformed.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A memory region is refused.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Features that were not offered.
    #[error("acknowledges features that were not offered: {}", .0.named(Class::Net))]
    Features(Features),
    /// Protocol features that were not offered.
    #[error("acknowledges protocol features that were not offered: {0:#x}")]
    Protocol(u64),
    /// The driver is older than virtio 1.0.
    #[error(
        "the driver did not acknowledge VERSION_1: legacy drivers (shorter frame header) are not supported"
    )]
    Legacy,
    /// A vring beyond those configured.
    #[error("there is no vring {index}: {pairs} queue pairs have vrings 0 to {}; see --queues", count - 1)]
    VringIndex {
        /// The requested vring.
        index: u32,
        /// Number of vrings.
        count: usize,
        /// Number of queue pairs.
        pairs: usize,
    },
    /// A size that a ring cannot have here.
    #[error("ring size {size} is not a power of two from 1 to {max}; see --queue-size")]
    RingSize {
        /// The requested size.
        size: u32,
        /// The maximum.
        max: u16,
    },
    /// A base that a ring cannot have.
    #[error("ring base {0} is more than 65535")]
    Base(u32),
    /// A value that is neither 0 nor 1.
    #[error("a vring can be enabled by 1 or disabled by 0, not by {0}")]
    Enable(u32),
    /// A ring without a kick descriptor, which would need polling.
    #[error("a vring without kick descriptor would need polling, which is not supported")]
    Polling,
    /// A kick, call or err descriptor is unusable.
    #[error(transparent)]
    Notify(#[from] NotifyError),
    /// A descriptor for requests of the back-end is unusable.
    #[error(transparent)]
    BackendChannel(#[from] NoSocket),
    /// A write to the configuration space.
    #[error("the configuration space cannot be written")]
    ReadOnlyConfig,
    /// A log of written pages is refused.
    #[error(transparent)]
    Log(#[from] LogError),
    /// An address that no guest can have.
    #[error("{0} cannot be announced: it is not the address of one interface")]
    Announced(Mac),
    /// A request or feature that depends on a protocol feature.
    #[error("needs the protocol feature {0}, which is not negotiated")]
    NotNegotiated(&'static str),
    /// A known request that is not offered.
    #[error("not supported, and not offered")]
    Unserved,
    /// An unknown request.
    #[error("unknown request")]
    Unknown,
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The reason why a session ends by itself.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A request was refused, and the front-end could not be told otherwise.
    #[error("{request}")]
    Refused {
        /// Name or code of the request.
        request: String,
        /// The reason.
        source: Fault,
    },
    /// The device cannot be trusted any more: the daemon must end.
    #[error("the device failed")]
    Device(#[source] DeviceError),
}

/// The answer to a request.
enum Answer {
    /// Nothing, or a status of success if the front-end asks for it.
    Done,
    /// A payload.
    Payload(Vec<u8>),
}

type Answered = Result<Answer, Fault>;

/// A session.
#[derive(Debug)]
pub struct Session {
    acked: Option<Features>,
    protocol: Protocol,
    memory: Option<MemoryTable>,
    /// The log of written pages.
    log: Option<MigrationLog>,
    /// Regions that were added repeatedly, and must be removed as often.
    repeated: Vec<MemoryRegion>,
    vrings: Vec<VringSetup>,
    max_ring_size: u16,
    control: Option<ControlQueue>,
    /// Number of pairs that the driver uses, if the control queue is served here.
    control_pairs: u16,
    /// The channel for requests of the back-end.
    backend: Option<BackendChannel>,
    /// Whether the last link state sent to the front-end was "down".
    told_down: bool,
    /// Whether the front-end asked for the number of vrings and has started none.
    at_queues: bool,
    /// Detects guest memory that is not shared, by the rings of the first pair.
    unshared: Arc<UnsharedCheck>,
    /// The pairs that are served, as last logged.
    serving: Vec<bool>,
}

impl Session {
    /// Creates an empty session for `device`, whose vrings may have up to `max_ring_size` entries.
    pub fn new(device: &NetDevice, max_ring_size: u16) -> Session {
        let count = device.pairs() * 2 + usize::from(device.offered().contains(Features::NET_CTRL_VQ));
        Session {
            acked: None,
            protocol: Protocol::empty(),
            memory: None,
            log: None,
            repeated: Vec::new(),
            vrings: (0..count).map(|_| VringSetup::default()).collect(),
            max_ring_size,
            control: None,
            control_pairs: 1,
            backend: None,
            told_down: false,
            at_queues: false,
            unshared: Arc::default(),
            serving: vec![false; device.pairs()],
        }
    }

    /// Carries out a message. Returns the reply to send, if any.
    ///
    /// # Errors
    ///
    /// Fails if the connection must end: a request was refused, and the front-end cannot be told otherwise.
    pub fn handle(
        &mut self,
        message: Message,
        device: &mut NetDevice,
    ) -> Result<Option<Vec<u8>>, SessionError> {
        let header = message.header;
        let request = FrontendReq::try_from(header.request).ok();
        let name =
            request.map_or_else(|| format!("request {}", header.request), |known| format!("{known:?}"));
        debug!("{name}: {} bytes, {} descriptors", message.body.len(), message.fds.len());
        let before = self.protocol;
        let waits = request.is_some_and(|r| policy(r).map_or(unserved_waits(r), |policy| policy.replies));
        let answered = match request {
            Some(request) => self.dispatch(request, message, device),
            None => Err(Fault::Unknown),
        };
        // UML asks for an answer to the message that negotiates REPLY_ACK, and waits for it. The same holds
        // for a message that turns REPLY_ACK off.
        let reply_ack = (before | self.protocol).contains(Protocol::REPLY_ACK);
        let acknowledges = header.needs_reply() && reply_ack;
        let code = |status: u64| Some(Header::reply(header.request, &status.to_ne_bytes()));
        match answered {
            Ok(Answer::Payload(body)) => Ok(Some(Header::reply(header.request, &body))),
            Ok(Answer::Done) if acknowledges => Ok(code(0)),
            Ok(Answer::Done) => Ok(None),
            Err(Fault::Device(source)) => Err(SessionError::Device(source)),
            Err(fault) if acknowledges && !waits => {
                warn!(
                    event = "request_refused", request = name;
                    "{name} refused: {}", volt_virtio::error_chain(&fault)
                );
                Ok(code(1))
            }
            // The front-end can continue without these.
            Err(fault @ (Fault::Legacy | Fault::Unserved | Fault::NotNegotiated(_))) if !waits => {
                warn!(event = "request_refused", request = name; "{name} refused: {fault}");
                Ok(None)
            }
            Err(source) => Err(SessionError::Refused { request: name, source }),
        }
    }

    /// Checks the form of a message, and calls the request's function.
    fn dispatch(&mut self, request: FrontendReq, message: Message, device: &mut NetDevice) -> Answered {
        use FrontendReq as R;
        let policy = policy(request).ok_or(Fault::Unserved)?;
        let len = message.body.len();
        if !policy.body.contains(&len) {
            let (min, max) = (*policy.body.start(), *policy.body.end());
            return Err(MessageError::Body { len, min, max }.into());
        }
        if message.fds.len() > policy.fds {
            return Err(MessageError::Fds { got: message.fds.len(), expected: policy.fds }.into());
        }
        match request {
            R::GET_FEATURES => self.get_features(device),
            R::SET_FEATURES => self.set_features(&message.body, device),
            R::GET_PROTOCOL_FEATURES => Ok(number(PROTOCOL.bits())),
            R::SET_PROTOCOL_FEATURES => self.set_protocol_features(&message.body),
            R::GET_QUEUE_NUM => Ok(self.get_queue_num()),
            R::GET_MAX_MEM_SLOTS => Ok(number(MAX_SLOTS as u64)),
            R::SET_OWNER => Ok(Answer::Done),
            R::RESET_OWNER => self.reset_owner(device),
            R::RESET_DEVICE => self.reset_device(device),
            R::SET_MEM_TABLE => self.set_mem_table(message, device),
            R::ADD_MEM_REG => self.add_mem_reg(message, device),
            R::REM_MEM_REG => self.rem_mem_reg(&message.body, device),
            R::SET_VRING_NUM => self.set_vring_num(&message.body, device),
            R::SET_VRING_ADDR => self.set_vring_addr(&message.body, device),
            R::SET_VRING_BASE => self.set_vring_base(&message.body, device),
            R::GET_VRING_BASE => self.get_vring_base(&message.body, device),
            R::SET_VRING_KICK => self.set_vring_kick(message, device),
            R::SET_VRING_CALL => self.set_vring_call(message, device),
            R::SET_VRING_ERR => self.set_vring_err(message, device),
            R::SET_VRING_ENABLE => self.set_vring_enable(&message.body, device),
            R::SET_BACKEND_REQ_FD => self.set_backend_req_fd(message),
            R::GET_CONFIG => self.get_config(&message.body, device),
            R::SET_LOG_BASE => self.set_log_base(message, device),
            R::SET_LOG_FD => self.set_log_fd(&message),
            R::SEND_RARP => self.send_rarp(&message.body, device),
            R::SET_CONFIG => Err(Fault::ReadOnlyConfig),
            _ => Err(Fault::Unserved),
        }
    }

    /// Returns the vrings that their driver broke.
    pub fn broken(&self) -> Vec<usize> {
        let vrings = self.vrings.iter().enumerate();
        vrings.filter(|(_, vring)| vring.broken).map(|(index, _)| index).collect()
    }

    /// Returns the state of each vring, by its index.
    pub fn vring_states(&self) -> impl Iterator<Item = VringStanding> {
        let memory = self.memory_size().1 > 0 && !self.lacks_log();
        self.vrings.iter().map(move |vring| vring.standing(self.acked, memory))
    }

    /// Whether the front-end asked for the number of vrings and has started none since.
    pub fn left_at_queues(&self) -> bool {
        self.at_queues
    }

    /// Returns the features that the driver acknowledged.
    pub fn acked(&self) -> Option<Features> {
        self.acked
    }

    /// Returns the size of the guest's memory in bytes, and its number of regions.
    pub fn memory_size(&self) -> (u64, usize) {
        self.memory.as_ref().map_or((0, 0), MemoryTable::size)
    }

    /// Whether the guest's memory seems not to be shared: its driver kicks, and its rings stay empty.
    pub fn memory_is_unshared(&self) -> bool {
        self.unshared.is_unshared()
    }

    /// Returns the pairs that are served.
    pub fn serving(&self) -> Vec<usize> {
        self.serving.iter().enumerate().filter(|(_, on)| **on).map(|(pair, _)| pair).collect()
    }
}

/// Returns a reply of one number.
fn number(value: u64) -> Answer {
    Answer::Payload(value.to_ne_bytes().to_vec())
}

#[cfg(test)]
mod tests;
