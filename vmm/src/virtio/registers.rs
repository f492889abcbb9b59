//! The common registers of all transports: device status, features and vrings (virtio 1.2, 2.1, 2.2, 2.6 and
//! 3.1).
//!
//! A transport owns a [`Registers`]. It turns the driver's reads and writes, at the addresses of its
//! specification, into calls of these methods. They activate and reset the device.

use std::io;
use std::sync::Arc;

use log::{debug, info, warn};
use thiserror::Error;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use volt_virtio::error_chain;
use volt_virtio::features::Features;

use crate::faults;
use crate::virtio::interrupt::TransportInterrupt;
use crate::virtio::{ActivateError, Activation, VirtioDevice, Vring};

/// Why a device cannot be connected to the virtual machine.
#[derive(Debug, Error)]
pub enum TransportError {
    /// Too many open files.
    #[error("cannot create an eventfd")]
    EventFd(#[source] io::Error),
    /// KVM refuses an ioeventfd.
    #[error("KVM refuses the notification of vring {index} at {address:#x}")]
    IoEventFd {
        /// The vring.
        index: usize,
        /// Its notification address.
        address: u64,
        /// The error of KVM.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM refuses an irqfd.
    #[error("KVM refuses interrupt {gsi}")]
    IrqFd {
        /// The interrupt of the slot.
        gsi: u32,
        /// The error of KVM.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM has a limited number of interrupts, and each vring takes one. PCI has vectors for
    /// [`MAX_VRINGS`](super::pci::MAX_VRINGS).
    #[error("there are no interrupts left for a device of {0} vrings: use fewer queue pairs or devices")]
    Interrupts(usize),
}

/// An address of a vring. The number is its place in [`VringRegisters`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VringPart {
    DescriptorTable,
    AvailableRing,
    UsedRing,
}

/// The driver's values in the registers of one vring. Nothing is checked before `DRIVER_OK`.
#[derive(Clone, Copy)]
pub(super) struct VringRegisters {
    pub(super) size: u32,
    pub(super) ready: bool,
    addresses: [u64; 3],
}

impl VringRegisters {
    /// Returns the values after a reset.
    fn new(max: u16) -> VringRegisters {
        VringRegisters { size: max.into(), ready: false, addresses: [0; 3] }
    }

    /// Returns the driver's address of `part`.
    pub(super) fn address(&self, part: VringPart) -> u64 {
        self.addresses[part as usize]
    }

    /// Returns the address of `part` for a write.
    pub(super) fn address_mut(&mut self, part: VringPart) -> &mut u64 {
        &mut self.addresses[part as usize]
    }

    /// Creates a queue for these registers, if size, alignment (2.7) and addresses are valid.
    fn check(&self, index: u16, max: u16, memory: &GuestMemoryMmap) -> Result<Queue, ActivateError> {
        let bad_size = || ActivateError::Size { index, size: self.size, max };
        let size = u16::try_from(self.size).ok().filter(|size| *size <= max).ok_or_else(bad_size)?;
        let mut queue = Queue::new(max).map_err(|_| bad_size())?;
        queue.try_set_size(size).map_err(|_| bad_size())?;

        let entries = usize::from(size);
        let part = |part, address, len, aligned: Result<(), virtio_queue::Error>| {
            let inside = memory.check_range(GuestAddress(address), len, Permissions::ReadWrite);
            if aligned.is_ok() && inside {
                Ok(())
            } else {
                Err(ActivateError::Address { index, part, address })
            }
        };
        let [descriptor_table, available_ring, used_ring] = self.addresses;
        let aligned = queue.try_set_desc_table_address(GuestAddress(descriptor_table));
        part("descriptor table", descriptor_table, 16 * entries, aligned)?;
        // Each ring ends with the other side's event index, with or without EVENT_IDX.
        let aligned = queue.try_set_avail_ring_address(GuestAddress(available_ring));
        part("available ring", available_ring, 6 + 2 * entries, aligned)?;
        let aligned = queue.try_set_used_ring_address(GuestAddress(used_ring));
        part("used ring", used_ring, 6 + 8 * entries, aligned)?;
        queue.set_ready(true);
        Ok(queue)
    }
}

/// A device, and its driver's progress in starting it.
pub(super) struct Registers<I> {
    pub(super) device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<I>,
    /// An eventfd for each vring.
    pub(super) kicks: Vec<Arc<EventFd>>,
    vrings: Vec<VringRegisters>,
    /// The vring that the driver selected. It may not exist.
    pub(super) vring_sel: u32,
    /// The device status without `DEVICE_NEEDS_RESET`, which belongs to the interrupt.
    status: u32,
    driver_features: u64,
    /// Whether the device may touch the guest's memory. It does so from `DRIVER_OK` on.
    dma: bool,
    started: bool,
    /// The halves of the feature words that the driver selected.
    pub(super) device_features_sel: u32,
    pub(super) driver_features_sel: u32,
}

impl<I: TransportInterrupt + 'static> Registers<I> {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        interrupt: I,
    ) -> Result<Registers<I>, TransportError> {
        let eventfd = |_: &u16| EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let sizes = device.vring_sizes();
        let kicks = sizes.iter().map(eventfd).collect::<Result<_, _>>().map_err(TransportError::EventFd)?;
        Ok(Registers {
            memory,
            interrupt: Arc::new(interrupt),
            kicks,
            vrings: sizes.iter().copied().map(VringRegisters::new).collect(),
            vring_sel: 0,
            status: 0,
            driver_features: 0,
            dma: true,
            started: false,
            device_features_sel: 0,
            driver_features_sel: 0,
            device,
        })
    }

