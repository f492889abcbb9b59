//! From the set-up to running rings and back.

use volt_virtio::ring::RingError;

use super::*;

/// The role of a vring in the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Receive or transmit queue of a pair.
    Data(usize),
    Control,
}

impl Session {
    /// Returns the index of the control queue. With MQ it follows all pairs of the device, without MQ the
    /// first pair (virtio 1.2, 5.1.2). Front-ends that serve it themselves do not acknowledge it here.
    pub fn control_index(&self) -> Option<usize> {
        let acked = self.acked.filter(|acked| acked.contains(Features::NET_CTRL_VQ))?;
        Some(if acked.contains(Features::NET_MQ) { self.vrings.len() - 1 } else { 2 })
    }

    fn role(&self, index: usize, device: &NetDevice) -> Option<Role> {
        match index {
            _ if self.control_index() == Some(index) => Some(Role::Control),
            _ if index / 2 < device.pairs() => Some(Role::Data(index / 2)),
            _ => None,
        }
    }

    /// Changes the set-up of vring `index`. If it is or was started, stops its pair or control queue
    /// meanwhile.
    pub(super) fn change(
        &mut self,
        index: usize,
        device: &mut NetDevice,
        change: impl FnOnce(&mut VringSetup),
    ) -> Answered {
        let vring = &mut self.vrings[index];
        if vring.kick.is_none() {
            change(vring);
            if vring.kick.is_none() {
                return Ok(Answer::Done);
            }
            self.stop_around(index, device)?;
            self.run_around(index, device);
            return Ok(Answer::Done);
        }
        self.stop_around(index, device)?;
        change(&mut self.vrings[index]);
        self.run_around(index, device);
        Ok(Answer::Done)
    }

    /// Passes a call descriptor to the pair of vring `index`, if that runs. Returns whether it does.
    pub(super) fn set_call(
        &self,
        index: usize,
        call: Option<Arc<Notifier>>,
        device: &mut NetDevice,
    ) -> Result<bool, DeviceError> {
        match self.role(index, device) {
            Some(Role::Data(pair)) => device.set_call(pair, index, call),
            _ => Ok(false),
        }
    }

