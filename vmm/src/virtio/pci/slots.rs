//! The virtio devices of a machine's PCI bus, each in its slot.
//!
//! [`PciSlots::put`] connects a device and shows it to the guest's next look at the bus, [`PciSlots::take`] ends it with all that
//! was connected. Both wait for accesses of vCPUs in progress, so neither is called in one to the devices' memory or to
//! their configuration spaces.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use crate::bus::{Bus, RangeError};
use crate::layout::pci_bar;
use crate::pci::PciBus;
use crate::pci::msi::MsiRoutes;
use crate::virtio::VirtioDevice;
use crate::virtio::pci::{BAR_SIZE, PciTransport};
use crate::virtio::registers::TransportError;

/// Why a device was not put into a slot.
#[derive(Debug, Error)]
pub enum SlotError {
    /// All are taken.
    #[error("all 31 slots of the PCI bus are taken: remove a device first")]
    Full,
    /// KVM, or the process's limits.
    #[error("a virtio device cannot be connected")]
    Transport(#[from] TransportError),
    /// Somebody else is where the BAR would be.
    #[error("two devices want the same addresses")]
    Range(#[from] RangeError),
}

/// What a device's function is connected to.
pub struct PciSlots {
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
    routes: Arc<MsiRoutes>,
    bus: Arc<Mutex<PciBus>>,
    mmio: Arc<Bus>,
}

impl PciSlots {
    /// Slots of a bus with nothing but its host bridge, for BARs on `mmio`. The VM has its interrupt controllers, and nobody else
    /// sets its routes.
    pub fn new(vm: Arc<VmFd>, memory: GuestMemoryMmap, mmio: Arc<Bus>) -> PciSlots {
        let routes = Arc::new(MsiRoutes::new(vm.clone()));
        PciSlots { vm, memory, routes, bus: Arc::default(), mmio }
    }

    /// The bus, for the ports that lead to it.
    pub fn bus(&self) -> Arc<Mutex<PciBus>> {
        self.bus.clone()
    }

    /// Whether there is room.
    ///
    /// # Errors
    ///
    /// [`SlotError::Full`].
    pub fn room(&self) -> Result<usize, SlotError> {
        self.lock().free_slot().ok_or(SlotError::Full)
    }

    /// Connects `device` and puts it into the first free slot, whose number this is. One call at a time.
    ///
    /// # Errors
    ///
    /// See [`SlotError`]; nothing is left of the device then.
    pub fn put(&self, device: Box<dyn VirtioDevice>) -> Result<usize, SlotError> {
        let slot = self.room()?;
        let base = pci_bar(slot).ok_or(SlotError::Full)?;
        let transport = PciTransport::new(device, self.memory.clone(), &self.vm, &self.routes, base)?;
        let transport = Arc::new(Mutex::new(transport));
        self.mmio.insert(base.into(), BAR_SIZE.into(), transport.clone())?;
        self.lock().insert(slot, transport);
        Ok(slot)
    }

    /// Empties `slot`: the device is reset and closed, and what it had of KVM's is free again. Otherwise it does nothing.
    pub fn take(&self, slot: usize) {
        let Some(base) = pci_bar(slot) else { return };
        let function = self.lock().remove(slot);
        if function.is_some() {
            self.mmio.remove(base.into());
        }
        // The last one, as no access is in progress.
        drop(function);
    }

    fn lock(&self) -> MutexGuard<'_, PciBus> {
        self.bus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
