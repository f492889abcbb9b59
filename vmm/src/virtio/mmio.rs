//! virtio over memory-mapped I/O, version 2 (virtio 1.2, section 4.2).
//!
//! The builder makes one [`MmioTransport`] per device and puts it on the bus at its slot. `QueueNotify`
//! and interrupts bypass it: KVM turns the driver's notification into an eventfd write (ioeventfd) and
//! an eventfd write into an interrupt (irqfd). What is left are the registers, at start-up mostly, and
//! `InterruptStatus` and `InterruptACK` at each interrupt.

use std::io;
use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use log::{debug, info, warn};
use thiserror::Error;
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
};
use virtio_bindings::virtio_mmio::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use volt_net::virtio::features::Features;

use crate::bus::BusDevice;
use crate::irq::{Interrupt, MmioInterrupt};
use crate::virtio::{ActivateError, Activation, VirtioDevice, Vring, faults};

/// Bytes of a slot: registers and configuration space.
pub const SLOT_SIZE: u64 = 0x1000;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// What stands in `Version` since virtio 1.0.
const VERSION: u32 = 2;
/// "volt", little-endian.
const VENDOR: u32 = 0x746c_6f76;

/// Where a device is: its window in guest physical memory and its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// First byte of the [`SLOT_SIZE`] bytes.
    pub base: u64,
    /// Global system interrupt, edge-triggered and active high, used by no other device.
    pub gsi: u32,
}

/// Why a device was not connected to the virtual machine.
#[derive(Debug, Error)]
pub enum TransportError {
    /// No more files.
    #[error("cannot make an eventfd")]
    EventFd(#[source] io::Error),
    /// KVM takes no ioeventfd.
    #[error("KVM refuses the notification of vring {index} at {base:#x}")]
    IoEventFd {
        /// The vring.
        index: usize,
        /// Start of the slot.
        base: u64,
        /// From KVM.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM takes no irqfd.
    #[error("KVM refuses interrupt {gsi}")]
    IrqFd {
        /// The slot's.
        gsi: u32,
        /// From KVM.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// What the driver wrote to the registers of one vring; nothing in it is checked before `DRIVER_OK`.
#[derive(Clone, Copy, Default)]
struct VringRegisters {
    size: u32,
    ready: bool,
    descriptor_table: u64,
    available_ring: u64,
    used_ring: u64,
}

/// A device's registers on the bus.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemoryMmap,
    interrupt: Arc<MmioInterrupt>,
    kicks: Vec<Arc<EventFd>>,
    vrings: Vec<VringRegisters>,
    vring_sel: u32,
    /// `Status` without `DEVICE_NEEDS_RESET`, which is the interrupt's.
    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
}

impl MmioTransport {
    /// Connects `device` to `vm` at `slot`: from here on its notifications and interrupts work. The
    /// virtual machine has its interrupt controllers already.
    ///
    /// # Errors
    ///
    /// When KVM refuses an eventfd or the interrupt.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        vm: &VmFd,
        slot: MmioSlot,
    ) -> Result<MmioTransport, TransportError> {
        let transport = MmioTransport::unconnected(device, memory)?;
        let MmioSlot { base, gsi } = slot;
        let notify = IoEventAddress::Mmio(base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY));
        for (index, kick) in transport.kicks.iter().enumerate() {
            vm.register_ioevent(kick, &notify, index as u32).map_err(|source| TransportError::IoEventFd {
                index,
                base,
                source,
            })?;
        }
        vm.register_irqfd(transport.interrupt.irqfd(), gsi)
            .map_err(|source| TransportError::IrqFd { gsi, source })?;
        Ok(transport)
    }

    /// The registers alone; `QueueNotify` works by [`BusDevice::write`]. For tests.
    ///
    /// # Errors
    ///
    /// When the process may have no more files.
    #[doc(hidden)]
    pub fn unconnected(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
    ) -> Result<MmioTransport, TransportError> {
        let eventfd = || EventFd::new(EFD_NONBLOCK).map(Arc::new);
        let count = device.vring_sizes().len();
        Ok(MmioTransport {
            memory,
            interrupt: MmioInterrupt::new().map(Arc::new).map_err(TransportError::EventFd)?,
            kicks: (0..count)
                .map(|_| eventfd())
                .collect::<Result<_, _>>()
                .map_err(TransportError::EventFd)?,
            vrings: vec![VringRegisters::default(); count],
            vring_sel: 0,
            status: 0,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            device,
        })
    }

    fn read_register(&self, register: u32) -> u32 {
        let vring = self.vrings.get(self.vring_sel as usize);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => match self.device_features_sel {
                0 => self.device.features().0 as u32,
                1 => (self.device.features().0 >> 32) as u32,
                _ => 0,
            },
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.device.vring_sizes().get(self.vring_sel as usize).copied().unwrap_or(0).into()
            }
            VIRTIO_MMIO_QUEUE_READY => vring.is_some_and(|vring| vring.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.status(),
            VIRTIO_MMIO_STATUS if self.interrupt.is_lost() => self.status | NEEDS_RESET,
            VIRTIO_MMIO_STATUS => self.status,
            VIRTIO_MMIO_CONFIG_GENERATION => self.interrupt.generation(),
            // No shared memory regions: length and base of each read as all ones (4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            // Write-only registers, and those that do not exist.
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.vring_sel = value,
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                // By KVM's ioeventfd as a rule; here for writes that it does not take.
                if let Some(kick) = self.kicks.get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.write_status(value),
            VIRTIO_MMIO_QUEUE_NUM..=VIRTIO_MMIO_QUEUE_USED_HIGH => self.write_vring(register, value),
            _ => debug!("{}: write of {value:#x} to register {register:#x}", self.device.label()),
        }
    }

