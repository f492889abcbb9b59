//! Live migration: the log of written pages, and the announcement of a guest that has arrived ("Migration" in
//! the vhost-user specification).
//!
//! Pages are logged while `VHOST_F_LOG_ALL` is acknowledged. Rings that start then carry the log; every
//! change of it stops and starts them, and a ring that starts marks its whole used ring. A log that replaces
//! another takes over its marks. So no page is missing, whatever process served the ring before. While the
//! first log is due and has not come, no ring runs.

use super::*;

impl Session {
    /// Returns the features that this front-end may acknowledge.
    ///
    /// A guest can announce itself only if its front-end serves the control queue and the configuration
    /// space by itself. Such a front-end negotiates protocol features without CONFIG, as QEMU does.
    pub(super) fn offered(&self, device: &NetDevice) -> Features {
        let offered = device.offered() | Features::PROTOCOL_FEATURES | Features::VHOST_LOG_ALL;
        let announces = !self.protocol.is_empty() && !self.protocol.contains(Protocol::CONFIG);
        if announces { offered | Features::NET_GUEST_ANNOUNCE } else { offered }
    }

    /// Whether written pages are to be logged.
    pub(super) fn logs(&self) -> bool {
        self.acked.is_some_and(|acked| acked.contains(Features::VHOST_LOG_ALL))
    }

    /// Whether written pages are logged.
    pub fn dirty_logging(&self) -> bool {
        self.logs() && self.log.as_ref().is_some_and(|log| log.pages().is_some())
    }

    /// Whether pages are to be logged, and there is no log: rings cannot run.
    pub(super) fn lacks_log(&self) -> bool {
        self.logs() && !self.dirty_logging()
    }

    /// Returns the guest memory for rings, which log their pages if that is due. `None`: rings cannot run.
    pub(super) fn guest_memory(&self) -> Option<Arc<GuestMemory>> {
        let memory = self.memory.as_ref()?.guest();
        if !self.logs() {
            return Some(memory.clone());
        }
        let pages = self.log.as_ref()?.pages()?;
        Some(Arc::new(memory.logged(pages.clone())))
    }

    /// Fails if a request needs a protocol feature that was not negotiated.
    pub(super) fn needs(&self, feature: Protocol, name: &'static str) -> Result<(), Fault> {
        self.protocol.contains(feature).then_some(()).ok_or(Fault::NotNegotiated(name))
    }

    pub(super) fn set_log_base(&mut self, message: Message, device: &mut NetDevice) -> Answered {
        self.needs(Protocol::LOG_SHMFD, "LOG_SHMFD")?;
        let base = LogBase::decode(&message.body)?;
        let got = message.fds.len();
        let fd = message.fds.into_iter().next().ok_or(MessageError::Fds { got, expected: 1 })?;
        let log = MigrationLog::new(base, fd)?;
        self.check_log(&log, self.memory.as_ref(), &self.vrings)?;
        if self.logs() {
            // The reply tells the front-end that nothing marks pages in the previous log any more.
            self.stop_all(device)?;
            self.take_over_marks(&log);
        }
        debug!("log of written pages: {} bytes", base.size);
        self.log = Some(log);
        if self.logs() {
            self.run_all(device);
        }
        Ok(Answer::Payload(base.encode()))
    }

    /// Marks in `next` what is marked in the log in use: QEMU gives its log up when the guest resets the
    /// device, and sends the next one after the rings have started again. Looks at the guest's memory only: a
    /// hostile front-end's log may have any size.
    fn take_over_marks(&self, next: &MigrationLog) {
        let previous = self.log.as_ref().and_then(MigrationLog::pages);
        if let (Some(next), Some(previous), Some(memory)) = (next.pages(), previous, &self.memory) {
            for region in memory.guest().regions() {
                next.merge(previous, region.guest(), region.size());
            }
        }
    }

    /// The specification does not say what the descriptor is for, and no front-end in use sends one. It is
    /// closed.
    pub(super) fn set_log_fd(&self, message: &Message) -> Answered {
        self.needs(Protocol::LOG_SHMFD, "LOG_SHMFD")?;
        match message.fds.len() {
            1 => Ok(Answer::Done),
            got => Err(MessageError::Fds { got, expected: 1 }.into()),
        }
    }

    pub(super) fn send_rarp(&self, body: &[u8], device: &mut NetDevice) -> Answered {
        self.needs(Protocol::RARP, "RARP")?;
        let [a, b, c, d, e, f, ..] = decode_u64(body)?.to_ne_bytes();
        let mac = Mac([a, b, c, d, e, f]);
        if mac.is_multicast() || mac.0 == [0; 6] {
            return Err(Fault::Announced(mac));
        }
        device.announce(mac);
        Ok(Answer::Done)
    }

    /// Checks that the log in use has a bit for each page of `memory` and for each logged used ring of
    /// `vrings`.
    pub(super) fn check_log_in_use(
        &self,
        memory: Option<&MemoryTable>,
        vrings: &[VringSetup],
    ) -> Result<(), Fault> {
        self.log.as_ref().map_or(Ok(()), |log| self.check_log(log, memory, vrings))
    }

    fn check_log(
        &self,
        log: &MigrationLog,
        memory: Option<&MemoryTable>,
        vrings: &[VringSetup],
    ) -> Result<(), Fault> {
        for region in memory.into_iter().flat_map(|memory| memory.guest().regions()) {
            log.check("a memory region", region.guest(), region.size())?;
        }
        for (address, len) in vrings.iter().filter_map(VringSetup::used_log) {
            log.check("a used ring", address, len)?;
        }
        Ok(())
    }

    /// Logs that the logging of pages begins or ends, and forgets a log that is not needed any more.
    pub(super) fn logging_changed(&mut self, before: bool) {
        match (before, self.logs()) {
            (false, true) => info!(event = "dirty_logging_started"; "written pages are logged: a migration"),
            (true, false) => {
                self.log = None;
                info!(event = "dirty_logging_ended"; "written pages are no longer logged");
            }
            _ => {}
        }
    }
}
