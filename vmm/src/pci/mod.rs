//! The machine's PCI bus: one bus with its host bridge, and functions that a driver finds with configuration
//! mechanism #1.
//!
//! The builder puts the [`ConfigPorts`] of a [`PciBus`] at
//! [`CONFIG_PORTS`](crate::board::layout::CONFIG_PORTS), where vCPUs access the functions' configuration
//! spaces. [`PciSlots`](crate::virtio::pci::slots::PciSlots) adds and removes functions, before the guest
//! starts and while it runs. A function's memory (its BAR) is a separate range on the bus for memory-mapped
//! I/O, so that two devices never wait for each other.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | a function's configuration space: header, BAR, capabilities |
//! | [`msix`] | the MSI-X capability's table and pending bits |
//! | [`msi`] | eventfds that become messages to a local APIC, with KVM's routes |
//! | [`hotplug`] | the registers for adding and removing devices |
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::board::bus::BusDevice;
use crate::board::layout::PCI_SLOTS;
use crate::pci::config::{ConfigSpace, Identity};

pub mod config;
pub mod hotplug;
pub mod msi;
pub mod msix;

/// Bit of `CONFIG_ADDRESS`: configuration accesses are enabled.
const ENABLE: u32 = 1 << 31;

/// The host bridge. Nothing drives it, so any vendor's would do. This is the one of generic virtual machines.
const HOST_BRIDGE: Identity =
    Identity { vendor: 0x1b36, device: 0x0008, revision: 0, class: 0x06_0000, subsystem: [0x1af4, 0x1100] };

/// A device's only function, seen through its configuration space. Any offset and length may occur.
pub trait PciFunction: Send {
    /// Fills `data` from `offset` on. Bytes after the end of the space read as zero.
    fn read_config(&mut self, offset: u16, data: &mut [u8]);

    /// Handles the guest's write at `offset`.
    fn write_config(&mut self, offset: u16, data: &[u8]);
}

impl PciFunction for ConfigSpace {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.write(offset, data);
    }
}

/// A function that was removed answers no access.
impl<F: PciFunction> PciFunction for Option<F> {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        match self {
            Some(function) => function.read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        if let Some(function) = self {
            function.write_config(offset, data);
        }
    }
}

/// Functions by device number.
type Functions = [Option<Arc<Mutex<dyn PciFunction>>>; PCI_SLOTS];

/// Bus 0. An access to a function locks only that function, not the bus. A write to the configuration space
/// may reset a device, which takes as long as its request in progress. Adding and removing other devices does
/// not wait for that.
pub struct PciBus {
    functions: Mutex<Functions>,
}

impl Default for PciBus {
    /// Creates a bus with its host bridge.
    fn default() -> PciBus {
        let bus = PciBus { functions: Mutex::new([const { None }; PCI_SLOTS]) };
        bus.insert(0, Arc::new(Mutex::new(ConfigSpace::new(HOST_BRIDGE))));
        bus
    }
}

impl PciBus {
    /// Puts `function` at device number `slot`, below [`PCI_SLOTS`].
    pub fn insert(&self, slot: usize, function: Arc<Mutex<dyn PciFunction>>) {
        self.functions()[slot] = Some(function);
    }

    /// Empties a slot. Accesses from now on get no answer. An access in progress finishes.
    pub fn remove(&self, slot: usize) {
        if let Some(function) = self.functions().get_mut(slot) {
            *function = None;
        }
    }

    fn function(&self, slot: usize) -> Option<Arc<Mutex<dyn PciFunction>>> {
        self.functions().get(slot)?.clone()
    }

    fn functions(&self) -> MutexGuard<'_, Functions> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The two ports of a bus (PCI 3.0, 3.2.2.3.2): `CONFIG_ADDRESS`, and `CONFIG_DATA` at offset 4.
///
/// Both share one address, so accesses come one after the other.
pub struct ConfigPorts {
    bus: Arc<PciBus>,
    address: u32,
}

impl ConfigPorts {
    /// Creates ports of `bus` that select nothing.
    pub fn new(bus: Arc<PciBus>) -> ConfigPorts {
        ConfigPorts { bus, address: 0 }
    }

    /// Returns the function that `CONFIG_ADDRESS` selects, and the offset in its configuration space.
    fn selected(&self) -> Option<(Arc<Mutex<dyn PciFunction>>, u16)> {
        let [register, device_function, bus, _] = self.address.to_le_bytes();
        let (device, function) = (device_function >> 3, device_function & 7);
        if self.address & ENABLE == 0 || bus != 0 || function != 0 {
            return None;
        }
        Some((self.bus.function(device.into())?, u16::from(register & !3)))
    }
}

/// Returns the byte of `CONFIG_DATA` at which an access of `len` bytes at `offset` starts, if it lies inside.
fn data_byte(offset: u64, len: usize) -> Option<u16> {
    let byte = u16::try_from(offset.checked_sub(4)?).ok()?;
    matches!(len, 1 | 2 | 4).then_some(byte).filter(|byte| usize::from(*byte) + len <= 4)
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Without an answer, all bits read as ones. That tells a driver that there is no device.
        data.fill(0xff);
        if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(&mut *data)) {
            *data = self.address.to_le_bytes();
        }
        if let (Some(byte), Some((function, register))) = (data_byte(offset, data.len()), self.selected()) {
            function.lock().unwrap_or_else(PoisonError::into_inner).read_config(register + byte, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (0, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) {
            // Bits 0, 1 and 24 to 30 are reserved.
            self.address = u32::from_le_bytes(data) & (ENABLE | 0x00ff_fffc);
        }
        if let (Some(byte), Some((function, register))) = (data_byte(offset, data.len()), self.selected()) {
            function.lock().unwrap_or_else(PoisonError::into_inner).write_config(register + byte, data);
        }
    }
}

#[cfg(test)]
mod tests;
