//! The vhost-user protocol, with the `vhost` crate's front-end.
//!
//! In order: [`Session::open`] once, then [`Session::start`] and [`Session::stop`] in turn. A [`Setup`] has
//! everything that the back-end must know, and `start` sends all of it. So `start` serves a first activation,
//! a later one, and one on a new connection alike.
//! activation, a later one, and one on a new connection alike.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use log::debug;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Error as Socket, Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError};
use volt_net::config::{CONFIG_LEN, MIN_MTU, NetConfig, STATUS_LINK_UP};
use volt_virtio::features::{Class, Features};

use crate::virtio::Vring;
use crate::virtio::net::vhost_user::backend_channel::BackendChannel;
use crate::virtio::net::vhost_user::connection::within;
use crate::virtio::net::vhost_user::error::{ANSWER_LIMIT, SessionError, named};
use crate::virtio::net::vhost_user::setup::{PASSED, Setup};

/// Length of the configuration space up to `mtu`, which every back-end with a configuration has.
const CONFIG_TO_MTU: usize = 12;

/// A connection to a back-end, after the handshake.
pub struct Session {
    frontend: Frontend,
    /// The same socket, used to shut it down while `frontend` blocks on it.
    stream: UnixStream,
    features: Features,
    config: Option<NetConfig>,
    channel: Option<BackendChannel>,
    answers: bool,
    /// Number of enabled pairs.
    enabled: u16,
    /// Features of the last SET_FEATURES.
    acked: Features,
}

impl Session {
    /// Opens a session: does the handshake for `pairs` queue pairs.
    ///
    /// # Errors
    ///
    /// Fails if the back-end lacks something, disconnects, or does not answer in time.
    pub fn open(stream: UnixStream, pairs: u16) -> Result<Session, SessionError> {
        let copy = stream.try_clone().map_err(SessionError::Host)?;
        let frontend = Frontend::from_stream(stream, 2 * u64::from(pairs));
        let none = Features::empty();
        let mut session = Session {
            frontend,
            stream: copy,
            features: none,
            config: None,
            channel: None,
            answers: false,
            enabled: 0,
            acked: none,
        };
        session.limited(|session| session.handshake(pairs))?;
        Ok(session)
    }

    /// Returns the features that the back-end offers.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Returns the back-end's configuration space, if it has one.
    pub fn config(&self) -> Option<NetConfig> {
        self.config
    }

    /// Returns the largest payload according to the back-end. One that virtio does not allow is ignored.
    pub fn mtu(&self) -> Option<u16> {
        let config = self.config.filter(|_| self.features.contains(Features::NET_MTU))?;
        Some(config.mtu).filter(|mtu| *mtu >= MIN_MTU)
    }

    /// Returns whether the back-end's link is up. The link of a back-end that cannot report changes counts as
    /// up.
    pub(super) fn link_up(&self) -> bool {
        let says = self.channel.is_some() && self.features.contains(Features::NET_STATUS);
        !says || self.config.is_none_or(|config| config.status & STATUS_LINK_UP != 0)
    }

    /// Returns the channel for the back-end's own requests, if it has one.
    pub(super) fn channel(&self) -> Option<&BackendChannel> {
        self.channel.as_ref()
    }

    /// Handles the back-end's own requests. Reads its configuration again if one reports a change.
    ///
    /// # Errors
    ///
    /// Fails if the back-end does not send its configuration, or not in time. The end of the channel is no
    /// error.
    pub(super) fn take_requests(&mut self) -> Result<(), SessionError> {
        let Some(channel) = &mut self.channel else { return Ok(()) };
        match channel.take() {
            Ok(false) => Ok(()),
            Ok(true) => self.limited(|session| {
                session.ask_for_answers(false);
                session.config = session.read_config()?;
                Ok(())
            }),
            Err(error) => {
                debug!("the channel for the back-end's own requests ended: {error}");
                // Closing it removes it from every poll set.
                self.channel = None;
                Ok(())
            }
        }
    }

    /// Returns the connection.
    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn limited(
        &mut self,
        work: impl FnOnce(&mut Session) -> Result<(), SessionError>,
    ) -> Result<(), SessionError> {
        let stream = self.stream.try_clone().map_err(SessionError::Host)?;
        match within(ANSWER_LIMIT, &stream, || work(self)).map_err(SessionError::Host)? {
            (Err(SessionError::Closed { request }), true) => Err(SessionError::Late { request }),
            (result, _) => result,
        }
    }