    /// Stops the pair or control queue of vring `index`.
    pub(super) fn stop_around(&mut self, index: usize, device: &mut NetDevice) -> Result<(), DeviceError> {
        match self.role(index, device) {
            Some(Role::Data(pair)) => self.stop_pair(pair, device),
            Some(Role::Control) => {
                self.control = None;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Starts the runnable parts of the pair or control queue of vring `index`.
    pub(super) fn run_around(&mut self, index: usize, device: &mut NetDevice) {
        match self.role(index, device) {
            Some(Role::Data(pair)) => self.run_pair(pair, device),
            Some(Role::Control) => self.run_control_queue(device),
            None => {}
        }
        self.attach(device);
    }

    pub(super) fn stop_all(&mut self, device: &mut NetDevice) -> Result<(), DeviceError> {
        self.control = None;
        (0..device.pairs()).try_for_each(|pair| self.stop_pair(pair, device))
    }

    pub(super) fn run_all(&mut self, device: &mut NetDevice) {
        for pair in 0..device.pairs() {
            self.run_pair(pair, device);
        }
        self.run_control_queue(device);
        self.attach(device);
    }

    /// Stops all rings. All popped chains are published then. The session stays as it is otherwise.
    ///
    /// # Errors
    ///
    /// Fails if a worker does not stop.
    pub fn pause(&mut self, device: &mut NetDevice) -> Result<(), DeviceError> {
        self.stop_all(device)
    }

    /// Starts the rings that ran when the session was paused or exported.
    pub fn resume(&mut self, device: &mut NetDevice) {
        // An earlier process may have died after it set other offloads, and before that was recorded.
        if let Some(acked) = self.acked {
            device.set_offloads(acked);
        }
        self.run_all(device);
        self.tell_link(device);
    }

    /// Ends the session. Nothing touches guest memory afterwards.
    ///
    /// # Errors
    ///
    /// Fails if a worker does not stop.
    pub fn close(mut self, device: &mut NetDevice) -> Result<(), DeviceError> {
        self.stop_all(device)?;
        device.give_up_stashes();
        // Frames for the next front-end must not be larger than it can take.
        device.set_offloads(Features::empty());
        Ok(())
    }

    fn stop_pair(&mut self, pair: usize, device: &mut NetDevice) -> Result<(), DeviceError> {
        device.stop(pair)?;
        self.note_broken(device);
        Ok(())
    }

    /// Marks these vrings as broken, from an earlier process.
    pub fn set_broken(&mut self, broken: &[usize]) {
        for (index, vring) in self.vrings.iter_mut().enumerate() {
            vring.broken |= broken.contains(&index);
        }
    }

    /// Marks the rings that workers found broken. Returns whether there are any.
    fn note_broken(&mut self, device: &NetDevice) -> bool {
        let broken = device.take_broken();
        self.set_broken(&broken);
        !broken.is_empty()
    }

    /// Detaches pairs whose receive ring the driver broke. Call it when the device has woken its owner.
    /// Returns whether anything changed.
    pub fn leave_out_broken(&mut self, device: &mut NetDevice) -> bool {
        let changed = self.note_broken(device);
        if changed {
            self.attach(device);
        }
        changed
    }

    fn run_pair(&mut self, pair: usize, device: &mut NetDevice) {
        let (Some(acked), Some(memory)) = (self.acked, self.guest_memory()) else { return };
        if self.control_index().is_some_and(|control| control / 2 == pair && pair > 0) {
            return;
        }
        let (rx, tx) = (pair * 2, pair * 2 + 1);
        // Every driver uses the first pair.
        let unshared = (pair == 0).then(|| self.unshared.clone());
        let mut vrings = PairVrings { unshared, ..PairVrings::default() };
        if self.vrings[rx].processing(acked) == Processing::Normal {
            vrings.rx = self.vrings[rx].vring(rx, &memory, acked, device);
        }
        let processing = self.vrings[tx].processing(acked);
        if processing != Processing::None {
            vrings.tx = self.vrings[tx].vring(tx, &memory, acked, device);
            vrings.discard_tx = processing == Processing::Discard;
        }
        self.vrings[rx].was_enabled |= vrings.rx.is_some();
        self.vrings[tx].was_enabled |= vrings.tx.is_some();
        if let Err(error) = device.start(pair, vrings, acked) {
            warn!(
                event = "queue_pair_not_started", pair;
                "queue pair {pair} cannot run: {}", volt_virtio::error_chain(&error)
            );
            if let WorkerError::Kick(index, _) = error.source {
                // The other half can run without it.
                self.vrings[index].broken = true;
                self.run_pair(pair, device);
            }
        }
    }

    /// Attaches the pairs that accept frames to the port, and logs when these change.
    fn attach(&mut self, device: &mut NetDevice) {
        let served_here = self.control_index().is_some();
        let serving: Vec<bool> = (0..device.pairs())
            .map(|pair| {
                let used = !served_here || pair < usize::from(self.control_pairs);
                let rx = &self.vrings[pair * 2];
                let enabled = self.acked.is_some_and(|acked| rx.processing(acked) == Processing::Normal);
                used && device.runs(pair) && enabled && rx.kick.is_some() && !rx.broken
            })
            .collect();
        device.attach(&serving);
        if serving != self.serving {
            let pairs: Vec<_> =
                serving.iter().enumerate().filter(|(_, on)| **on).map(|(pair, _)| pair).collect();
            info!(event = "serving"; "serving queue pairs {pairs:?}");
            self.serving = serving;
        }
    }

    fn run_control_queue(&mut self, device: &mut NetDevice) {
        let (Some(acked), Some(memory), Some(index)) =
            (self.acked, self.guest_memory(), self.control_index())
        else {
            return;
        };
        if self.control.is_none() && self.vrings[index].processing(acked) == Processing::Normal {
            let vring = self.vrings[index].vring(index, &memory, acked, device);
            match vring.map(ControlQueue::new) {
                Some(Ok(control)) => {
                    control.call();
                    self.control = Some(control);
                }
                Some(Err(error)) => {
                    warn!(
                        event = "control_queue_not_started";
                        "the control queue cannot run: {}", volt_virtio::error_chain(&error)
                    );
                    self.vrings[index].broken = true;
                }
                None => {}
            }
        }
    }

    /// Returns the notifier that becomes readable by the control queue's kick, if that queue is served here.
    /// The caller must clear it, and call [`Session::control_kicked`].
    pub fn control_kick(&self) -> Option<&Arc<Notifier>> {
        self.control.as_ref().map(ControlQueue::kicked)
    }

    /// Carries out the commands in the control queue. Returns whether there may be more. The driver gets no
    /// answer before [`Session::answer_control`].
    pub fn control_kicked(&mut self, device: &mut NetDevice) -> bool {
        let (Some(mut control), Some(acked)) = (self.control.take(), self.acked) else { return false };
        let limits = Limits { acked, max_pairs: device.config().max_pairs };
        let result = control.run(limits, |command| {
            if let Command::SetPairs(asked) = command {
                // Before the answer: no frame may go to a pair beyond these afterwards (virtio 1.2,
                // 5.1.6.5.5).
                self.control_pairs = asked;
                self.attach(device);
            }
        });
        self.control_result(control, result)
    }

    /// Answers the driver's commands. Returns whether more have arrived.
    pub fn answer_control(&mut self) -> bool {
        let Some(mut control) = self.control.take() else { return false };
        let result = control.answer();
        self.control_result(control, result)
    }

    fn control_result(&mut self, control: ControlQueue, result: Result<bool, RingError>) -> bool {
        match result {
            Ok(more) => {
                self.control = Some(control);
                more
            }
            Err(error) => {
                let index = control.vring.index;
                warn!(
                    event = "vring_stopped", vring = index;
                    "vring {index} stopped: {error}; only a reset by the driver starts it again"
                );
                control.err();
                self.vrings[index].broken = true;
                false
            }
        }
    }

    /// Whether the front-end can be told that the link goes down and up. Others always see it up: they would
    /// read the state only once.
    pub(super) fn tells_of_link(&self) -> bool {
        self.protocol.contains(Protocol::CONFIG) && self.backend.is_some()
    }

    /// Tells the front-end of a changed link state. Returns whether it was told.
    pub fn tell_link(&mut self, device: &NetDevice) -> bool {
        let down = !device.link_is_up();
        let Some(backend) = self.backend.as_ref().filter(|_| self.tells_of_link()) else { return false };
        if down == self.told_down {
            return false;
        }
        if let Err(error) = backend.config_changed() {
            debug!("the front-end cannot be told of its link state: {error}");
            return false;
        }
        self.told_down = down;
        let how = if down { "down" } else { "up" };
        info!(
            event = "link_reported", interface = device.port_name(), up = !down;
            "{} is {how}: the front-end is told that its link is", device.port_name()
        );
        true
    }

    /// Moves all pairs to the new queues of a port that was reopened.
    ///
    /// # Errors
    ///
    /// Fails if a worker does not stop.
    pub fn port_changed(&mut self, device: &mut NetDevice) -> Result<(), DeviceError> {
        self.stop_all(device)?;
        // Reports on the old queues do not apply to the new ones.
        device.port_gone();
        if let Some(acked) = self.acked {
            device.set_offloads(acked);
        }
        self.run_all(device);
        Ok(())
    }
}
