//! The virtio devices of a machine's PCI bus, each in its slot.
//!
//! [`PciSlots::put`] connects a device, and the guest finds it at its next scan of the bus.
//! [`PciSlots::take`] ends the device and disconnects it. `take` waits for vCPUs' accesses to this device, so
//! it must not be called during one.

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

/// Why a device cannot be put into a slot.
#[derive(Debug, Error)]
pub enum SlotError {
    /// All slots are taken.
    #[error("all 31 slots of the PCI bus are taken: remove a device first")]
    Full,
    /// KVM refuses, or the process has reached a limit.
    #[error("a virtio device cannot be connected")]
    Transport(#[from] TransportError),
    /// The addresses of the BAR are taken.
    #[error("two devices have the same addresses")]
    Range(#[from] RangeError),
}

/// The slots, and the resources of the devices' functions.
pub struct PciSlots {
    vm: Arc<VmFd>,
    memory: GuestMemoryMmap,
    routes: Arc<MsiRoutes>,
    bus: Arc<PciBus>,
    mmio: Arc<Bus>,
    state: Mutex<State>,
}

struct State {
    /// The slot that has been empty longest comes first. Slots that never had a device are in order.
    free: VecDeque<usize>,
    /// `None` in a slot that is being emptied, for a thread that has found it just before.
    taken: BTreeMap<usize, Arc<Mutex<Option<PciTransport>>>>,
}

impl PciSlots {
    /// Creates the slots of a bus that has only its host bridge. BARs are added to `mmio`. The VM must have
    /// its interrupt controllers, and nothing else may set its routes.
    pub fn new(vm: Arc<VmFd>, memory: GuestMemoryMmap, mmio: Arc<Bus>) -> PciSlots {
        let routes = Arc::new(MsiRoutes::new(vm.clone()));
        let state = State { free: (1..PCI_SLOTS).collect(), taken: BTreeMap::new() };
        PciSlots { vm, memory, routes, bus: Arc::default(), mmio, state: Mutex::new(state) }
    }

    /// Returns the bus, for its ports.
    pub fn bus(&self) -> Arc<PciBus> {
        self.bus.clone()
    }

    /// Chooses a slot for a device: the one that has been empty longest, among those that are `good`, or
    /// among all if none is.
    ///
    /// # Errors
    ///
    /// [`SlotError::Full`].
    pub fn room(&self, good: impl Fn(usize) -> bool) -> Result<usize, SlotError> {
        let state = self.state();
        let chosen = state.free.iter().find(|slot| good(**slot)).or(state.free.front());
        chosen.copied().ok_or(SlotError::Full)
    }

    /// Connects `device` and puts it into the empty `slot`. One call at a time.
    ///
    /// # Errors
    ///
    /// See [`SlotError`]. Nothing is left of the device then.
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

    /// Empties `slot`. The device is reset and closed, which may take as long as its request in progress. Its
    /// resources in KVM are free again. Returns whether there was a device. The slot can be filled again
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

    /// Allows `slot` to be filled again after [`PciSlots::take`].
    pub fn release(&self, slot: usize) {
        self.state().free.push_back(slot);
    }

    /// Closes all devices finally, except those that are in the middle of an access.
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
