//! The common configuration structure (virtio 1.2, 4.1.4.3): the device's registers in PCI's layout. Each
//! field is accessed with its own width, fields of 64 bits in halves (4.1.3.1). Everything else reads as zero
//! and changes nothing.

use super::{NO_VECTOR, PciTransport};
use crate::virtio::interrupt::TransportInterrupt;
use crate::virtio::registers::{VringPart, VringRegisters, set_high, set_low};

const DEVICE_FEATURE_SELECT: u32 = 0x00;
const DEVICE_FEATURE: u32 = 0x04;
const DRIVER_FEATURE_SELECT: u32 = 0x08;
const DRIVER_FEATURE: u32 = 0x0c;
const CONFIG_MSIX_VECTOR: u32 = 0x10;
const NUM_QUEUES: u32 = 0x12;
const DEVICE_STATUS: u32 = 0x14;
const CONFIG_GENERATION: u32 = 0x15;
const QUEUE_SELECT: u32 = 0x16;
const QUEUE_SIZE: u32 = 0x18;
const QUEUE_MSIX_VECTOR: u32 = 0x1a;
const QUEUE_ENABLE: u32 = 0x1c;
const QUEUE_NOTIFY_OFF: u32 = 0x1e;
const QUEUE_DESC: u32 = 0x20;
const QUEUE_DEVICE_END: u32 = 0x38;

impl PciTransport {
    pub(super) fn read_common(&self, offset: u32, data: &mut [u8]) {
        let value = match data.len() {
            1 => self.read_8(offset).into(),
            2 => self.read_16(offset).into(),
            4 => self.read_32(offset),
            _ => return,
        };
        data.copy_from_slice(&value.to_le_bytes()[..data.len()]);
    }

    pub(super) fn write_common(&mut self, offset: u32, data: &[u8]) {
        match *data {
            [value] if offset == DEVICE_STATUS => self.write_status(value),
            [a, b] => self.write_16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_32(offset, u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
    }

    fn read_8(&self, offset: u32) -> u8 {
        match offset {
            DEVICE_STATUS => self.registers.status() as u8,
            CONFIG_GENERATION => self.registers.interrupt.generation() as u8,
            _ => 0,
        }
    }

    fn read_16(&self, offset: u32) -> u16 {
        let vring = self.registers.vring();
        match offset {
            CONFIG_MSIX_VECTOR => self.vector_of(self.config_source()),
            NUM_QUEUES => self.registers.kicks.len() as u16,
            QUEUE_SELECT => self.registers.vring_sel as u16,
            // Written with 16 bits. At first it is the largest size.
            QUEUE_SIZE => vring.map_or(0, |vring| vring.size as u16),
            QUEUE_MSIX_VECTOR => self.selected_source().map_or(NO_VECTOR, |source| self.vector_of(source)),
            QUEUE_ENABLE => vring.is_some_and(|vring| vring.ready).into(),
            QUEUE_NOTIFY_OFF => self.selected_source().unwrap_or(0) as u16,
            _ => 0,
        }
    }

    fn read_32(&self, offset: u32) -> u32 {
        match offset {
            DEVICE_FEATURE_SELECT => self.registers.device_features_sel,
            DEVICE_FEATURE => self.registers.device_features(),
            DRIVER_FEATURE_SELECT => self.registers.driver_features_sel,
            DRIVER_FEATURE => self.registers.driver_features(),
            _ => match (self.registers.vring(), address(offset)) {
                (Some(vring), Some((part, is_high))) => {
                    let address = vring.address(part);
                    (if is_high { address >> 32 } else { address }) as u32
                }
                _ => 0,
            },
        }
    }

    fn write_16(&mut self, offset: u32, value: u16) {
        match offset {
            CONFIG_MSIX_VECTOR => self.set_vector(self.config_source(), value),
            QUEUE_SELECT => self.registers.vring_sel = value.into(),
            QUEUE_SIZE => self.change_vring(value.into(), |vring| vring.size = value.into()),
            QUEUE_MSIX_VECTOR => {
                if let Some(source) = self.selected_source() {
                    self.set_vector(source, value);
                }
            }
            // Only a reset clears it.
            QUEUE_ENABLE if value == 1 => self.registers.set_vring_ready(true),
            _ => self.registers.refuse("a field of 16 bits", value.into()),
        }
    }

    fn write_32(&mut self, offset: u32, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.registers.device_features_sel = value,
            DRIVER_FEATURE_SELECT => self.registers.driver_features_sel = value,
            DRIVER_FEATURE => self.registers.write_features(value),
            _ => match address(offset) {
                Some((part, is_high)) => {
                    let set = if is_high { set_high } else { set_low };
                    self.change_vring(value, |vring| set(vring.address_mut(part), value));
                }
                None => self.registers.refuse("a field of 32 bits", value.into()),
            },
        }
    }

    fn write_status(&mut self, value: u8) {
        self.registers.write_status(value.into());
        if value == 0 {
            self.forget_vectors();
        }
    }

    fn change_vring(&mut self, value: u32, change: impl FnOnce(&mut VringRegisters)) {
        self.registers.change_vring(value.into(), change);
    }

    /// Returns the index of the configuration's interrupt among the sources.
    fn config_source(&self) -> usize {
        self.registers.kicks.len()
    }

    /// Returns the index of the selected vring, its own number, if it exists.
    fn selected_source(&self) -> Option<usize> {
        let index = self.registers.vring_sel as usize;
        (index < self.registers.kicks.len()).then_some(index)
    }

    fn vector_of(&self, source: usize) -> u16 {
        self.sources.get(source).map_or(NO_VECTOR, |source| source.vector)
    }
}

/// Returns the address of a vring at `offset`, and whether it is the high half.
fn address(offset: u32) -> Option<(VringPart, bool)> {
    if !(QUEUE_DESC..QUEUE_DEVICE_END).contains(&offset) || !offset.is_multiple_of(4) {
        return None;
    }
    let part = [VringPart::DescriptorTable, VringPart::AvailableRing, VringPart::UsedRing]
        [((offset - QUEUE_DESC) / 8) as usize];
    Some((part, !offset.is_multiple_of(8)))
}
