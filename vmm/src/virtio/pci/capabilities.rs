//! The configuration space of a virtio function: the identity of the device (virtio 1.2, 4.1.2), and the
//! places of the structures in the BAR (4.1.4).

use crate::board::layout::PCI_BAR_SIZE;
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::msix::{self, Msix};

/// Most vrings of a device. Each has a vector, and the configuration has one more.
pub const MAX_VRINGS: usize = 255;

/// The structures in the BAR, each on its own page.
pub(super) const COMMON: u32 = 0x0000;
pub(super) const ISR: u32 = 0x1000;
pub(super) const DEVICE: u32 = 0x2000;
pub(super) const NOTIFY: u32 = 0x3000;
pub(super) const TABLE: u32 = 0x4000;
pub(super) const PENDING: u32 = 0x5000;

/// Bytes between the notification addresses of two vrings.
pub(super) const NOTIFY_MULTIPLIER: u32 = 4;
/// Bytes of the common configuration structure.
pub(super) const COMMON_SIZE: u32 = 0x40;
/// Most bytes of the device's configuration space.
const DEVICE_SIZE: u32 = 0x1000;

const VENDOR: u16 = 0x1af4;
/// The device number of virtio device 0 (4.1.2.1).
const FIRST_DEVICE: u16 = 0x1040;
const REVISION: u8 = 1;

/// The capability that announces virtio's structures: vendor-specific.
const VENDOR_CAPABILITY: u8 = 9;
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// Offset of `pci_cfg_data` in its capability, after `bar`, `offset` and `length`.
const PCI_CFG_DATA: u16 = 16;

/// Returns the identity of virtio device number `device_id`. Firmware, and drivers that do not know virtio,
/// use its class.
pub(super) fn identity(device_id: u32) -> Identity {
    let class = match device_id {
        1 => 0x02_0000, // Ethernet
        2 => 0x01_8000, // mass storage
        _ => 0xff_0000,
    };
    // Device numbers of virtio are below 64 (5).
    let device = FIRST_DEVICE + device_id as u16;
    Identity { vendor: VENDOR, device, revision: REVISION, class, subsystem: [VENDOR, device] }
}

/// Offsets of the capabilities that a driver writes.
pub(super) struct Capabilities {
    pci_cfg: u16,
    msix: u16,
}

/// An access to the BAR through the configuration space (4.1.4.9).
pub(super) struct Window {
    /// Offset in the BAR. A multiple of `len`, inside.
    pub(super) offset: u32,
    /// 1, 2 or 4.
    pub(super) len: usize,
    /// Offset of `pci_cfg_data`.
    pub(super) register: u16,
}

impl Capabilities {
    /// Adds all capabilities, for a device with `vrings` vrings.
    pub(super) fn add(config: &mut ConfigSpace, msix: &Msix, vrings: u32) -> Capabilities {
        let mut structure = |kind, offset, len, more: &[u8], writable: &[u8]| {
            config.add_capability(
                VENDOR_CAPABILITY,
                &[&body(kind, offset, len, more)[..], more].concat(),
                writable,
            )
        };
        structure(COMMON_CFG, COMMON, COMMON_SIZE, &[], &[]);
        structure(ISR_CFG, ISR, 1, &[], &[]);
        structure(DEVICE_CFG, DEVICE, DEVICE_SIZE, &[], &[]);
        let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
        structure(NOTIFY_CFG, NOTIFY, NOTIFY_MULTIPLIER * vrings, &multiplier, &[]);
        // After the capability's length and kind, the driver writes bar, padding, offset, length and data.
        let mut writable = [0xff; 18];
        writable[..2].fill(0);
        let pci_cfg = structure(PCI_CFG, 0, 0, &[0; 4], &writable);
        let (body, writable) = msix.capability(TABLE, PENDING);
        let msix = config.add_capability(msix::CAPABILITY, &body, &writable);
        config.add_fixed_bar();
        Capabilities { pci_cfg, msix }
    }

    /// Returns MSI-X's Message Control.
    pub(super) fn msix_control(&self, config: &ConfigSpace) -> u16 {
        (config.u32(self.msix) >> 16) as u16
    }

    /// Returns the access to the BAR that belongs to an access of `len` bytes to the configuration space at
    /// `offset`, if there is one.
    pub(super) fn window(&self, config: &ConfigSpace, offset: u16, len: usize) -> Option<Window> {
        let register = self.pci_cfg + PCI_CFG_DATA;
        let (at, first) = (usize::from(offset), usize::from(register));
        if at + len <= first || at >= first + 4 {
            return None;
        }
        let [bar, ..] = config.u32(self.pci_cfg + 4).to_le_bytes();
        let offset = config.u32(self.pci_cfg + 8);
        let len = config.u32(self.pci_cfg + 12);
        let aligned = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        (bar == 0 && aligned && offset < PCI_BAR_SIZE).then_some(Window {
            offset,
            len: len as usize,
            register,
        })
    }
}

/// Returns `struct virtio_pci_cap` after its pointer to the next capability. `more` follows it.
fn body(kind: u8, offset: u32, len: u32, more: &[u8]) -> [u8; 14] {
    const BAR: u8 = 0;
    let mut body = [0; 14];
    body[..3].copy_from_slice(&[16 + more.len() as u8, kind, BAR]);
    body[6..10].copy_from_slice(&offset.to_le_bytes());
    body[10..].copy_from_slice(&len.to_le_bytes());
    body
}
