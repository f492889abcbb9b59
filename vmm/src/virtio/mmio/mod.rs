//! virtio over memory-mapped I/O, version 2 (virtio 1.2, section 4.2).
//!
//! The builder creates one [`MmioTransport`] for each device and puts it on the bus at its slot.
//! `QueueNotify` and interrupts bypass it: KVM turns the driver's notification into an eventfd write
//! (ioeventfd), and an eventfd write into an interrupt (irqfd). The remaining accesses are to the registers,
//! mostly during start-up, and to `InterruptStatus` and `InterruptACK` at each interrupt.

use kvm_ioctls::{IoEventAddress, VmFd};
use log::debug;
use virtio_bindings::virtio_mmio::*;
use vm_memory::GuestMemoryMmap;

use crate::board::bus::BusDevice;
use crate::board::layout::MmioSlot;
use crate::virtio::VirtioDevice;
use crate::virtio::interrupt::TransportInterrupt;
use crate::virtio::mmio::interrupt::MmioInterrupt;
use crate::virtio::registers::{Registers, TransportError, VringPart, set_high, set_low};

pub mod interrupt;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The value of `Version` since virtio 1.0.
const VERSION: u32 = 2;
/// "volt", little-endian.
const VENDOR: u32 = 0x746c_6f76;

/// A device's registers on the bus.
pub struct MmioTransport {
    registers: Registers<MmioInterrupt>,
}

impl MmioTransport {
    /// Connects `device` to `vm` at `slot`. From here on its notifications and interrupts work. The virtual
    /// machine must have its interrupt controllers already.
    ///
    /// # Errors
    ///
    /// Fails if KVM refuses an eventfd or the interrupt.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        vm: &VmFd,
        slot: MmioSlot,
    ) -> Result<MmioTransport, TransportError> {
        let transport = MmioTransport::unconnected(device, memory)?;
        let MmioSlot { base, gsi } = slot;
        let address = base + u64::from(VIRTIO_MMIO_QUEUE_NOTIFY);
        for (index, kick) in transport.registers.kicks.iter().enumerate() {
            vm.register_ioevent(kick, &IoEventAddress::Mmio(address), index as u32)
                .map_err(|source| TransportError::IoEventFd { index, address, source })?;
        }
        vm.register_irqfd(transport.registers.interrupt.irqfd(), gsi)
            .map_err(|source| TransportError::IrqFd { gsi, source })?;
        Ok(transport)
    }

    /// Creates the registers alone, for tests. `QueueNotify` works through [`BusDevice::write`].
    ///
    /// # Errors
    ///
    /// Fails if the process may open no more files.
    #[doc(hidden)]
    pub fn unconnected(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
    ) -> Result<MmioTransport, TransportError> {
        let interrupt = MmioInterrupt::new().map_err(TransportError::EventFd)?;
        Ok(MmioTransport { registers: Registers::new(device, memory, interrupt)? })
    }

    fn read_register(&self, register: u32) -> u32 {
        let registers = &self.registers;
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => registers.device.device_id(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => registers.device_features(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => registers.vring_max().into(),
            VIRTIO_MMIO_QUEUE_READY => registers.vring().is_some_and(|vring| vring.ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => registers.interrupt.status(),
            VIRTIO_MMIO_STATUS => registers.status(),
            VIRTIO_MMIO_CONFIG_GENERATION => registers.interrupt.generation(),
            // There are no shared memory regions: length and base of each read as all ones (4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            // Write-only registers, and those that do not exist.
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u32, value: u32) {
        let registers = &mut self.registers;
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES => registers.write_features(value),
            VIRTIO_MMIO_QUEUE_SEL => registers.vring_sel = value,
            // Usually handled by KVM's ioeventfd. Here for writes that it does not handle.
            VIRTIO_MMIO_QUEUE_NOTIFY => registers.kick(value as usize),
            VIRTIO_MMIO_INTERRUPT_ACK => registers.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => registers.write_status(value),
            VIRTIO_MMIO_QUEUE_READY => registers.set_vring_ready(value & 1 == 1),
            VIRTIO_MMIO_QUEUE_NUM..=VIRTIO_MMIO_QUEUE_USED_HIGH => self.write_vring(register, value),
            _ => debug!("{}: write of {value:#x} to register {register:#x}", registers.device.label()),
        }
    }

    fn write_vring(&mut self, register: u32, value: u32) {
        self.registers.change_vring(value.into(), |vring| match register {
            VIRTIO_MMIO_QUEUE_NUM => vring.size = value,
            VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(vring.address_mut(VringPart::DescriptorTable), value),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(vring.address_mut(VringPart::DescriptorTable), value),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(vring.address_mut(VringPart::AvailableRing), value),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(vring.address_mut(VringPart::AvailableRing), value),
            VIRTIO_MMIO_QUEUE_USED_LOW => set_low(vring.address_mut(VringPart::UsedRing), value),
            VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(vring.address_mut(VringPart::UsedRing), value),
            _ => {}
        });
    }
}

impl BusDevice for MmioTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) {
            return self.registers.device.read_config(offset, data);
        }
        // Registers are 32 bits wide and read as a whole (4.2.2.2).
        data.fill(0);
        if let (Ok(data), 0) = (<&mut [u8; 4]>::try_from(data), offset % 4) {
            *data = self.read_register(offset as u32).to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // No device here has a configuration that a driver may write.
        if let (Ok(data), 0, true) =
            (<[u8; 4]>::try_from(data), offset % 4, offset < VIRTIO_MMIO_CONFIG.into())
        {
            self.write_register(offset as u32, u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests;
