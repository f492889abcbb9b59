//! The announcement of a guest that has arrived.

use super::NetDevice;
use crate::config::Mac;

impl NetDevice {
    /// Announces `mac`, the guest's address, on the network, as soon as a pair runs and the port has room.
    pub fn announce(&mut self, mac: Mac) {
        self.announcement = Some(mac);
        self.pass_announcement();
    }

    /// Passes the announcement that waits to a running pair.
    pub(super) fn pass_announcement(&mut self) {
        if let Some(worker) = self.workers.iter().flatten().find(|worker| !worker.is_stuck())
            && let Some(mac) = self.announcement.take()
        {
            worker.announce(mac);
        }
    }
}