    /// Returns the half of the offered features that the driver selected.
    pub(super) fn device_features(&self) -> u32 {
        half(self.device.features().bits(), self.device_features_sel)
    }

    /// Returns the half of the acknowledged features that the driver selected.
    pub(super) fn driver_features(&self) -> u32 {
        half(self.driver_features, self.driver_features_sel)
    }

    pub(super) fn write_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER {
            return self.refuse("features", value.into());
        }
        match self.driver_features_sel {
            0 => set_low(&mut self.driver_features, value),
            1 => set_high(&mut self.driver_features, value),
            // Features from 64 on. None is offered, so a driver may only write 0.
            _ => {}
        }
    }

    /// Returns the selected vring's largest size, or 0 if there is no such vring.
    pub(super) fn vring_max(&self) -> u16 {
        self.device.vring_sizes().get(self.vring_sel as usize).copied().unwrap_or(0)
    }

    /// Returns the selected vring.
    pub(super) fn vring(&self) -> Option<&VringRegisters> {
        self.vrings.get(self.vring_sel as usize)
    }

    /// Returns the selected vring for a write. Only between `FEATURES_OK` and `DRIVER_OK`, so that nothing
    /// changes while the vring is in use.
    fn open_vring(&mut self, value: u64) -> Option<&mut VringRegisters> {
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            self.refuse("a vring register", value);
            return None;
        }
        self.vrings.get_mut(self.vring_sel as usize)
    }

    pub(super) fn set_vring_ready(&mut self, ready: bool) {
        if let Some(vring) = self.open_vring(ready.into()) {
            vring.ready = ready;
        }
    }

    /// Changes the selected vring with `change`, unless it is ready. `value` is the value that the driver
    /// wrote, for the log.
    pub(super) fn change_vring(&mut self, value: u64, change: impl FnOnce(&mut VringRegisters)) {
        match self.open_vring(value) {
            Some(vring) if vring.ready => self.refuse("a register of a vring that is ready", value),
            Some(vring) => change(vring),
            None => {}
        }
    }

    /// Notifies vring `index`, for notifications that KVM does not handle.
    pub(super) fn kick(&self, index: usize) {
        if let Some(kick) = self.kicks.get(index) {
            let _ = kick.write(1);
        }
    }

    /// Returns the device status field.
    pub(super) fn status(&self) -> u32 {
        if self.interrupt.is_lost() { self.status | NEEDS_RESET } else { self.status }
    }

    /// Writes the device status field (2.1). Bits are set one after the other, and cleared only by a reset.
    pub(super) fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let added = value & !self.status & !NEEDS_RESET;
        if self.status & !value != 0 || self.status & FAILED != 0 {
            return self.refuse("status", value.into());
        }
        let before = |needed: u32| self.status & needed == needed;
        match added {
            // This includes writes without an effect.
            0 | FAILED | ACKNOWLEDGE => {}
            DRIVER if before(ACKNOWLEDGE) => {}
            // Some drivers set the first two at once.
            _ if added == ACKNOWLEDGE | DRIVER => {}
            FEATURES_OK if before(DRIVER) => {
                if !self.features_are_good() {
                    return;
                }
            }
            DRIVER_OK if before(FEATURES_OK) => {
                self.status |= DRIVER_OK;
                return self.follow_dma();
            }
            _ => return self.refuse("status", value.into()),
        }
        self.status |= added;
        if added == FAILED && faults::may_log() {
            warn!(
                event = "driver_gave_up", device:% = self.device.label();
                "{}: the guest's driver gave up", self.device.label()
            );
        }
    }

    fn features_are_good(&self) -> bool {
        let (acked, offered) = (Features::from_bits_retain(self.driver_features), self.device.features());
        let surplus = acked.difference(offered);
        let (known, modern) = (surplus.is_empty(), acked.contains(Features::VERSION_1));
        if !(known && modern) && faults::may_log() {
            let label = self.device.label();
            if modern {
                warn!(
                    event = "features_not_offered", device:% = label;
                    "{label}: the guest acknowledges features that were not offered: {:#x}", surplus.bits()
                );
            } else {
                warn!(
                    event = "legacy_driver", device:% = label;
                    "{label}: the guest's driver is older than virtio 1.0, which is not supported"
                );
            }
        }
        known && modern
    }

    /// Sets whether the device may touch the guest's memory. A running device that loses this right stops as
    /// at a reset, and requests a reset, because its state of the rings is lost.
    pub(super) fn set_dma(&mut self, allowed: bool) {
        self.dma = allowed;
        self.follow_dma();
    }

    fn follow_dma(&mut self) {
        if !self.dma && self.started {
            self.started = false;
            self.device.reset();
            self.interrupt.needs_reset();
            if faults::may_log() {
                info!(
                    event = "bus_mastering_taken", device:% = self.device.label();
                    "{}: stopped: the guest disabled its bus mastering", self.device.label()
                );
            }
        } else if self.dma && !self.started && self.status & DRIVER_OK != 0 && !self.interrupt.is_lost() {
            self.started = true;
            self.start();
        }
    }

    fn start(&mut self) {
        let features = Features::from_bits_retain(self.driver_features);
        let result = self.ready_vrings(features).and_then(|vrings| {
            let (memory, interrupt) = (self.memory.clone(), self.interrupt.clone());
            self.device.activate(Activation { memory, features, vrings, interrupt })
        });
        if result.is_err() {
            self.interrupt.needs_reset();
        }
        if faults::may_log() {
            let label = self.device.label();
            match &result {
                Ok(()) => info!(
                    event = "device_started", device:% = label;
                    "{label}: started by the guest, features {:#x}", features.bits()
                ),
                Err(error) => warn!(
                    event = "device_not_started", device:% = label;
                    "{label}: does not start: {}", error_chain(error)
                ),
            }
        }
    }

    fn ready_vrings(&self, features: Features) -> Result<Vec<Vring>, ActivateError> {
        let mut vrings = Vec::new();
        for (index, registers) in self.vrings.iter().enumerate().filter(|(_, vring)| vring.ready) {
            let max = self.device.vring_sizes()[index];
            let mut queue = registers.check(index as u16, max, &self.memory)?;
            queue.set_event_idx(features.contains(Features::EVENT_IDX));
            vrings.push(Vring { index: index as u16, queue, kick: self.kicks[index].clone() });
        }
        Ok(vrings)
    }

    fn reset(&mut self) {
        self.device.reset();
        if self.status & DRIVER_OK != 0 {
            debug!("{}: reset by the guest", self.device.label());
        }
        self.interrupt.reset();
        self.vrings = self.device.vring_sizes().iter().copied().map(VringRegisters::new).collect();
        for kick in &self.kicks {
            // Notifications before the reset do not matter after it.
            let _ = kick.read();
        }
        self.status = 0;
        self.started = false;
        self.driver_features = 0;
        (self.vring_sel, self.device_features_sel, self.driver_features_sel) = (0, 0, 0);
    }

    pub(super) fn refuse(&self, what: &str, value: u64) {
        debug!("{}: {what} = {value:#x} refused at status {:#x}", self.device.label(), self.status);
    }
}

/// Returns half number `sel` of a 64-bit word of features. Features from 64 on are zero.
fn half(word: u64, sel: u32) -> u32 {
    match sel {
        0 => word as u32,
        1 => (word >> 32) as u32,
        _ => 0,
    }
}

/// Writes `value` to the low half of `word`.
pub(super) fn set_low(word: &mut u64, value: u32) {
    *word = *word & !u64::from(u32::MAX) | u64::from(value);
}

/// Writes `value` to the high half of `word`.
pub(super) fn set_high(word: &mut u64, value: u32) {
    *word = *word & u64::from(u32::MAX) | u64::from(value) << 32;
}
