//! A connection of the scripted back-end: its memory, its vrings and their frames. The thread of
//! [`super::Backend`] owns it and calls [`Connection::handle`] for each message and [`Connection::work`]
//! after each wake-up.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::control;
use super::dirty::Dirty;
use super::fault::Fault;
use super::tamper::Tamper;
use super::vring::Vring;
use super::{Script, Sent, Shared, locked};
use crate::frame::{NetHeader, gso};
use crate::memory::{GuestMemory, RegionSpec};
use crate::wire::{Channel, Message, WireError, feature, flags, longs, protocol, request, words};

mod checks;
mod memory;
mod migration;

/// A back-end's request: the configuration space has changed.
const CONFIG_CHANGE: u32 = 2;

/// The readable descriptors.
pub(super) struct Ready {
    pub(super) stop: bool,
    pub(super) message: bool,
}

pub(super) struct Connection {
    pub(super) channel: Channel,
    /// The channel for this back-end's own requests.
    requests: Option<Channel>,
    script: Script,
    acked: u64,
    /// Acknowledged protocol features.
    protocol: u64,
    regions: Vec<(RegionSpec, OwnedFd)>,
    memory: Option<GuestMemory>,
    vrings: BTreeMap<u32, Vring>,
    /// The front-end's log of written pages, at guest address 0.
    log: Option<GuestMemory>,
    /// Whether logging has ended once; only a fault uses it.
    logged: bool,
    /// Whether the front-end has asked for protocol features; only a fault uses it.
    asked: bool,
    /// The MAC of an announcement that has not been sent.
    announced: Option<[u8; 6]>,
}

impl Connection {
    pub(super) fn new(socket: UnixStream, script: Script) -> Connection {
        let vrings = BTreeMap::new();
        Connection {
            channel: Channel::new(socket),
            requests: None,
            script,
            acked: 0,
            protocol: 0,
            regions: Vec::new(),
            memory: None,
            vrings,
            log: None,
            logged: false,
            asked: false,
            announced: None,
        }
    }

    pub(super) fn poll(&mut self, wake: &OwnedFd, stop: &OwnedFd) -> Result<Ready, WireError> {
        let (kicks, mut kicked): (Vec<&OwnedFd>, Vec<&mut bool>) = self
            .vrings
            .values_mut()
            .filter_map(|vring| Some((vring.kick.as_ref()?, &mut vring.kicked)))
            .unzip();
        let mut fds = vec![
            PollFd::new(stop, PollFlags::IN),
            PollFd::new(self.channel.socket(), PollFlags::IN),
            PollFd::new(wake, PollFlags::IN),
        ];
        fds.extend(kicks.iter().map(|kick| PollFd::new(*kick, PollFlags::IN)));
        while let Err(errno) = rustix::event::poll(&mut fds, None) {
            if errno != Errno::INTR {
                return Err(errno.into());
            }
        }
        for (fd, poll) in
            [wake.as_fd()].into_iter().chain(kicks.iter().map(|kick| kick.as_fd())).zip(&fds[2..])
        {
            if !poll.revents().is_empty() {
                rustix::io::read(fd, &mut [0; 8])?;
            }
        }
        for (kicked, poll) in kicked.iter_mut().zip(&fds[3..]) {
            **kicked |= !poll.revents().is_empty();
        }
        Ok(Ready { stop: !fds[0].revents().is_empty(), message: !fds[1].revents().is_empty() })
    }

    fn reply(&self, to: &Message, body: &[u8]) -> Result<(), WireError> {
        if let Some((tamper, _)) = self.script.tamper.filter(|(tamper, _)| tamper.concerns(to.request)) {
            return tamper.reply(&self.channel, to.request, body);
        }
        let reply = if self.has(Fault::NoReplyFlag) { 0 } else { flags::REPLY };
        self.channel.send(to.request, reply, body, &[])
    }

    fn has(&self, fault: Fault) -> bool {
        self.script.fault == Some(fault)
    }

