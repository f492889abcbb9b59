//! The PCI bus in the DSDT: its host bridge, and its slots, whose devices are added and removed while the
//! guest runs.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, IO, If, Interrupt, Local, Method, Name, Notify, OpRegion, OpRegionSpace,
    Path, ResourceTemplate, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use crate::board::layout::{
    CONFIG_PORTS, CONFIG_PORTS_SIZE, HOTPLUG_GSI, HOTPLUG_PORTS, PCI_SLOTS, PCI_WINDOW, PCI_WINDOW_SIZE,
};
use crate::pci::hotplug;

/// Registers of the hot-plug controller ([`mod@hotplug`]), as fields of this device.
const PLUGGED: &str = "\\_SB_.HPC0.PLUG";
const WANTED: &str = "\\_SB_.HPC0.WANT";
const EJECTED: &str = "\\_SB_.HPC0.EJCT";

/// Notifications of a device (ACPI 6.5, 5.6.6).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// Writes the root of the PCI bus: bus 0 only, found with configuration mechanism #1, with a window for BARs.
/// There is no `_PRT`, because its functions have no interrupt pins.
pub(super) fn host_bridge(sink: &mut dyn AmlSink) {
    let bus = AddressSpace::new_bus_number(0u16, 0);
    let ports = IO::new(CONFIG_PORTS, CONFIG_PORTS, 1, CONFIG_PORTS_SIZE as u8);
    let memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_WINDOW,
        PCI_WINDOW + (PCI_WINDOW_SIZE - 1),
        None,
    );
    Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CCA"), &1u8),
            &Name::new(Path::new("_SEG"), &0u8),
            &Name::new(Path::new("_BBN"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&bus, &ports, &memory])),
            &Slots,
        ],
    )
    .to_aml_bytes(sink);
}

/// Returns the slots without the host bridge's.
fn slots() -> impl Iterator<Item = u32> {
    1..PCI_SLOTS as u32
}

fn slot_path(slot: u32) -> String {
    format!("S{slot:03}")
}

/// All slots, each as a device that can be ejected, whether it is filled or not. There is no `_STA`: a driver
/// sees in the function's configuration space whether the slot is filled.
struct Slots;

impl Aml for Slots {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        for slot in slots() {
            // The functions of the device, from 0 on (6.1.1).
            let address = slot << 16;
            let eject = Path::new(EJECTED);
            Device::new(
                Path::new(&slot_path(slot)),
                vec![
                    &Name::new(Path::new("_ADR"), &address),
                    &Name::new(Path::new("_SUN"), &slot),
                    &Method::new(Path::new("_EJ0"), 1, true, vec![&Store::new(&eject, &(1u32 << slot))]),
                ],
            )
            .to_aml_bytes(sink);
        }
    }
}

/// Writes the hot-plug controller, and the generic event device (5.6.9) whose only interrupt reports its
/// events.
pub(super) fn hotplug(sink: &mut dyn AmlSink) {
    let (length, base) = (hotplug::SIZE as u8, HOTPLUG_PORTS);
    let ports = IO::new(base, base, 1, length);
    let register = |name: &[u8; 4]| FieldEntry::Named(*name, 32);
    Device::new(
        Path::new("HPC0"),
        vec![
            // The ports belong to the motherboard, so that nothing else gets them.
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports])),
            &OpRegion::new(Path::new("PORT"), OpRegionSpace::SystemIO, &base, &length),
            &Field::new(
                Path::new("PORT"),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![register(b"PLUG"), register(b"WANT"), register(b"EJCT")],
            ),
        ],
    )
    .to_aml_bytes(sink);
    // A level, so that an event during the boot waits for the driver.
    let interrupt = Interrupt::new(true, false, false, false, HOTPLUG_GSI);
    Device::new(
        Path::new("GED1"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0013"),
            &Name::new(Path::new("_UID"), &1u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&interrupt])),
            &Method::new(
                Path::new("_EVT"),
                1,
                true,
                vec![
                    // The read clears the controller's events.
                    &Store::new(&Local(0), &Path::new(PLUGGED)),
                    &Store::new(&Local(1), &Path::new(WANTED)),
                    &Notifications,
                ],
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// Notifies each slot whose bit is set in local 0 (filled) or 1 (requested back).
struct Notifications;

impl Aml for Notifications {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        for slot in slots() {
            let device = Path::new(&format!("\\_SB_.PCI0.{}", slot_path(slot)));
            for (local, event) in [(0, DEVICE_CHECK), (1, EJECT_REQUEST)] {
                let (local, bit) = (Local(local), 1u32 << slot);
                If::new(&And::new(&ZERO, &local, &bit), vec![&Notify::new(&device, &event)])
                    .to_aml_bytes(sink);
            }
        }
    }
}
