//! Turns a driver's write to a vring's notification address (virtio 1.2, 4.1.4.4) into a kick, with an
//! ioeventfd of KVM.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use log::warn;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

/// An address that KVM watches until this is dropped.
pub(super) struct Notification {
    vm: Arc<VmFd>,
    kick: Arc<EventFd>,
    address: u64,
}

impl Notification {
    /// Makes KVM turn every write to `address` into a write to `kick`.
    pub(super) fn new(
        vm: &Arc<VmFd>,
        kick: &Arc<EventFd>,
        address: u64,
    ) -> Result<Notification, errno::Error> {
        // For any value and width: the address alone selects the vring, and KVM need not decode the write.
        vm.register_ioevent(kick, &IoEventAddress::Mmio(address), NoDatamatch)?;
        Ok(Notification { vm: vm.clone(), kick: kick.clone(), address })
    }
}

impl Drop for Notification {
    fn drop(&mut self) {
        let address = IoEventAddress::Mmio(self.address);
        if let Err(error) = self.vm.unregister_ioevent(&self.kick, &address, NoDatamatch) {
            warn!(
                event = "notification_not_removed";
                "KVM does not remove the notification at {:#x}: {error}", self.address
            );
        }
    }
}