    /// Acts on a message, including faults; errors end the connection.
    pub(super) fn answer(&mut self, message: Message) -> Result<(), WireError> {
        let (request, asked) = (message.request, message.flags & flags::NEED_REPLY != 0);
        if let Some((Tamper::HangUp(at), _)) = self.script.tamper
            && at == request
        {
            return Err(WireError::Closed("by this script"));
        }
        self.handle(message)?;
        if self.has(Fault::RepliesTwice) && request == request::GET_FEATURES && asked {
            self.channel.send(request, flags::REPLY, &longs(&[0]), &[])?;
        }
        if self.has(Fault::DropsCoalesced) {
            while crate::wire::readable(self.channel.socket(), std::time::Duration::ZERO)?
                && rustix::io::read(self.channel.socket(), &mut [0; 4096])? > 0
            {}
        }
        Ok(())
    }

    /// Acts on a message; errors end the connection.
    fn handle(&mut self, mut message: Message) -> Result<(), WireError> {
        if let Err(wanted) = self.check(&message) {
            if message.flags & flags::NEED_REPLY != 0 {
                return self.reply(&message, &longs(&[1]));
            }
            return Err(message.unexpected(wanted));
        }
        let before = self.protocol;
        if self.answers_wrongly(&message)? {
            return Ok(());
        }
        let script = &self.script;
        match message.request {
            request::GET_FEATURES => return self.reply(&message, &longs(&[self.offered()])),
            request::GET_PROTOCOL_FEATURES => {
                self.asked = true;
                return self.reply(&message, &longs(&[self.script.protocol]));
            }
            request::GET_QUEUE_NUM => return self.reply(&message, &longs(&[script.queue_num])),
            request::GET_MAX_MEM_SLOTS => return self.reply(&message, &longs(&[32])),
            request::GET_CONFIG => return self.get_config(&message),
            request::GET_VRING_BASE => return self.get_vring_base(&message),
            request::SET_FEATURES if self.has(Fault::StaleFeatures) && self.acked != 0 => {}
            request::SET_FEATURES => self.set_features(message.u64()?),
            request::SET_LOG_BASE if self.protocol & protocol::LOG_SHMFD != 0 => {
                return self.set_log_base(&mut message);
            }
            request::SEND_RARP => self.send_rarp(&message)?,
            request::SET_MEM_TABLE => self.set_mem_table(&mut message)?,
            request::ADD_MEM_REG if self.has(Fault::AddIgnored) => {}
            request::ADD_MEM_REG => self.add_mem_reg(&mut message)?,
            request::REM_MEM_REG => self.rem_mem_reg(&message)?,
            request::SET_VRING_NUM => {
                let [index, size] = message.words()?;
                let size = if self.has(Fault::AnySize) { size & 0xffff } else { size };
                self.vring(index).size =
                    u16::try_from(size).map_err(|_| message.unexpected("a ring size"))?;
            }
            request::SET_VRING_ADDR => {
                let [index, ring_flags, d0, d1, u0, u1, a0, a1, l0, l1] = message.words()?;
                let long = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
                let log = self.used_log(index, ring_flags, long(l0, l1));
                let vring = self.vring(index);
                (vring.addrs, vring.log) = (Some([long(d0, d1), long(u0, u1), long(a0, a1)]), log);
            }
            request::SET_VRING_KICK => {
                let (index, fd) = vring_fd(&mut message)?;
                let keep = self.has(Fault::FirstKick) && self.vring(index).kick.is_some();
                if !keep {
                    self.vring(index).kick = fd;
                    self.vring(index).kicked = false;
                }
            }
            request::SET_VRING_CALL => {
                let (index, fd) = vring_fd(&mut message)?;
                let keep = self.has(Fault::FirstCall) && self.vring(index).call.is_some();
                if !keep {
                    self.vring(index).call = fd;
                }
            }
            request::SET_VRING_ENABLE => {
                let [index, enable] = message.words()?;
                let forgotten = self.has(Fault::ForgetsEarlyEnable) && self.vring(index).kick.is_none();
                let enable = enable == 1 && !forgotten
                    || (self.has(Fault::NeverDisables) && self.vring(index).enabled);
                if self.has(Fault::DisablesAll) && !enable {
                    self.vrings.values_mut().for_each(|vring| vring.enabled = false);
                }
                self.vring(index).enabled = enable;
            }
            request::SET_VRING_BASE => {
                let [index, base] = message.words()?;
                self.vring(index).base = u16::try_from(base).map_err(|_| message.unexpected("a base"))?;
            }
            request::SET_PROTOCOL_FEATURES => self.protocol = message.u64()?,
            request::SET_BACKEND_REQ_FD => {
                let channel = message.fds.pop().ok_or_else(|| message.unexpected("a descriptor"))?;
                self.requests = Some(Channel::new(channel.into()));
            }
            request::SET_OWNER | request::RESET_OWNER | request::SET_VRING_ERR | request::SET_CONFIG => {}
            request::RESET_DEVICE if self.has(Fault::ResetIgnored) => {}
            request::RESET_DEVICE => self.vrings.clear(),
            _ => return Err(message.unexpected("a request that this back-end offers")),
        }
        let acks = before | if self.has(Fault::LateAck) { 0 } else { self.protocol };
        let acks = acks & protocol::REPLY_ACK != 0 && !self.has(Fault::NoAck);
        let asked = message.flags & flags::NEED_REPLY != 0 && acks;
        if asked || self.has(Fault::ReplyUnasked) {
            return self.reply(&message, &longs(&[u64::from(self.has(Fault::NegativeAck))]));
        }
        Ok(())
    }

