//! One function for each request.

use volt_net::config::STATUS_LINK_UP;
use volt_net::state::Numbered;
use volt_net::unshared::SHARE_MEMORY;

use super::*;

impl Session {
    pub(super) fn get_features(&self, device: &NetDevice) -> Answered {
        Ok(number(self.offered(device).bits()))
    }

    /// A second SET_FEATURES has the same effect as the first: a reloaded driver may want other features.
    pub(super) fn set_features(&mut self, body: &[u8], device: &mut NetDevice) -> Answered {
        let asked = Features::from_bits_retain(decode_u64(body)?);
        let surplus = asked.difference(self.offered(device));
        if !surplus.is_empty() {
            return Err(Fault::Features(surplus));
        }
        let (logged, logs) = (self.logs(), asked.contains(Features::VHOST_LOG_ALL));
        if logs {
            self.needs(Protocol::LOG_SHMFD, "LOG_SHMFD")?;
        }
        self.stop_all(device)?;
        let same = |acked: Features| (acked ^ asked).difference(Features::VHOST_LOG_ALL).is_empty();
        let same_features = self.acked.is_some_and(same);
        let runs = self.vrings.iter().any(|vring| vring.kick.is_some());
        if same_features && runs && (logged || logs) {
            // A migration begins, goes on or ends: the driver continues.
            self.acked = Some(asked);
            self.logging_changed(logged);
            self.run_all(device);
            return Ok(Answer::Done);
        }
        if !same_features {
            // Frames that were received for other features do not suit these.
            device.give_up_stashes();
        }
        if !asked.contains(Features::VERSION_1) {
            self.acked = None;
            self.logging_changed(logged);
            return Err(Fault::Legacy);
        }
        info!(
            event = "features_acknowledged", features = asked.bits();
            "features acknowledged: {}", asked.named(Class::Net)
        );
        self.acked = Some(asked);
        self.logging_changed(logged);
        self.control_pairs = 1;
        device.set_offloads(asked);
        self.run_all(device);
        Ok(Answer::Done)
    }

    pub(super) fn set_protocol_features(&mut self, body: &[u8]) -> Answered {
        let asked = decode_u64(body)?;
        let surplus = asked & !PROTOCOL.bits();
        if surplus != 0 {
            return Err(Fault::Protocol(surplus));
        }
        self.protocol = Protocol::from_bits_retain(asked);
        if !self.protocol.contains(Protocol::BACKEND_REQ) {
            self.backend = None;
        }
        Ok(Answer::Done)
    }

    pub(super) fn get_queue_num(&mut self) -> Answer {
        self.at_queues = true;
        number(self.vrings.len() as u64)
    }

    /// Disables all rings, as the specification requires for this obsolete request. QEMU sends it if
    /// RESET_DEVICE was not negotiated.
    pub(super) fn reset_owner(&mut self, device: &mut NetDevice) -> Answered {
        self.stop_all(device)?;
        for vring in &mut self.vrings {
            vring.enabled = false;
            vring.was_enabled = false;
        }
        self.run_all(device);
        Ok(Answer::Done)
    }

    /// Returns to the state of a new connection. The settings of the connection itself stay. The log does
    /// not: it could refuse memory after its migration. A front-end that goes on sends it again with its
    /// rings.
    pub(super) fn reset_device(&mut self, device: &mut NetDevice) -> Answered {
        self.stop_all(device)?;
        device.give_up_stashes();
        let logged = self.logs();
        let fresh = Session::new(device, self.max_ring_size);
        *self = Session {
            protocol: self.protocol,
            backend: self.backend.take(),
            told_down: self.told_down,
            memory: self.memory.take(),
            repeated: std::mem::take(&mut self.repeated),
            ..fresh
        };
        self.logging_changed(logged);
        Ok(Answer::Done)
    }

    pub(super) fn set_mem_table(&mut self, message: Message, device: &mut NetDevice) -> Answered {
        let regions = MemoryRegion::decode_table(&message.body)?;
        let (got, expected) = (message.fds.len(), regions.len());
        if got != expected {
            if got == 0 {
                warn!(
                    event = "memory_not_shared";
                    "the front-end shares no memory: {SHARE_MEMORY}"
                );
            }
            return Err(MessageError::Fds { got, expected }.into());
        }
        let memory = MemoryTable::new(&regions, message.fds)?;
        self.repeated.clear();
        self.set_memory(memory, device)
    }

