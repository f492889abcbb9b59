//! One front-end's session: what it has said so far, and what that means for the device.
//!
//! Life cycle: made empty when a front-end connects; [`Session::handle`] for each message, one function for
//! each request; [`Session::close`] when the connection ends, for whatever reason. A request that changes
//! something about a pair stops the pair, changes the set-up, and runs whatever of the pair can run then.

use std::sync::Arc;

use log::{debug, info, warn};
use thiserror::Error;
use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;
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
    ConfigRange, FrontendReq, Header, MemoryRegion, Message, MessageError, VringAddr, VringFd, VringState,
    decode_u64, policy, unserved_waits,
};
use crate::vring::{Processing, SharedNotifier, VringSetup, VringStanding};

mod requests;
mod running;
pub mod state;

/// Protocol features that are served.
///
/// BACKEND_REQ carries one thing, that the link is down or up; and User-mode Linux 6.1 has no interrupt for a
/// device without it. Not INFLIGHT_SHMFD: the used index says all that it could, and Cloud Hypervisor replays
/// rings less well where it is offered.
const PROTOCOL: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::RESET_DEVICE);

/// Bytes of configuration space that can be read; zeroes behind those that the device has.
const CONFIG_SPACE: usize = 256;

/// Why a request is refused.
#[derive(Debug, Error)]
pub enum Fault {
    /// Malformed.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// A memory region.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Features that were not offered.
    #[error("acknowledges features that were not offered: {}", .0.named(Class::Net))]
    Features(Features),
    /// Protocol features that were not offered.
    #[error("acknowledges protocol features that were not offered: {0:#x}")]
    Protocol(u64),
    /// A driver from before virtio 1.0.
    #[error(
        "the driver did not acknowledge VERSION_1: legacy drivers, with their shorter frame header, are not \
         served"
    )]
    Legacy,
    /// A vring beyond those configured.
    #[error("there is no vring {index}: {pairs} queue pairs have vrings 0 to {}; see --queues", count - 1)]
    VringIndex {
        /// What was asked for.
        index: u32,
        /// Vrings there are.
        count: usize,
        /// Queue pairs there are.
        pairs: usize,
    },
    /// A size that no ring can have here.
    #[error("ring size {size} is not a power of two from 1 to {max}; see --queue-size")]
    RingSize {
        /// What was asked for.
        size: u32,
        /// The largest.
        max: u16,
    },
    /// A base that no ring can have.
    #[error("ring base {0} is more than 65535")]
    Base(u32),
    /// An enable that is neither.
    #[error("a vring can be enabled by 1 or disabled by 0, not by {0}")]
    Enable(u32),
    /// A ring without kick, which would have to be polled.
    #[error("a vring without kick descriptor would have to be polled, which is not served")]
    Polling,
    /// A kick, call or err descriptor.
    #[error(transparent)]
    Notify(#[from] NotifyError),
    /// A descriptor for the back-end's own requests.
    #[error(transparent)]
    BackendChannel(#[from] NoSocket),
    /// Writes to the configuration space.
    #[error("the configuration space cannot be written")]
    ReadOnlyConfig,
    /// Dirty logging.
    #[error("dirty logging, and so live migration, is not served")]
    Logging,
    /// Known, but not offered.
    #[error("not served, and not offered")]
    Unserved,
    /// Not known.
    #[error("unknown request")]
    Unknown,
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Why a session ends by itself.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A refused request whose front-end could not be told otherwise.
    #[error("{request}")]
    Refused {
        /// Name or code of the request.
        request: String,
        /// Why.
        source: Fault,
    },
    /// The device cannot be trusted any more: the daemon has to end.
    #[error("the device failed")]
    Device(#[source] DeviceError),
}

/// What a request is answered with.
enum Answer {
    /// Nothing, or a plain success for a front-end that wants to know.
    Done,
    /// Its payload.
    Payload(Vec<u8>),
}

type Answered = Result<Answer, Fault>;

/// A session.
#[derive(Debug)]
pub struct Session {
    acked: Option<Features>,
    protocol: Protocol,
    memory: Option<MemoryTable>,
    /// Regions that were added again as they are, and must be removed as often.
    repeated: Vec<MemoryRegion>,
    vrings: Vec<VringSetup>,
    max_ring_size: u16,
    control: Option<ControlQueue>,
    /// Pairs that the driver uses, where the control queue is served here.
    control_pairs: u16,
    /// For requests of the back-end.
    backend: Option<BackendChannel>,
    /// The front-end was told last that its link is down.
    told_down: bool,
    /// It has asked how many vrings there are, and has started none.
    at_queues: bool,
    /// Whether the rings of its first pair fill.
    unshared: Arc<UnsharedCheck>,
    /// Pairs that are served, as last logged.
    serving: Vec<bool>,
}

impl Session {
    /// An empty session for `device`, whose vrings may have up to `max_ring_size` entries.
    pub fn new(device: &NetDevice, max_ring_size: u16) -> Session {
        let count = device.pairs() * 2 + usize::from(device.offered().contains(Features::NET_CTRL_VQ));
        Session {
            acked: None,
            protocol: Protocol::empty(),
            memory: None,
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
    /// When the connection must end: a request was refused, and its front-end has no other way to learn of
    /// it.
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
        // UML asks for an answer to the very message that negotiates REPLY_ACK, and waits for it. Who drops
        // it with a message that asks for an answer does as well.
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
            // Nothing depends on these: the front-end goes on without.
            Err(fault @ (Fault::Legacy | Fault::Unserved)) if !waits => {
                warn!(event = "request_refused", request = name; "{name} refused: {fault}");
                Ok(None)
            }
            Err(source) => Err(SessionError::Refused { request: name, source }),
        }
    }

    /// Checks the message's shape and calls the request's function.
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
            R::SET_CONFIG => Err(Fault::ReadOnlyConfig),
            _ => Err(Fault::Unserved),
        }
    }

    /// The vrings that their driver broke.
    pub fn broken(&self) -> Vec<usize> {
        let vrings = self.vrings.iter().enumerate();
        vrings.filter(|(_, vring)| vring.broken).map(|(index, _)| index).collect()
    }

    /// How each vring of the session stands, by its index.
    pub fn vring_states(&self) -> impl Iterator<Item = VringStanding> {
        self.vrings.iter().map(|vring| vring.standing(self.acked))
    }

    /// Whether the front-end has asked how many vrings there are, and has started none since.
    pub fn left_at_queues(&self) -> bool {
        self.at_queues
    }

    /// The features that the driver acknowledged.
    pub fn acked(&self) -> Option<Features> {
        self.acked
    }

    /// The guest's memory, in bytes and regions.
    pub fn memory_size(&self) -> (u64, usize) {
        self.memory.as_ref().map_or((0, 0), MemoryTable::size)
    }

    /// Pairs that are served.
    pub fn serving(&self) -> Vec<usize> {
        self.serving.iter().enumerate().filter(|(_, on)| **on).map(|(pair, _)| pair).collect()
    }
}

/// A reply of one number.
fn number(value: u64) -> Answer {
    Answer::Payload(value.to_ne_bytes().to_vec())
}

#[cfg(test)]
mod tests;