    fn offered(&self) -> u64 {
        match self.script.fault {
            Some(Fault::NoVersion1) => self.script.features & !feature::VERSION_1,
            Some(Fault::LogHalf) => self.script.features & !feature::LOG_ALL,
            Some(Fault::FeaturesChange) if self.acked != 0 => self.acked,
            _ => self.script.features,
        }
    }

    pub(super) fn change_config(&mut self, config: Vec<u8>) -> Result<(), WireError> {
        self.script.config = config;
        self.requests.as_ref().map_or(Ok(()), |requests| requests.send(CONFIG_CHANGE, 0, &[], &[]))
    }

    fn vring(&mut self, index: u32) -> &mut Vring {
        self.vrings.entry(index).or_default()
    }

    fn get_config(&self, message: &Message) -> Result<(), WireError> {
        let mut body = message.body.clone();
        let [offset, size] = match body.get(..8) {
            Some(_) => [0, 4]
                .map(|at| u32::from_le_bytes([body[at], body[at + 1], body[at + 2], body[at + 3]]) as usize),
            None => return Err(message.unexpected("offset and size")),
        };
        let offset = if self.has(Fault::ConfigFromZero) { 0 } else { offset };
        let space = self.script.config.get(offset..offset + size);
        match (body.get_mut(12..12 + size), space) {
            (Some(into), Some(from)) => into.copy_from_slice(from),
            _ => return self.reply(message, &[]),
        }
        self.reply(message, &body)
    }

    fn get_vring_base(&mut self, message: &Message) -> Result<(), WireError> {
        let [index, _] = message.words()?;
        let fault = self.script.fault;
        let vring = self.vring(index);
        let mut base = vring.ring.as_ref().map_or(0, |ring| u32::from(ring.used_idx()));
        match fault {
            Some(Fault::BaseZero) => base = 0,
            Some(Fault::BaseOffByOne) => base += 1,
            _ => {}
        }
        if fault != Some(Fault::BaseGoesOn) {
            vring.ring = None;
            vring.kick = None;
        }
        self.reply(message, &words(&[index, base]))
    }

    /// Returns the header of an echo: work that the driver left to the other side is left to the driver
    /// again, if it has acknowledged the offload.
    fn handed_back(&self, header: &NetHeader) -> NetHeader {
        if self.acked & feature::GUEST_CSUM == 0 || self.acked & feature::CSUM == 0 {
            return NetHeader::default();
        }
        let mut back = *header;
        match self.script.fault {
            Some(Fault::ChecksumForgotten) => back.flags = 0,
            Some(Fault::SegmentSizeLost) => back.gso_size = 0,
            Some(Fault::EcnLost) => back.gso_type &= !gso::ECN,
            Some(Fault::AllTcp4) if back.gso_type == gso::TCPV6 => back.gso_type = gso::TCPV4,
            Some(Fault::UsoAsUfo) if back.gso_type == gso::UDP_L4 => back.gso_type = gso::UDP,
            _ => {}
        }
        back
    }

