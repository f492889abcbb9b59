//! What a device asks of its port.

use std::io;
use std::os::fd::OwnedFd;

use log::{debug, info, warn};
use volt_virtio::features::Features;

use super::NetDevice;
use crate::port::state::Reopening;

impl NetDevice {
    /// Sets the port's offloads to what the driver acknowledged: for frames that come from now on. Those that
    /// wait already are finished or dropped by pairs that are started with these features. A port that
    /// refuses is logged: it is gone, and will be set when it is back, or it goes on handing over plain
    /// frames.
    pub fn set_offloads(&mut self, acked: Features) {
        let result = self.port.set_offloads(acked);
        self.log(result, "setting offloads");
    }

    /// Lets the port spread frames over exactly the pairs that are `active`. While none is, the port stays as
    /// it was, so that frames wait for the guest instead of being dropped. A port that refuses is logged.
    pub fn attach(&mut self, active: &[bool]) {
        if active.contains(&true) {
            let result = self.port.attach(active);
            self.log(result, "attaching queues");
        }
    }

    /// Tells a failure when it is new: a guest can bring about as many as it likes, on an interface that is
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

    /// What another process needs to open the port again for this one.
    pub fn reopening(&self) -> Option<Reopening> {
        self.port.reopening()
    }

    /// Goes on with the queues of a port that another process has opened again. Pairs that run go on with the
    /// old ones until they are stopped and started.
    ///
    /// # Errors
    ///
    /// When they are no such queues.
    pub fn adopt_port(&mut self, queues: Vec<OwnedFd>) -> io::Result<()> {
        self.port.adopt(queues)?;
        info!(
            event = "interface_opened_again", interface = self.port.name();
            "{}: opened again", self.port.name()
        );
        Ok(())
    }

    /// Opens the port again. Pairs that run go on with its old queues until they are stopped and started.
    ///
    /// # Errors
    ///
    /// While the port cannot be opened.
    pub fn reopen_port(&mut self) -> io::Result<()> {
        self.port.reopen()?;
        info!(
            event = "interface_opened_again", interface = self.port.name();
            "{}: opened again", self.port.name()
        );
        Ok(())
    }
}
