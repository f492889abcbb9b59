//! How a driver's write to a vring's notification address (virtio 1.2, 4.1.4.4) becomes a kick: by an
//! ioeventfd of KVM's.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use log::warn;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

/// An address that KVM watches, until this is dropped.
pub(super) struct Notification {
    vm: Arc<VmFd>,
    kick: Arc<EventFd>,
    address: u64,
}

impl Notification {
    /// Every write at `address` is one to `kick`.
    pub(super) fn new(
        vm: &Arc<VmFd>,
        kick: &Arc<EventFd>,
        address: u64,
    ) -> Result<Notification, errno::Error> {
        // Whatever is written, and however wide: the address alone says which vring, and KVM need not decode
        // the write.
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
                "KVM does not give the notification at {:#x} back: {error}", self.address
            );
        }
    }
}
