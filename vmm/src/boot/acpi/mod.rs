//! ACPI tables. Only they announce this machine's processors and devices to a stock kernel.
//!
//! A "hardware-reduced" platform (ACPI 6.5, 3.11.1): RSDP, XSDT, FADT, MADT and DSDT, without an ACPI timer
//! or embedded controller. The power button and PCI hot-plug are devices of the DSDT that announce events
//! with an interrupt.

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If,
    Interrupt, Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package, Path,
    ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{self, AccessSize, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::board::layout::{
    ACPI_END, BUTTON_STATUS, COM1, COM1_GSI, COM1_SIZE, IOAPIC, LOCAL_APIC, MMIO_SLOT_SIZE, MmioSlot,
    POWER_BUTTON_GSI, RESET_REG, RESET_VALUE, RSDP, SLEEP_CONTROL, SLEEP_STATUS, SLEEP_TYPE_S5,
};

mod pci;

const OEM_ID: [u8; 6] = *b"VOLT  ";
const OEM_TABLE_ID: [u8; 8] = *b"VOLTVMM ";
const OEM_REVISION: u32 = 1;
/// `IAPC_BOOT_ARCH`: legacy devices are present (COM1).
const BOOT_LEGACY_DEVICES: u16 = 1;
/// `IAPC_BOOT_ARCH`: do not probe for VGA.
const BOOT_NO_VGA: u16 = 1 << 2;
/// `IAPC_BOOT_ARCH`: there is no CMOS clock. The guest takes the time from KVM's clock.
const BOOT_NO_CMOS: u16 = 1 << 5;

/// Why the tables cannot be written.
#[derive(Debug, Error)]
pub enum AcpiError {
    /// There are too many devices or processors.
    #[error("ACPI tables of {need} bytes do not fit into {room} bytes: use fewer vCPUs or devices")]
    Size {
        /// Size of the tables in bytes.
        need: u64,
        /// Room in bytes.
        room: u64,
    },
    /// Writing to guest memory failed.
    #[error("ACPI tables cannot be written to guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// The hardware that the tables describe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hardware {
    /// Number of processors. Their APIC ids are 0, 1, 2, ...
    pub cpus: u8,
    /// Whether COM1 exists.
    pub serial: bool,
    /// Registers and interrupt of each virtio-mmio device.
    pub virtio_mmio: Vec<MmioSlot>,
    /// Whether a PCI bus exists.
    pub pci: bool,
}

/// A table as bytes, and its place in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Guest physical address.
    pub address: u64,
    /// The whole table, checksum included.
    pub bytes: Vec<u8>,
}

/// Writes the tables for `hardware` to memory.
///
/// # Errors
///
/// Fails if they do not fit below 1 MiB or into memory.
pub fn write(memory: &GuestMemoryMmap, hardware: &Hardware) -> Result<(), AcpiError> {
    for table in tables(hardware)? {
        memory.write_slice(&table.bytes, GuestAddress(table.address)).map_err(AcpiError::Memory)?;
    }
    Ok(())
}

/// Returns all tables, the RSDP first.
///
/// # Errors
///
/// Fails if they do not fit below 1 MiB.
pub fn tables(hardware: &Hardware) -> Result<Vec<Table>, AcpiError> {
    let mut next = RSDP + Rsdp::len() as u64;
    let mut tables = Vec::new();
    let mut place = |aml: &dyn Aml| {
        let mut bytes = Vec::new();
        aml.to_aml_bytes(&mut bytes);
        let address = next.next_multiple_of(64);
        next = address + bytes.len() as u64;
        tables.push(Table { address, bytes });
        address
    };
    let dsdt = place(&dsdt(hardware));
    let fadt = place(&fadt(dsdt));
    let madt = place(&madt(hardware.cpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = place(&xsdt);
    if next > ACPI_END {
        return Err(AcpiError::Size { need: next - RSDP, room: ACPI_END - RSDP });
    }
    let mut bytes = Vec::new();
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut bytes);
    tables.insert(0, Table { address: RSDP, bytes });
    Ok(tables)
}

fn fadt(dsdt: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::Headless)
        .flag(Flags::Wbinvd);
    fadt.reset_reg = port(RESET_REG);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_NO_VGA | BOOT_NO_CMOS).into();
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE_ID).into();
    fadt.finalize()
}

/// Returns an 8-bit register at an I/O port.
fn port(port: u16) -> GAS {
    GAS::new(gas::AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port))
}

fn madt(cpus: u8) -> MADT {
    let local_apic = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, local_apic);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC, 0));
    madt
}

fn dsdt(hardware: &Hardware) -> Sdt {
    const DSDT_REVISION: u8 = 6;
    let mut aml = Vec::new();
    let (s5, zero) = (SLEEP_TYPE_S5, 0u8);
    Name::new(Path::new("_S5_"), &Package::new(vec![&s5, &zero, &zero, &zero])).to_aml_bytes(&mut aml);
    let devices = Devices(hardware);
    Scope::new(Path::new("_SB_"), vec![&devices]).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// The devices under `\_SB`.
struct Devices<'a>(&'a Hardware);

