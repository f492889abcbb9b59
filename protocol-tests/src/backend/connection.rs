//! One connection of the scripted back-end: what the front-end has said of memory and vrings, and the frames that
//! move by it. [`super::Backend`]'s thread owns it and calls [`Connection::handle`] for each message and
//! [`Connection::work`] after each wake-up.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::{Script, Sent, Shared, locked};
use crate::device::DeviceRing;
use crate::frame::{NET_HEADER_LEN, NetHeader};
use crate::memory::{GuestMemory, RegionSpec};
use crate::ring::Layout;
use crate::wire::{Channel, Message, WireError, feature, flags, longs, request, words};

/// Which of the descriptors can be read.
pub(super) struct Ready {
    pub(super) stop: bool,
    pub(super) message: bool,
}

/// What the front-end said of one vring.
#[derive(Debug, Default)]
struct Vring {
    size: u16,
    /// Descriptor table, used ring, available ring, in the front-end's own addresses.
    addrs: Option<[u64; 3]>,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    enabled: bool,
    ring: Option<DeviceRing>,
}

pub(super) struct Connection {
    pub(super) channel: Channel,
    script: Script,
    acked: u64,
    regions: Vec<(RegionSpec, OwnedFd)>,
    memory: Option<GuestMemory>,
    vrings: BTreeMap<u32, Vring>,
}

impl Connection {
    pub(super) fn new(socket: UnixStream, script: Script) -> Connection {
        let vrings = BTreeMap::new();
        Connection {
            channel: Channel::new(socket),
            script,
            acked: 0,
            regions: Vec::new(),
            memory: None,
            vrings,
        }
    }

    pub(super) fn poll(&self, wake: &OwnedFd, stop: &OwnedFd) -> Result<Ready, WireError> {
        let kicks: Vec<&OwnedFd> = self.vrings.values().filter_map(|vring| vring.kick.as_ref()).collect();
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
        Ok(Ready { stop: !fds[0].revents().is_empty(), message: !fds[1].revents().is_empty() })
    }

    fn reply(&self, to: &Message, body: &[u8]) -> Result<(), WireError> {
        self.channel.send(to.request, flags::REPLY, body, &[])
    }

    /// Acts on one message; errors end the connection.
    pub(super) fn handle(&mut self, mut message: Message) -> Result<(), WireError> {
        let script = &self.script;
        match message.request {
            request::GET_FEATURES => return self.reply(&message, &longs(&[script.features])),
            request::GET_PROTOCOL_FEATURES => return self.reply(&message, &longs(&[script.protocol])),
            request::GET_QUEUE_NUM => return self.reply(&message, &longs(&[script.queue_num])),
            request::GET_MAX_MEM_SLOTS => return self.reply(&message, &longs(&[32])),
            request::GET_CONFIG => return self.get_config(&message),
            request::GET_VRING_BASE => return self.get_vring_base(&message),
            request::SET_FEATURES => self.acked = message.u64()?,
            request::SET_MEM_TABLE => self.set_mem_table(&mut message)?,
            request::ADD_MEM_REG => self.add_mem_reg(&mut message)?,
            request::REM_MEM_REG => {
                let spec = region_at(&message, 8)?;
                self.regions.retain(|(region, _)| (region.guest, region.size) != (spec.guest, spec.size));
                self.remap()?;
            }
            request::SET_VRING_NUM => {
                let [index, size] = message.words()?;
                self.vring(index).size =
                    u16::try_from(size).map_err(|_| message.unexpected("a ring size"))?;
            }
            request::SET_VRING_ADDR => {
                let [index, _, d0, d1, u0, u1, a0, a1, _, _] = message.words()?;
                let long = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
                self.vring(index).addrs = Some([long(d0, d1), long(u0, u1), long(a0, a1)]);
            }
            request::SET_VRING_KICK => {
                let (index, fd) = vring_fd(&mut message)?;
                self.vring(index).kick = fd;
            }
            request::SET_VRING_CALL => {
                let (index, fd) = vring_fd(&mut message)?;
                self.vring(index).call = fd;
            }
            request::SET_VRING_ENABLE => {
                let [index, enable] = message.words()?;
                self.vring(index).enabled = enable == 1;
            }
            request::SET_OWNER
            | request::RESET_OWNER
            | request::SET_PROTOCOL_FEATURES
            | request::SET_VRING_BASE
            | request::SET_VRING_ERR
            | request::SET_CONFIG => {}
            request::RESET_DEVICE => self.vrings.clear(),
            _ => return Err(message.unexpected("a request that this back-end offers")),
        }
        if message.flags & flags::NEED_REPLY != 0 { self.reply(&message, &longs(&[0])) } else { Ok(()) }
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
        let space = self.script.config.get(offset..offset + size);
        match (body.get_mut(12..12 + size), space) {
            (Some(into), Some(from)) => into.copy_from_slice(from),
            _ => return self.reply(message, &[]),
        }
        self.reply(message, &body)
    }

    fn get_vring_base(&mut self, message: &Message) -> Result<(), WireError> {
        let [index, _] = message.words()?;
        let vring = self.vring(index);
        let base = vring.ring.take().map_or(0, |ring| u32::from(ring.used_idx()));
        vring.kick = None;
        self.reply(message, &words(&[index, base]))
    }

    fn set_mem_table(&mut self, message: &mut Message) -> Result<(), WireError> {
        let count = message.fds.len();
        let specs = (0..count).map(|at| region_at(message, 8 + 32 * at)).collect::<Result<Vec<_>, _>>()?;
        self.regions = specs.into_iter().zip(message.fds.drain(..)).collect();
        self.remap()
    }

