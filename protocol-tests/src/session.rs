//! The usual script: connect, negotiate, set up every vring, enable, and later disconnect.
//!
//! Most tests begin with [`Session::start`]. Tests of other orders call [`Frontend`]'s methods directly and
//! use [`offer_vring`] for a vring's messages.

use std::time::Duration;

use crate::frontend::Frontend;
use crate::memory::{GuestMemory, RegionSpec};
use crate::nic::{Nic, NicError, Queue};
use crate::wire::{WireError, feature, protocol, request};

/// The wishes of a session. Features that the back-end does not offer are left out silently.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Device features to acknowledge if offered.
    pub features: u64,
    /// Protocol features to acknowledge if offered.
    pub protocol: u64,
    /// Queue pairs that get rings.
    pub pairs: u32,
    /// Index of one more vring, a control queue; it is the last of the card's queues.
    pub control: Option<u32>,
    /// Descriptors of each ring.
    pub size: u16,
    /// Memory, contiguous in guest addresses.
    pub regions: Vec<RegionSpec>,
    /// Start value of the ring indices.
    pub start: u16,
    /// Pairs to enable at the end.
    pub enabled: u32,
}

impl Default for Setup {
    /// Returns one pair of 256 descriptors in 64 MiB, with the features that every modern driver acknowledges
    /// and no segmentation offload, so that frames arrive unchanged.
    fn default() -> Setup {
        Setup {
            features: feature::VERSION_1
                | feature::PROTOCOL_FEATURES
                | feature::EVENT_IDX
                | feature::INDIRECT_DESC
                | feature::MRG_RXBUF,
            protocol: protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG,
            pairs: 1,
            control: None,
            size: 256,
            regions: vec![RegionSpec::linear(0x10_0000, 64 << 20, 0)],
            start: 0,
            enabled: 1,
        }
    }
}

impl Setup {
    /// Returns the default with `pairs` pairs, all enabled, and MQ without a control queue: as from a
    /// front-end that serves the control queue itself.
    pub fn pairs(pairs: u32) -> Setup {
        let base = Setup::default();
        Setup { pairs, enabled: pairs, features: base.features | feature::MQ, ..base }
    }

    /// Makes the card: memory, rings, descriptors.
    pub fn nic(&self, features: u64) -> Result<Nic, NicError> {
        let mem = GuestMemory::new(&self.regions)?;
        let start = self.regions.iter().map(|region| region.guest).min().unwrap_or(0);
        let end = self.regions.iter().map(|region| region.guest + region.size).max().unwrap_or(0);
        let vrings: Vec<u32> = (0..2 * self.pairs).chain(self.control).collect();
        Ok(Nic::new(mem, (start, end), &vrings, self.size, features, self.start)?)
    }
}

/// An error on the wire or on a ring.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The rings.
    #[error(transparent)]
    Nic(#[from] NicError),
}

/// A connection with its card.
#[derive(Debug)]
pub struct Session {
    /// The connection.
    pub frontend: Frontend,
    /// The card.
    pub nic: Nic,
    /// Protocol features of both sides.
    pub protocol: u64,
}

impl Session {
    /// Runs the whole script on a new connection.
    pub fn start(mut frontend: Frontend, setup: &Setup) -> Result<Session, SessionError> {
        let (features, protocol) = negotiate(&mut frontend, setup.features, setup.protocol)?;
        let nic = setup.nic(features)?;
        let session = Session { frontend, nic, protocol };
        session.attach(setup.enabled)?;
        Ok(session)
    }

    /// Passes the card of an ended connection to a new one, like a front-end that reconnects. The base is
    /// each ring's used index.
    pub fn resume(mut frontend: Frontend, nic: Nic, setup: &Setup) -> Result<Session, SessionError> {
        let (_, protocol) = negotiate(&mut frontend, nic.features, setup.protocol)?;
        let session = Session { frontend, nic, protocol };
        session.attach(setup.enabled)?;
        Ok(session)
    }

    /// Shares the memory and starts every ring again, on the same connection, each at its current index.
    pub fn restart(&self) -> Result<(), WireError> {
        self.attach(self.nic.pairs())
    }

    /// Sends memory table, vrings, and enables for the first `enabled` pairs.
    fn attach(&self, enabled: u32) -> Result<(), WireError> {
        self.frontend.set_mem_table(&self.nic.mem)?;
        for queue in &self.nic.queues {
            offer_vring(&self.frontend, &self.nic.mem, queue, queue.ring.used_idx())?;
        }
        for queue in &self.nic.queues {
            // The control queue follows all pairs, at any index.
            if queue.vring < 2 * enabled || queue.vring >= 2 * self.nic.pairs() {
                self.frontend.set_vring_enable(queue.vring, true)?;
            }
        }
        self.frontend.sync()
    }

    /// Stops every vring and returns the back-end's bases, with the card.
    pub fn stop(self) -> Result<(Vec<u32>, Nic), WireError> {
        let bases = self.nic.queues.iter().map(|queue| self.frontend.get_vring_base(queue.vring));
        Ok((bases.collect::<Result<_, _>>()?, self.nic))
    }

    /// Returns the receive queue of a pair.
    pub fn rx(&mut self, pair: usize) -> &mut Queue {
        self.nic.rx(pair)
    }

    /// Returns the transmit queue of a pair.
    pub fn tx(&mut self, pair: usize) -> &mut Queue {
        self.nic.tx(pair)
    }

    /// Sets the time limit of each message.
    pub fn set_patience(&mut self, patience: Duration) {
        self.frontend.channel().set_patience(patience);
    }
}

/// Sends owner, features and protocol features; returns those of both sides, of each kind.
pub fn negotiate(frontend: &mut Frontend, features: u64, protocol: u64) -> Result<(u64, u64), WireError> {
    frontend.set_owner()?;
    let common = frontend.get_features()? & features;
    let mut both = 0;
    if common & feature::PROTOCOL_FEATURES != 0 {
        both = frontend.get_protocol_features()? & protocol;
        frontend.set_protocol_features(both)?;
        frontend.want_replies(both & protocol::REPLY_ACK != 0);
    }
    frontend.set_features(common)?;
    Ok((common, both))
}

/// Sends the messages that describe one vring, in QEMU's order, without its enable.
pub fn offer_vring(
    frontend: &Frontend,
    mem: &GuestMemory,
    queue: &Queue,
    base: u16,
) -> Result<(), WireError> {
    let (vring, layout) = (queue.vring, queue.ring.layout());
    frontend.set_vring_num(vring, u32::from(layout.size))?;
    frontend.set_vring_base(vring, u32::from(base))?;
    frontend.set_vring_addr(vring, mem, &layout)?;
    frontend.set_vring_fd(request::SET_VRING_CALL, vring, Some(&queue.call))?;
    frontend.set_vring_fd(request::SET_VRING_KICK, vring, Some(&queue.kick))
}
