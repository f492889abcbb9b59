//! The guest's physical address space and its interrupts: all fixed numbers in one place.
//!
//! ```text
//!   0x0000_0000  boot data: GDT, PVH start info, zero page, page tables, command line
//!   0x0009_fc00  reserved; ACPI tables from 0xe0000
//!   0x0010_0000  RAM: kernel at the bottom, initramfs at the top
//!   0xc000_0000  hole of 1 GiB: virtio-mmio from 0xd000_0000, PCI from 0xe000_0000, IOAPIC, local APICs,
//!                KVM's own pages
//! 0x1_0000_0000  the rest of the RAM
//! ```

/// The global descriptor table that the boot vCPU starts with.
pub const GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH boot protocol; its module list and memory map follow.
pub const PVH_START_INFO: u64 = 0x6000;
/// The PVH module list.
pub const PVH_MODULES: u64 = 0x6040;
/// The PVH memory map.
pub const PVH_MEMMAP: u64 = 0x6080;
/// The zero page (`boot_params`) of the Linux boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Page tables that map the first 4 GiB one to one: PML4, one PDPT, four page directories.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line, at most [`CMDLINE_ROOM`] bytes with its NUL.
pub const CMDLINE: u64 = 0x2_0000;
/// Size of the room for the command line.
pub const CMDLINE_ROOM: u64 = 0x1_0000;
/// End of conventional memory, as on a PC with an extended BIOS data area.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The RSDP: the first place where a kernel looks for it (ACPI 6.5, 5.2.5.1).
pub const RSDP: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = 0x10_0000;
/// RAM from here on belongs to kernel, initramfs and guest.
pub const HIGH_RAM: u64 = 0x10_0000;

/// Start of the hole that RAM leaves for devices.
pub const HOLE_START: u64 = 0xc000_0000;
/// End of the hole. RAM continues here.
pub const HOLE_END: u64 = 0x1_0000_0000;

/// The first virtio-mmio device's registers. The others follow.
pub const MMIO_BASE: u64 = 0xd000_0000;
/// Bytes of a virtio-mmio slot: registers and configuration space.
pub const MMIO_SLOT_SIZE: u64 = 0x1000;
/// Functions that fit on the PCI bus, including the host bridge: one in each device number.
pub const PCI_SLOTS: usize = 32;
/// Bytes of each PCI function's BAR.
pub const PCI_BAR_SIZE: u32 = 0x8000;
/// The window for the BARs of PCI functions: [`PCI_BAR_SIZE`] for each device number.
pub const PCI_WINDOW: u32 = 0xe000_0000;
/// Its size in bytes.
pub const PCI_WINDOW_SIZE: u32 = PCI_SLOTS as u32 * PCI_BAR_SIZE;
/// The IOAPIC of KVM's interrupt controllers.
pub const IOAPIC: u32 = 0xfec0_0000;
/// The local APICs of KVM's interrupt controllers.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM uses for itself on some processors (`KVM_SET_IDENTITY_MAP_ADDR`).
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM uses for itself on some processors (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: usize = 0xfffb_d000;

/// The first GSI for virtio devices. Lower ones have a fixed meaning on every PC.
pub const FIRST_DEVICE_GSI: u32 = 5;
/// The last GSI of an IOAPIC with 24 pins.
pub const LAST_DEVICE_GSI: u32 = 23;

/// COM1's ports.
pub const COM1: u16 = 0x3f8;
/// Number of a 16550's ports.
pub const COM1_SIZE: u16 = 8;
/// COM1's interrupt.
pub const COM1_GSI: u32 = 4;
/// The power button's interrupt: that of COM2, which does not exist.
pub const POWER_BUTTON_GSI: u32 = 3;
/// The interrupt of PCI hot-plug. A machine with a PCI bus has no virtio-mmio device that could use it.
pub const HOTPLUG_GSI: u32 = FIRST_DEVICE_GSI;
/// The hot-plug controller's registers ([`HotplugRegisters`](crate::pci::hotplug::HotplugRegisters)).
pub const HOTPLUG_PORTS: u16 = 0x610;
/// `CONFIG_ADDRESS` and `CONFIG_DATA`, for access to the PCI functions' configuration spaces.
pub const CONFIG_PORTS: u16 = 0xcf8;
/// Number of these ports.
pub const CONFIG_PORTS_SIZE: u16 = 8;
/// Command port of a keyboard controller: writing 0xfe pulses the processor's reset line.
pub const KEYBOARD_COMMAND: u16 = 0x64;
/// The reset register of the FADT. Writing [`RESET_VALUE`] resets.
pub const RESET_REG: u16 = 0x600;
/// The value to write there, according to the FADT.
pub const RESET_VALUE: u8 = 1;
/// The sleep control register of the FADT (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL: u16 = 0x601;
/// The sleep status register of the FADT.
pub const SLEEP_STATUS: u16 = 0x602;
/// The power button's status, for the DSDT's event device: 1 if it was pressed since the last read.
pub const BUTTON_STATUS: u16 = 0x603;
/// `SLP_TYP` of the soft-off state, also in the DSDT's `_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;

/// The place of a virtio-mmio device: its window in guest physical memory, and its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioSlot {
    /// First byte of the [`MMIO_SLOT_SIZE`] bytes.
    pub base: u64,
    /// Global system interrupt, edge-triggered and active high, used by no other device.
    pub gsi: u32,
}

/// Returns address and interrupt of virtio-mmio device number `index`, or `None` if the IOAPIC has no pin for
/// it.
pub fn mmio_slot(index: usize) -> Option<MmioSlot> {
    let index = u32::try_from(index).ok()?;
    let gsi = FIRST_DEVICE_GSI.checked_add(index).filter(|&gsi| gsi <= LAST_DEVICE_GSI)?;
    Some(MmioSlot { base: MMIO_BASE + u64::from(index) * MMIO_SLOT_SIZE, gsi })
}

/// Returns the BAR of the PCI function with device number `slot`, or `None` for the host bridge and after the
/// last one.
pub fn pci_bar(slot: usize) -> Option<u32> {
    (1..PCI_SLOTS).contains(&slot).then(|| PCI_WINDOW + slot as u32 * PCI_BAR_SIZE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_slots_end_with_the_ioapics_pins() {
        assert_eq!(mmio_slot(0), Some(MmioSlot { base: 0xd000_0000, gsi: 5 }));
        assert_eq!(mmio_slot(18), Some(MmioSlot { base: 0xd001_2000, gsi: 23 }));
        assert_eq!(mmio_slot(19), None);
        assert_eq!(mmio_slot(usize::MAX), None);
    }

    #[test]
    fn functions_end_with_the_bus() {
        assert_eq!(pci_bar(0), None);
        assert_eq!(pci_bar(1), Some(0xe000_8000));
        assert_eq!(pci_bar(31), Some(PCI_WINDOW + PCI_WINDOW_SIZE - PCI_BAR_SIZE));
        assert_eq!(pci_bar(32), None);
        assert_eq!(pci_bar(usize::MAX), None);
    }
}