impl Aml for Devices<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        for uid in 0..self.0.cpus {
            processor(uid, sink);
        }
        if self.0.serial {
            com1(sink);
        }
        power_button(sink);
        for (index, &slot) in (0u8..).zip(&self.0.virtio_mmio) {
            virtio_mmio(index, slot, sink);
        }
        if self.0.pci {
            pci::host_bridge(sink);
            pci::hotplug(sink);
        }
    }
}

/// Writes a processor device. A MADT entry with the same `_UID` completes it (ACPI 6.5, 8.4).
fn processor(uid: u8, sink: &mut dyn AmlSink) {
    Device::new(
        Path::new(&format!("C{uid:03}")),
        vec![&Name::new(Path::new("_HID"), &"ACPI0007"), &Name::new(Path::new("_UID"), &uid)],
    )
    .to_aml_bytes(sink);
}

fn com1(sink: &mut dyn AmlSink) {
    // Its field has no room for a length beyond 255. COM1 has 8 ports.
    let ports = IO::new(COM1, COM1, 1, COM1_SIZE as u8);
    let interrupt = Interrupt::new(true, true, false, false, COM1_GSI);
    Device::new(
        Path::new("COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    )
    .to_aml_bytes(sink);
}

/// Writes the control method power button (ACPI 6.5, 4.8.2.2.1.2), and the generic event device (5.6.9) whose
/// only interrupt reports a press. Hardware-reduced platforms have no event registers for it.
fn power_button(sink: &mut dyn AmlSink) {
    /// "Power button pressed" (5.6.6).
    const PRESSED: u8 = 0x80;
    let button = Path::new("PWRB");
    let (hid, uid) = (EISAName::new("PNP0C0C"), 0u8);
    Device::new(
        Path::new("PWRB"),
        vec![&Name::new(Path::new("_HID"), &hid), &Name::new(Path::new("_UID"), &uid)],
    )
    .to_aml_bytes(sink);
    // A level, so that a press during the boot waits for the driver.
    let interrupt = Interrupt::new(true, false, false, false, POWER_BUTTON_GSI);
    let (at, length) = (BUTTON_STATUS, 1u8);
    let (register, pressed) = (Path::new("PRSD"), Local(0));
    Device::new(
        Path::new("GED0"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
            &OpRegion::new(Path::new("PORT"), OpRegionSpace::SystemIO, &at, &length),
            &Field::new(
                Path::new("PORT"),
                FieldAccessType::Byte,
                FieldLockRule::NoLock,
                FieldUpdateRule::Preserve,
                vec![FieldEntry::Named(*b"PRSD", 8)],
            ),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    // The read clears the button's state.
                    &Store::new(&pressed, &register),
                    &If::new(&And::new(&ZERO, &pressed, &ONE), vec![&Notify::new(&button, &PRESSED)]),
                ],
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// Writes a virtio-mmio device. Linux's driver looks for the id `LNRO0005`. `_CCA`: DMA is coherent.
fn virtio_mmio(index: u8, slot: MmioSlot, sink: &mut dyn AmlSink) {
    // The layout puts all of them below 4 GiB.
    let registers = Memory32Fixed::new(true, slot.base as u32, MMIO_SLOT_SIZE as u32);
    let interrupt = Interrupt::new(true, true, false, false, slot.gsi);
    Device::new(
        Path::new(&format!("V{index:03}")),
        vec![
            &Name::new(Path::new("_HID"), &"LNRO0005"),
            &Name::new(Path::new("_UID"), &index),
            &Name::new(Path::new("_CCA"), &1u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&registers, &interrupt])),
        ],
    )
    .to_aml_bytes(sink);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::board::layout::mmio_slot;

    fn hardware() -> Hardware {
        Hardware { cpus: 4, serial: true, virtio_mmio: (0..4).filter_map(mmio_slot).collect(), pci: true }
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn tables_lead_from_one_to_the_next_with_right_checksums() {
        let tables = tables(&hardware()).unwrap();
        let find = |address| &tables.iter().find(|t| t.address == address).unwrap().bytes;
        for table in &tables {
            assert_eq!(table.bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        }
        let rsdp = find(RSDP);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = find(u64_at(rsdp, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let fadt = find(u64_at(xsdt, 36));
        assert_eq!(&fadt[..4], b"FACP");
        assert_eq!(&find(u64_at(fadt, 140))[..4], b"DSDT");
        let madt = find(u64_at(xsdt, 44));
        assert_eq!((&madt[..4], madt.len()), (&b"APIC"[..], 44 + 4 * 8 + 12));
    }

    #[test]
    fn as_many_devices_as_the_ioapic_has_pins_fit() {
        let virtio_mmio = (0..).map_while(mmio_slot).collect::<Vec<_>>();
        assert_eq!(virtio_mmio.len(), 19);
        let all = tables(&Hardware { cpus: u8::MAX, serial: true, virtio_mmio, pci: true }).unwrap();
        assert!(all.iter().all(|t| t.address + t.bytes.len() as u64 <= ACPI_END));
    }
}