    fn add_mem_reg(&mut self, message: &mut Message) -> Result<(), WireError> {
        let spec = region_at(message, 8)?;
        let fd = message.fds.pop().ok_or_else(|| message.unexpected("a descriptor"))?;
        self.regions.push((spec, fd));
        self.remap()
    }

    /// Maps all regions anew; running rings go on in the new mapping.
    fn remap(&mut self) -> Result<(), WireError> {
        let again = |(spec, fd): &(RegionSpec, OwnedFd)| fd.try_clone().map(|fd| (*spec, fd));
        let memory = GuestMemory::map(self.regions.iter().map(again).collect::<io::Result<_>>()?)?;
        self.memory = Some(memory);
        self.vrings.values_mut().for_each(|vring| vring.ring = None);
        Ok(())
    }

    /// Moves frames while there are some: guest to test, test to guest.
    pub(super) fn work(&mut self, shared: &Shared, sender: &Sender<Sent>) -> Result<(), String> {
        let Some(memory) = self.memory.clone() else { return Ok(()) };
        let by_features = self.acked & feature::PROTOCOL_FEATURES == 0;
        for vring in self.vrings.values_mut() {
            vring.start(&memory, self.acked, by_features);
        }
        let pairs: Vec<u32> = self.vrings.keys().copied().filter(|index| index % 2 == 1).collect();
        for index in pairs {
            let vring = self.vring(index);
            let frames = vring.transmit(&memory)?;
            for (header, bytes) in frames {
                let pair = index as usize / 2;
                if self.script.echo {
                    locked(&shared.inbox).push_back((pair, NetHeader::default(), bytes.clone()));
                }
                let _ = sender.send((pair, header, bytes));
            }
        }
        let mergeable = self.acked & feature::MRG_RXBUF != 0;
        let mut inbox = locked(&shared.inbox);
        while let Some((pair, header, bytes)) = inbox.front() {
            let vring = self.vrings.entry(2 * *pair as u32).or_default();
            if !vring.receive(&memory, header, bytes, mergeable)? {
                break;
            }
            inbox.pop_front();
        }
        Ok(())
    }
}

impl Vring {
    /// Starts the ring once it has all it needs and is enabled.
    fn start(&mut self, memory: &GuestMemory, acked: u64, enabled_anyway: bool) {
        let (Some([desc, used, avail]), None, Some(_)) = (self.addrs, &self.ring, &self.kick) else { return };
        if self.size == 0 || !(self.enabled || enabled_anyway) {
            return;
        }
        if let (Some(desc), Some(used), Some(avail)) =
            (memory.guest(desc), memory.guest(used), memory.guest(avail))
        {
            let layout = Layout { size: self.size, desc, avail, used };
            self.ring = Some(DeviceRing::start(memory.clone(), layout, acked & feature::EVENT_IDX != 0));
        }
    }

    fn publish(&mut self) {
        if self.ring.as_mut().is_some_and(DeviceRing::publish)
            && let Some(call) = &self.call
        {
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    fn transmit(&mut self, memory: &GuestMemory) -> Result<Vec<(NetHeader, Vec<u8>)>, String> {
        let mut frames = Vec::new();
        while let Some(ring) = &mut self.ring {
            let Some(chain) = ring.pop().map_err(|fault| fault.to_string())? else { break };
            let bytes = chain.read(memory);
            ring.push(chain.head, 0);
            match bytes.split_first_chunk::<NET_HEADER_LEN>() {
                Some((header, frame)) => frames.push((NetHeader::decode(header), frame.to_vec())),
                None => return Err(format!("chain of {} bytes is shorter than a header", bytes.len())),
            }
        }
        self.publish();
        Ok(frames)
    }

    /// Delivers one frame, in several buffers if they may be merged. False: not enough buffers now.
    fn receive(
        &mut self,
        memory: &GuestMemory,
        header: &NetHeader,
        frame: &[u8],
        mergeable: bool,
    ) -> Result<bool, String> {
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let total = NET_HEADER_LEN + frame.len();
        let (mut chains, mut room) = (Vec::new(), 0);
        while room < total {
            match ring.pop().map_err(|fault| fault.to_string())? {
                Some(chain) => {
                    room += chain.room();
                    chains.push(chain);
                }
                None if chains.is_empty() => return Ok(false),
                None => return Err(format!("frame of {} bytes found {room} bytes of buffers", frame.len())),
            }
            if !mergeable && room < total {
                return Err(format!("frame of {} bytes and a chain of {room}", frame.len()));
            }
        }
        let header = NetHeader { num_buffers: chains.len() as u16, ..*header };
        let bytes = [header.encode().as_slice(), frame].concat();
        let mut done = 0;
        for chain in &chains {
            let len = chain.write(memory, &bytes[done..]);
            ring.push(chain.head, len as u32);
            done += len;
        }
        self.publish();
        Ok(true)
    }
}

fn region_at(message: &Message, at: usize) -> Result<RegionSpec, WireError> {
    let bytes = message.body.get(at..at + 32).ok_or_else(|| message.unexpected("a memory region"))?;
    let long = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| bytes[8 * i + b]));
    Ok(RegionSpec { guest: long(0), size: long(1), user: long(2), offset: long(3) })
}

fn vring_fd(message: &mut Message) -> Result<(u32, Option<OwnedFd>), WireError> {
    let value = message.u64()?;
    Ok(((value & 0xff) as u32, message.fds.pop()))
}