    fn handshake(&mut self, pairs: u16) -> Result<(), SessionError> {
        named("SET_OWNER", self.frontend.set_owner())?;
        self.features = Features::from_bits_retain(named("GET_FEATURES", self.frontend.get_features())?);
        debug!("the back-end offers {}", self.features.named(Class::Net));
        if !self.features.contains(Features::PROTOCOL_FEATURES) {
            return Err(SessionError::NoProtocolFeatures);
        }
        if !self.features.contains(Features::VERSION_1) {
            return Err(SessionError::NoVersion1);
        }
        let wanted = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIG;
        let mut protocol = named("GET_PROTOCOL_FEATURES", self.frontend.get_protocol_features())? & wanted;
        if !protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            // The back-end has no requests to send.
            protocol.remove(VhostUserProtocolFeatures::BACKEND_REQ);
        }
        named("SET_PROTOCOL_FEATURES", self.frontend.set_protocol_features(protocol))?;
        self.answers = protocol.contains(VhostUserProtocolFeatures::REPLY_ACK);

        if protocol.contains(VhostUserProtocolFeatures::BACKEND_REQ) {
            // Before the configuration is read, so that no change is missed.
            let (channel, theirs) = BackendChannel::new().map_err(SessionError::Host)?;
            named("SET_BACKEND_REQ_FD", self.frontend.set_backend_request_fd(&theirs))?;
            self.channel = Some(channel);
        }
        if protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            self.config = self.read_config()?;
        }
        if pairs == 1 {
            // The answers of back-ends to GET_QUEUE_NUM differ most in this case, and matter least.
            return Ok(());
        }
        let offered = self.offered_pairs(protocol, pairs)?;
        if offered < u64::from(pairs) { Err(SessionError::Pairs { asked: pairs, offered }) } else { Ok(()) }
    }

    /// Returns the number of pairs that the back-end serves. GET_QUEUE_NUM counts vrings with some back-ends
    /// and pairs with others, so the configuration space comes first.
    fn offered_pairs(&self, protocol: VhostUserProtocolFeatures, asked: u16) -> Result<u64, SessionError> {
        if !protocol.contains(VhostUserProtocolFeatures::MQ) {
            return Ok(1);
        }
        let number = self.queue_num(protocol)?;
        let multi_queue = self.features.contains(Features::NET_MQ);
        Ok(match self.config {
            Some(config) if multi_queue => config.max_pairs.into(),
            // Back-ends that count pairs do so for QEMU, which needs MQ to be offered, too.
            _ if multi_queue && number < 2 * u64::from(asked) => number,
            _ => number / 2,
        })
    }

    /// Sends GET_QUEUE_NUM on a separate front-end object. After its answer, the crate's object refuses
    /// vrings of that number and above, which is wrong if pairs are counted.
    fn queue_num(&self, protocol: VhostUserProtocolFeatures) -> Result<u64, SessionError> {
        let stream = self.stream.try_clone().map_err(SessionError::Host)?;
        let mut asking = Frontend::from_stream(stream, 0);
        named("GET_FEATURES", asking.get_features())?;
        named("SET_PROTOCOL_FEATURES", asking.set_protocol_features(protocol))?;
        named("GET_QUEUE_NUM", asking.get_queue_num())
    }

    fn read_config(&mut self) -> Result<Option<NetConfig>, SessionError> {
        let (len, flags) = (CONFIG_TO_MTU as u32, VhostUserConfigFlags::empty());
        let reply = self.frontend.get_config(0, len, flags, &[0; CONFIG_TO_MTU]);
        if let Err(vhost::Error::VhostUserProtocol(Socket::BackendInternalError)) = reply {
            debug!("the back-end has no configuration of {CONFIG_TO_MTU} bytes");
            return Ok(None);
        }
        let (_, payload) = named("GET_CONFIG", reply)?;
        let mut bytes = [0; CONFIG_LEN];
        for (to, from) in bytes.iter_mut().zip(payload) {
            *to = from;
        }
        Ok(Some(NetConfig::from_bytes(&bytes)))
    }

    /// Sends everything in `setup` to the back-end, and starts it.
    ///
    /// # Errors
    ///
    /// Fails if the back-end disconnects, refuses, does not answer in time, or lacks a feature that the guest
    /// uses.
    pub fn start(&mut self, setup: &Setup) -> Result<(), SessionError> {
        let missing = setup.acked.intersection(PASSED).difference(self.features);
        if !missing.is_empty() {
            return Err(SessionError::Features(missing));
        }
        self.limited(|session| session.set_up(setup))?;
        for vring in &setup.vrings {
            // The previous connection may have consumed a kick without an answer, or answered without a call.
            let _ = vring.kick.write(1);
            setup.interrupt.used(vring.index);
        }
        Ok(())
    }

    fn set_up(&mut self, setup: &Setup) -> Result<(), SessionError> {
        self.ask_for_answers(true);
        self.set_features(setup)?;
        // In order of address, which back-ends with vhost-user-backend need. vm-memory keeps this order.
        let regions: Result<Vec<_>, _> =
            setup.memory.iter().map(VhostUserMemoryRegionInfo::from_guest_region).collect();
        let regions = regions.map_err(|_| SessionError::NotShared)?;
        named("SET_MEM_TABLE", self.frontend.set_mem_table(&regions))?;
        for vring in &setup.vrings {
            self.set_up_vring(setup, vring)?;
        }
        self.enable_pairs(setup)
    }

    fn set_up_vring(&mut self, setup: &Setup, vring: &Vring) -> Result<(), SessionError> {
        let Vring { index, queue, kick } = vring;
        let bad = |source| SessionError::Vring { index: *index, source };
        // vhost-user gives a vring's address in this process's memory. The memory table translates it.
        let place = |address| match setup.memory.get_host_address(GuestAddress(address)) {
            Ok(pointer) => Ok(pointer as u64),
            Err(error) => Err(bad(error)),
        };
        let places = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: place(queue.desc_table())?,
            used_ring_addr: place(queue.used_ring())?,
            avail_ring_addr: place(queue.avail_ring())?,
            log_addr: None,
        };
        // The state of the vring is in guest memory and nowhere else. A back-end that completes in order has
        // everything from the used index on still to do.
        let base = match queue.used_idx(&setup.memory, Ordering::Acquire) {
            Ok(index) => index.0,
            Err(_) => {
                return Err(bad(GuestMemoryError::InvalidGuestAddress(GuestAddress(queue.used_ring()))));
            }
        };
        let at = usize::from(*index);
        named("SET_VRING_NUM", self.frontend.set_vring_num(at, queue.size()))?;
        named("SET_VRING_ADDR", self.frontend.set_vring_addr(at, &places))?;
        named("SET_VRING_BASE", self.frontend.set_vring_base(at, base))?;
        named("SET_VRING_CALL", self.frontend.set_vring_call(at, setup.interrupt.call(*index)))?;
        named("SET_VRING_KICK", self.frontend.set_vring_kick(at, kick))
    }

    /// Stops the vrings of `setup`. After the return the back-end does not touch them.
    ///
    /// # Errors
    ///
    /// Fails if the back-end disconnects or does not answer in time. Its accesses to the vrings are then
    /// unknown.
    pub fn stop(&mut self, setup: &Setup) -> Result<(), SessionError> {
        self.limited(|session| {
            session.ask_for_answers(true);
            for vring in &setup.vrings {
                named("SET_VRING_ENABLE", session.frontend.set_vring_enable(vring.index.into(), false))?;
            }
            for vring in &setup.vrings {
                named("GET_VRING_BASE", session.frontend.get_vring_base(vring.index.into()))?;
            }
            Ok(())
        })
    }

    /// Sends the driver's changes by control commands to the back-end, if there are any.
    ///
    /// Waits for no answer, because nothing depends on it.
    ///
    /// # Errors
    ///
    /// Fails if the connection is broken.
    pub fn follow(&mut self, setup: &Setup) -> Result<(), SessionError> {
        let features = self.acked != setup.features_for(self.features);
        let pairs = self.enabled != setup.settings.pairs();
        if !features && !pairs {
            return Ok(());
        }
        self.limited(|session| {
            session.ask_for_answers(false);
            if features {
                session.set_features(setup)?;
            }
            if pairs { session.enable_pairs(setup) } else { Ok(()) }
        })
    }

    fn set_features(&mut self, setup: &Setup) -> Result<(), SessionError> {
        self.acked = setup.features_for(self.features);
        named("SET_FEATURES", self.frontend.set_features(self.acked.bits()))
    }

    fn enable_pairs(&mut self, setup: &Setup) -> Result<(), SessionError> {
        self.enabled = setup.settings.pairs();
        for vring in &setup.vrings {
            let on = vring.index / 2 < self.enabled;
            named("SET_VRING_ENABLE", self.frontend.set_vring_enable(vring.index.into(), on))?;
        }
        Ok(())
    }

    /// Checks that the back-end answers, with a request that changes nothing.
    ///
    /// # Errors
    ///
    /// Fails if it does not answer in time.
    pub fn probe(&mut self) -> Result<(), SessionError> {
        self.limited(|session| {
            session.ask_for_answers(false);
            named("GET_FEATURES", session.frontend.get_features()).map(drop)
        })
    }

    fn ask_for_answers(&self, on: bool) {
        let flags =
            if on && self.answers { VhostUserHeaderFlag::NEED_REPLY } else { VhostUserHeaderFlag::empty() };
        self.frontend.set_hdr_flags(flags);
    }
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
