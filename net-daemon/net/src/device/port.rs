//! The device's requests to its port.

use std::io;
use std::os::fd::OwnedFd;

use log::{debug, info, warn};
use volt_virtio::features::Features;

use super::NetDevice;
use crate::port::Reopener;

impl NetDevice {
    /// Sets the port's offloads to the acknowledged ones, for frames that arrive from now on. Pairs started
    /// with these features complete or drop the frames that already wait. A failure is logged. The port is
    /// then either gone, and gets its offloads when it is back, or it continues to deliver plain frames.
    pub fn set_offloads(&mut self, acked: Features) {
        let result = self.port.set_offloads(acked);
        self.log(result, "setting offloads");
    }

    /// Makes the port spread frames over exactly the `active` pairs. If no pair is active, the port stays as
    /// it is, so that frames wait for the guest instead of being dropped. A failure is logged.
    pub fn attach(&mut self, active: &[bool]) {
        if active.contains(&true) {
            let result = self.port.attach(active);
            self.log(result, "attaching queues");
        }
    }

    /// Logs a failure only when it is new: a guest can cause any number of failures on an interface that is
    /// gone.
    fn log(&mut self, result: io::Result<()>, doing: &'static str) {
        match result {
            Ok(()) => self.failing.retain(|failing| *failing != doing),
            Err(error) if self.failing.contains(&doing) => {
                debug!("{}: {doing} failed again: {error}", self.port.name());
            }
            Err(error) => {
                warn!(
                    event = "interface_setting_failed", interface = self.port.name();
                    "{}: {doing} failed: {error}", self.port.name()
                );
                self.failing.push(doing);
            }
        }
    }

    /// Whether a worker found the port gone since the last call.
    pub fn port_gone(&self) -> bool {
        self.trouble.take_port_gone()
    }

    /// Returns who can reopen the port.
    pub fn reopening(&self) -> Reopener<'_> {
        self.port.reopening()
    }

    /// Adopts the queues of a port that another process has reopened. Running pairs use the old queues until
    /// their next start.
    ///
    /// # Errors
    ///
    /// Fails if the descriptors are not queues of this port.
    pub fn adopt_port(&mut self, queues: Vec<OwnedFd>) -> io::Result<()> {
        self.port.adopt(queues)?;
        self.is_open_again();
        Ok(())
    }

    /// Reopens the port. Running pairs use the old queues until their next start.
    ///
    /// # Errors
    ///
    /// Fails while the port cannot be opened.
    pub fn reopen_port(&mut self) -> io::Result<()> {
        self.port.reopen()?;
        self.is_open_again();
        Ok(())
    }

    fn is_open_again(&self) {
        // This thread alone counts here.
        self.counters.of(0).reopened.add(1);
        info!(
            event = "interface_opened_again", interface = self.port.name();
            "{}: opened again", self.port.name()
        );
    }
}