    pub(super) fn add_mem_reg(&mut self, message: Message, device: &mut NetDevice) -> Answered {
        let region = MemoryRegion::decode_single(&message.body)?;
        let Some(fd) = message.fds.into_iter().next() else {
            return Err(MessageError::Fds { got: 0, expected: 1 }.into());
        };
        // QEMU's multi-queue devices are one vhost device for each pair. Up to version 7.2, each of them
        // adds, and later removes, every region on the same connection. A refusal would end the guest's
        // network.
        if self.memory.as_ref().is_some_and(|memory| memory.contains(region)) {
            if self.repeated.len() >= MAX_SLOTS {
                return Err(RegionError::Slots.into());
            }
            self.repeated.push(region);
            return Ok(Answer::Done);
        }
        let memory = self.memory.clone().unwrap_or_default().with(region, fd)?;
        self.set_memory(memory, device)
    }

    pub(super) fn rem_mem_reg(&mut self, body: &[u8], device: &mut NetDevice) -> Answered {
        let region = MemoryRegion::decode_single(body)?;
        if let Some(index) = self.repeated.iter().position(|repeated| repeated.is_same(&region)) {
            self.repeated.swap_remove(index);
            return Ok(Answer::Done);
        }
        let memory = self.memory.clone().unwrap_or_default().without(region)?;
        self.set_memory(memory, device)
    }