    /// Moves frames while there are any: guest to test, test to guest.
    pub(super) fn work(&mut self, shared: &Shared, sender: &Sender<Sent>) -> Result<(), String> {
        let Some(memory) = self.memory.clone() else { return Ok(()) };
        let by_features = self.acked & feature::PROTOCOL_FEATURES == 0;
        let (dirty, by_guest) = (self.dirty(), self.protocol & protocol::GPA_ADDRESSES != 0);
        for vring in self.vrings.values_mut() {
            vring.start(&memory, self.acked, by_features, by_guest, self.script.fault);
        }
        self.announce(shared, sender);
        self.command(&memory, by_features, &dirty)?;
        let pairs: Vec<u32> = self.vrings.keys().copied().filter(|index| index % 2 == 1).collect();
        for index in pairs {
            let fault = self.script.fault;
            if fault == Some(Fault::PairOnly) && !self.vring(index - 1).runs(by_features, fault) {
                continue;
            }
            let vring = self.vring(index);
            if fault == Some(Fault::OnlyKicks) && !std::mem::take(&mut vring.kicked) {
                continue;
            }
            let runs = vring.runs(by_features, fault);
            if !runs && fault != Some(Fault::DiscardsDisabled) {
                continue;
            }
            let mut frames = vring.transmit(&memory, fault, &dirty)?;
            if !runs {
                frames.clear();
            }
            if fault == Some(Fault::HeadersStop) && frames.iter().any(|(header, _)| header.gso_type == 77) {
                self.vring(index).enabled = false;
            }
            for (header, bytes) in frames {
                let pair = index as usize / 2;
                // No guest has room for an oversized frame.
                if self.script.echo && bytes.len() <= 65_550 {
                    let back = self.handed_back(&header);
                    let to = if self.has(Fault::OnePair) { 0 } else { pair };
                    locked(&shared.inbox).push_back((to, back, bytes.clone()));
                }
                let _ = sender.send((pair, header, bytes));
            }
        }
        let mergeable = self.acked & feature::MRG_RXBUF != 0;
        let mut inbox = locked(&shared.inbox);
        while let Some((pair, header, bytes)) = inbox.front() {
            let vring = self.vrings.entry(2 * *pair as u32).or_default();
            let fault = self.script.fault;
            // Frames that a driver was to complete are dropped for one that cannot.
            let stale = header.flags & gso::NEEDS_CSUM != 0 && self.acked & feature::GUEST_CSUM == 0;
            if stale && fault != Some(Fault::StaleOffloads) {
                inbox.pop_front();
                continue;
            }
            let done = vring.runs(by_features, fault)
                && vring.receive(&memory, header, bytes, mergeable, fault, &dirty)?;
            vring.log_used(&dirty);
            if !done {
                break;
            }
            inbox.pop_front();
        }
        Ok(())
    }
}

impl Connection {
    /// Serves the control queue, if one was negotiated.
    fn command(&mut self, memory: &GuestMemory, by_features: bool, dirty: &Dirty) -> Result<(), String> {
        if self.acked & feature::CTRL_VQ == 0 {
            return Ok(());
        }
        let (mq, pairs, fault) = (self.acked & feature::MQ != 0, self.script.pairs(), self.script.fault);
        match self.vrings.get_mut(&control::vring(mq, pairs, fault)) {
            Some(vring) if vring.runs(by_features, fault) => vring.command(memory, mq, pairs, fault, dirty),
            _ => Ok(()),
        }
    }
}

fn vring_fd(message: &mut Message) -> Result<(u32, Option<OwnedFd>), WireError> {
    let value = message.u64()?;
    Ok(((value & 0xff) as u32, message.fds.pop()))
}
