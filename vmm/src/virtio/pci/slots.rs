//! The virtio devices of a machine's PCI bus, each in its slot.
//!
//! [`PciSlots::put`] connects a device and shows it to the guest's next look at the bus, [`PciSlots::take`]
//! ends it with all that was connected. That waits for accesses of vCPUs to this device, so it is not called
//! in one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use crate::board::bus::{Bus, RangeError};
use crate::board::layout::{PCI_BAR_SIZE, PCI_SLOTS, pci_bar};
use crate::pci::PciBus;
use crate::pci::msi::MsiRoutes;
use crate::virtio::VirtioDevice;
use crate::virtio::pci::PciTransport;
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
    bus: Arc<PciBus>,
    mmio: Arc<Bus>,
    state: Mutex<State>,
}

struct State {
    /// The one that has been empty longest first; of those that never had a device, the lowest.
    free: VecDeque<usize>,
    /// `None` in one that is taken away, for who has found it just before.
    taken: BTreeMap<usize, Arc<Mutex<Option<PciTransport>>>>,
}

impl PciSlots {
    /// Slots of a bus with nothing but its host bridge, for BARs on `mmio`. The VM has its interrupt
    /// controllers, and nobody else sets its routes.
    pub fn new(vm: Arc<VmFd>, memory: GuestMemoryMmap, mmio: Arc<Bus>) -> PciSlots {
        let routes = Arc::new(MsiRoutes::new(vm.clone()));
        let state = State { free: (1..PCI_SLOTS).collect(), taken: BTreeMap::new() };
        PciSlots { vm, memory, routes, bus: Arc::default(), mmio, state: Mutex::new(state) }
    }

    /// The bus, for the ports that lead to it.
    pub fn bus(&self) -> Arc<PciBus> {
        self.bus.clone()
    }

    /// A slot for a device: among those that are `good`, or among all if none is, the one that has been empty
    /// longest.
    ///
    /// # Errors
    ///
    /// [`SlotError::Full`].
    pub fn room(&self, good: impl Fn(usize) -> bool) -> Result<usize, SlotError> {
        let state = self.state();
        let chosen = state.free.iter().find(|slot| good(**slot)).or(state.free.front());
        chosen.copied().ok_or(SlotError::Full)
    }

    /// Connects `device` and puts it into `slot`, which is empty. One call at a time.
    ///
    /// # Errors
    ///
    /// See [`SlotError`]; nothing is left of the device then.
    pub fn put(&self, slot: usize, device: Box<dyn VirtioDevice>) -> Result<(), SlotError> {
        let base = pci_bar(slot).ok_or(SlotError::Full)?;
        let transport = PciTransport::new(device, self.memory.clone(), &self.vm, &self.routes, base)?;
        let transport = Arc::new(Mutex::new(Some(transport)));
        self.mmio.insert(base.into(), PCI_BAR_SIZE.into(), transport.clone())?;
        self.bus.insert(slot, transport.clone());
        let mut state = self.state();
        state.free.retain(|free| *free != slot);
        state.taken.insert(slot, transport);
        Ok(())
    }

    /// Empties `slot`: the device is reset and closed, which may take as long as its request in hand, and
    /// what it had of KVM's is free again. Answers whether there was one; then the slot is given out again
    /// after [`PciSlots::release`].
    pub fn take(&self, slot: usize) -> bool {
        let Some(base) = pci_bar(slot) else { return false };
        let Some(function) = self.state().taken.remove(&slot) else { return false };
        self.bus.remove(slot);
        self.mmio.remove(base.into());
        let transport = function.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(transport);
        true
    }

    /// Lets `slot`, which was taken, be filled again.
    pub fn release(&self, slot: usize) {
        self.state().free.push_back(slot);
    }

    /// Closes all devices for good, but those that are in the middle of an access.
    pub fn end(&self) {
        let taken = std::mem::take(&mut self.state().taken);
        for function in taken.into_values() {
            let transport = function.try_lock().ok().and_then(|mut transport| transport.take());
            drop(transport);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