    fn set_memory(&mut self, memory: MemoryTable, device: &mut NetDevice) -> Answered {
        self.check_log_in_use(Some(&memory), &[])?;
        self.stop_all(device)?;
        let (bytes, regions) = memory.size();
        let note =
            if memory.is_sealed() { "" } else { ", which the front-end can truncate (no F_SEAL_SHRINK)" };
        info!(
            event = "memory_mapped", bytes, regions;
            "guest memory: {}{note}", memory.describe()
        );
        self.memory = Some(memory);
        self.vrings.iter_mut().for_each(VringSetup::mend);
        self.run_all(device);
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_num(&mut self, body: &[u8], device: &mut NetDevice) -> Answered {
        let VringState { index, num: size } = VringState::decode(body)?;
        let index = self.index(index, device)?;
        let max = self.max_ring_size;
        let fits = |n: &u16| n.is_power_of_two() && *n <= max;
        let size = u16::try_from(size).ok().filter(fits).ok_or(Fault::RingSize { size, max })?;
        let changed = VringSetup { size: Some(size), addr: self.vrings[index].addr, ..VringSetup::default() };
        self.check_log_in_use(None, &[changed])?;
        self.change(index, device, |vring| {
            vring.size = Some(size);
            vring.mend();
        })
    }

    pub(super) fn set_vring_addr(&mut self, body: &[u8], device: &mut NetDevice) -> Answered {
        let guest = self.protocol.contains(GPA_ADDRESSES);
        let addr = VringAddr::decode(body, guest)?;
        let index = self.index(addr.index, device)?;
        let changed = VringSetup { size: self.vrings[index].size, addr: Some(addr), ..VringSetup::default() };
        self.check_log_in_use(None, &[changed])?;
        self.change(index, device, |vring| {
            vring.addr = Some(addr);
            vring.mend();
        })
    }

    /// Stores the base only to return it: the ring's position is in guest memory.
    pub(super) fn set_vring_base(&mut self, body: &[u8], device: &NetDevice) -> Answered {
        let VringState { index, num } = VringState::decode(body)?;
        let index = self.index(index, device)?;
        self.vrings[index].base = u16::try_from(num).map_err(|_| Fault::Base(num))?;
        Ok(Answer::Done)
    }

    pub(super) fn get_vring_base(&mut self, body: &[u8], device: &mut NetDevice) -> Answered {
        let asked = VringState::decode(body)?;
        let index = self.index(asked.index, device)?;
        self.stop_around(index, device)?;
        self.vrings[index].mend();
        let ring = match (&self.memory, self.acked) {
            (Some(memory), Some(acked)) => self.vrings[index].ring(index, memory.guest(), acked),
            _ => None,
        };
        let vring = &mut self.vrings[index];
        let base = ring.map_or(vring.base, |ring| ring.base());
        vring.base = base;
        vring.stop();
        self.run_around(index, device);
        debug!("vring {index} stopped at index {base}");
        Ok(Answer::Payload(VringState { index: asked.index, num: base.into() }.encode()))
    }

    pub(super) fn set_vring_kick(&mut self, message: Message, device: &mut NetDevice) -> Answered {
        let (index, kick) = self.notifier(message, device)?;
        let kick = kick.ok_or(Fault::Polling)?;
        self.at_queues = false;
        if self.memory.as_ref().is_none_or(|memory| memory.size().1 == 0) {
            warn!(
                event = "memory_not_shared", vring = index;
                "vring {index} is started, but the front-end shares no memory: {SHARE_MEMORY}"
            );
        }
        self.change(index, device, |vring| {
            vring.stop();
            vring.kick = Some(kick);
        })
    }

    pub(super) fn set_vring_call(&mut self, message: Message, device: &mut NetDevice) -> Answered {
        let (index, call) = self.notifier(message, device)?;
        if !self.set_call(index, call.as_deref().cloned(), device)? {
            return self.change(index, device, |vring| vring.call = call);
        }
        // The guest masked or moved an interrupt: nothing stops for that.
        self.vrings[index].call = call;
        Ok(Answer::Done)
    }

    pub(super) fn set_vring_err(&mut self, message: Message, device: &mut NetDevice) -> Answered {
        let (index, err) = self.notifier(message, device)?;
        self.change(index, device, |vring| vring.err = err)
    }

    fn notifier(
        &self,
        message: Message,
        device: &NetDevice,
    ) -> Result<(usize, Option<SharedNotifier>), Fault> {
        let VringFd { index, fd } = VringFd::decode(message)?;
        let index = self.index(index, device)?;
        Ok((index, fd.map(Notifier::new).transpose()?.map(|notifier| Numbered::fresh(Arc::new(notifier)))))
    }

    /// QEMU enables vring 0 before it acknowledges features, and waits for the answer. So the value is
    /// stored.
    pub(super) fn set_vring_enable(&mut self, body: &[u8], device: &mut NetDevice) -> Answered {
        let VringState { index, num } = VringState::decode(body)?;
        let index = self.index(index, device)?;
        let enabled = match num {
            0 => false,
            1 => true,
            other => return Err(Fault::Enable(other)),
        };
        if self.vrings[index].enabled == enabled {
            return Ok(Answer::Done);
        }
        self.change(index, device, |vring| vring.enabled = enabled)
    }

    pub(super) fn set_backend_req_fd(&mut self, message: Message) -> Answered {
        let got = message.fds.len();
        let fd = message.fds.into_iter().next().ok_or(MessageError::Fds { got, expected: 1 })?;
        self.backend = Some(BackendChannel::new(fd)?);
        Ok(Answer::Done)
    }

    /// Answers a range outside the configuration space with an empty body, as the protocol requires.
    pub(super) fn get_config(&mut self, body: &[u8], device: &NetDevice) -> Answered {
        let range = ConfigRange::decode(body)?;
        let mut space = [0; CONFIG_SPACE];
        let mut config = device.config();
        self.told_down = self.tells_of_link() && !device.link_is_up();
        if self.told_down {
            config.status &= !STATUS_LINK_UP;
        }
        let config = config.to_bytes();
        space[..config.len()].copy_from_slice(&config);
        let end = range.offset.checked_add(range.size);
        let bytes = end.and_then(|end| space.get(range.offset as usize..end as usize));
        Ok(Answer::Payload(bytes.map_or_else(
            || {
                warn!(
                    event = "config_out_of_range";
                    "GET_CONFIG: {} bytes at {} are outside the configuration space",
                    range.size, range.offset
                );
                Vec::new()
            },
            |bytes| range.encode(bytes),
        )))
    }

    fn index(&self, index: u32, device: &NetDevice) -> Result<usize, Fault> {
        let count = self.vrings.len();
        let known = usize::try_from(index).ok().filter(|index| *index < count);
        known.ok_or(Fault::VringIndex { index, count, pairs: device.pairs() })
    }
}