    fn write_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK) != DRIVER {
            return self.refuse("features", value);
        }
        let (value, features) = (u64::from(value), self.driver_features);
        self.driver_features = match self.driver_features_sel {
            0 => features & !u64::from(u32::MAX) | value,
            1 => features & u64::from(u32::MAX) | value << 32,
            // Features from 64 on: none is offered, so 0 is all that a driver may write.
            _ => return,
        };
    }

    /// A vring's registers: open between `FEATURES_OK` and `DRIVER_OK`, so that nothing of it changes
    /// while it is in use.
    fn write_vring(&mut self, register: u32, value: u32) {
        if self.status & (FEATURES_OK | DRIVER_OK) != FEATURES_OK {
            return self.refuse("a vring register", value);
        }
        let Some(vring) = self.vrings.get_mut(self.vring_sel as usize) else { return };
        if register == VIRTIO_MMIO_QUEUE_READY {
            vring.ready = value & 1 == 1;
        } else if vring.ready {
            self.refuse("a register of a vring that is ready", value);
        } else {
            match register {
                VIRTIO_MMIO_QUEUE_NUM => vring.size = value,
                VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut vring.descriptor_table, value),
                VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut vring.descriptor_table, value),
                VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut vring.available_ring, value),
                VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut vring.available_ring, value),
                VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut vring.used_ring, value),
                VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut vring.used_ring, value),
                _ => {}
            }
        }
    }

    /// The device status field (2.1): bits are set one after the other, and taken back only by a reset.
    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let added = value & !self.status & !NEEDS_RESET;
        if self.status & !value != 0 || self.status & FAILED != 0 {
            return self.refuse("status", value);
        }
        let before = |needed: u32| self.status & needed == needed;
        match added {
            // Also what a driver writes to no effect.
            0 | FAILED | ACKNOWLEDGE => {}
            DRIVER if before(ACKNOWLEDGE) => {}
            // Some drivers set the first two at once.
            _ if added == ACKNOWLEDGE | DRIVER => {}
            FEATURES_OK if before(DRIVER) => {
                if !self.features_are_good() {
                    return;
                }
            }
            DRIVER_OK if before(FEATURES_OK) => return self.start(),
            _ => return self.refuse("status", value),
        }
        self.status |= added;
        if added == FAILED && faults::may_log() {
            warn!("{}: the guest's driver gave up on it", self.device.label());
        }
    }

    fn features_are_good(&self) -> bool {
        let (acked, offered) = (Features(self.driver_features), self.device.features());
        let surplus = acked.without(offered);
        let (known, modern) = (surplus.is_empty(), acked.has(Features::VERSION_1));
        if !(known && modern) && faults::may_log() {
            let label = self.device.label();
            if modern {
                warn!("{label}: the guest acknowledges features {:#x} that were not offered", surplus.0);
            } else {
                warn!("{label}: the guest's driver is older than virtio 1.0, which is not served");
            }
        }
        known && modern
    }

    /// `DRIVER_OK`.
    fn start(&mut self) {
        self.status |= DRIVER_OK;
        let features = Features(self.driver_features);
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
                Ok(()) => info!("{label}: started by the guest, features {:#x}", features.0),
                Err(error) => warn!("{label}: does not start: {}", faults::chain(error)),
            }
        }
    }

    fn ready_vrings(&self, features: Features) -> Result<Vec<Vring>, ActivateError> {
        let mut vrings = Vec::new();
        for (index, registers) in self.vrings.iter().enumerate().filter(|(_, vring)| vring.ready) {
            let max = self.device.vring_sizes()[index];
            let mut queue = registers.check(index as u16, max, &self.memory)?;
            queue.set_event_idx(features.has(Features::EVENT_IDX));
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
        self.vrings.fill(VringRegisters::default());
        for kick in &self.kicks {
            // What was notified before the reset concerns nobody after it.
            let _ = kick.read();
        }
        self.status = 0;
        self.driver_features = 0;
        (self.vring_sel, self.device_features_sel, self.driver_features_sel) = (0, 0, 0);
    }

    fn refuse(&self, what: &str, value: u32) {
        debug!("{}: {what} = {value:#x} refused at status {:#x}", self.device.label(), self.status);
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            return self.device.read_config(offset, data);
        }
        // Registers are 32 bits wide and read whole (4.2.2.2).
        data.fill(0);
        if let (Ok(data), 0) = (<&mut [u8; 4]>::try_from(data), offset % 4) {
            *data = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device here has configuration that a driver may write.
        if let (Ok(data), 0, true) =
            (<[u8; 4]>::try_from(data), offset % 4, offset < VIRTIO_MMIO_CONFIG.into())
        {
            self.write_register(offset as u32, u32::from_le_bytes(data));
        }
    }
}

impl VringRegisters {
    /// A queue for these registers, when size, alignment (2.7) and place are as they must be.
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
        let VringRegisters { descriptor_table, available_ring, used_ring, .. } = *self;
        let aligned = queue.try_set_desc_table_address(GuestAddress(descriptor_table));
        part("descriptor table", descriptor_table, 16 * entries, aligned)?;
        // Each ring ends with the other side's event index, which is there with or without EVENT_IDX.
        let aligned = queue.try_set_avail_ring_address(GuestAddress(available_ring));
        part("available ring", available_ring, 6 + 2 * entries, aligned)?;
        let aligned = queue.try_set_used_ring_address(GuestAddress(used_ring));
        part("used ring", used_ring, 6 + 8 * entries, aligned)?;
        queue.set_ready(true);
        Ok(queue)
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
