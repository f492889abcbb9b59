//! Adding and removing devices on a machine's PCI bus, with KVM and without a guest. The test plays the
//! guest: it accesses the hot-plug controller's registers and the configuration space.
//!
//! There is one test in its own process, because it counts the process's files.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use kvm_ioctls::{Kvm, VmFd};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use volt_vmm::board::bus::{Bus, BusDevice};
use volt_vmm::board::irq::LevelLine;
use volt_vmm::board::layout::PCI_SLOTS;
use volt_vmm::board::pause_gate::PauseGate;
use volt_vmm::config::DiskConfig;
use volt_vmm::machine::devices::{Devices, PlugError};
use volt_vmm::pci::ConfigPorts;
use volt_vmm::pci::hotplug::{HotplugEvents, HotplugRegisters};
use volt_vmm::virtio::blk::{Block, BlockError};
use volt_vmm::virtio::handle::DeviceKind;
use volt_vmm::virtio::maker::Maker;
use volt_vmm::virtio::pci::slots::{PciSlots, SlotError};
use volt_vmm::virtio::rng::Rng;

const LIMIT: Duration = Duration::from_secs(60);
/// Without a guest, there is no answer to wait for.
const AT_ONCE: Duration = Duration::from_millis(10);

fn vm() -> Result<VmFd, io::Error> {
    let vm = Kvm::new()?.create_vm()?;
    vm.create_irq_chip()?;
    Ok(vm)
}

/// A machine, connected like the builder does it.
struct Machine {
    devices: Arc<Devices>,
    pci: Mutex<ConfigPorts>,
    registers: HotplugRegisters,
    pin: Arc<AtomicBool>,
    gate: Arc<PauseGate>,
    mmio: Arc<Bus>,
}

impl Machine {
    fn new(vm: VmFd) -> Machine {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let mmio = Arc::new(Bus::new());
        let slots = PciSlots::new(Arc::new(vm), memory, mmio.clone());
        let pin = Arc::<AtomicBool>::default();
        let level = pin.clone();
        let line = LevelLine::new(move |high| level.store(high, Ordering::SeqCst));
        let events = Arc::new(HotplugEvents::new(line));
        let pci = Mutex::new(ConfigPorts::new(slots.bus()));
        let devices = Arc::new(Devices::on_pci(slots, events.clone(), Maker::start().expect("a thread")));
        let ejecting = devices.clone();
        let registers = HotplugRegisters::new(events, Box::new(move |slot| ejecting.ejected(slot)));
        Machine { devices, pci, registers, pin, gate: Arc::default(), mmio }
    }

    fn plug_disk(&self, path: &Path) -> Result<usize, PlugError> {
        self.devices.plug(Box::new(self.open_disk(path).unwrap()))
    }

    fn open_disk(&self, path: &Path) -> Result<Block, BlockError> {
        Block::open(&DiskConfig { path: path.to_owned(), read_only: false, raw: false }, &self.gate)
    }

    fn plug_rng(&self) -> Result<usize, PlugError> {
        self.devices.plug(Box::new(Rng::new(&self.gate)))
    }

    fn is_removing(&self, at: usize) -> bool {
        self.devices.status()[at].slot.unwrap().removing
    }

    fn interrupts(&self) -> bool {
        self.pin.load(Ordering::SeqCst)
    }

    /// Reads the controller's events: the filled slots, and those requested back.
    fn events(&mut self) -> (u32, u32) {
        let mut words = [[0; 4]; 2];
        for (offset, word) in [0, 4].into_iter().zip(&mut words) {
            self.registers.read(offset, word);
        }
        let [plugged, wanted] = words.map(u32::from_le_bytes);
        (plugged, wanted)
    }

    fn eject(&mut self, slots: u32) {
        self.registers.write(8, &slots.to_le_bytes());
    }

    /// Returns the first word of a slot's configuration space.
    fn identity(&self, slot: usize) -> u32 {
        let mut pci = self.pci.lock().unwrap();
        let mut data = [0; 4];
        pci.write(0, &(1 << 31 | (slot as u32) << 11).to_le_bytes());
        pci.read(4, &mut data);
        u32::from_le_bytes(data)
    }

    /// Acts like a driver that has its vectors, so that the device's notification address and interrupts are
    /// in use.
    fn connect(&self, slot: usize) {
        let mut pci = self.pci.lock().unwrap();
        let address = |register: u32| (1 << 31 | (slot as u32) << 11 | register).to_le_bytes();
        pci.write(0, &address(4));
        pci.write(4, &[2, 0]);
        let mut at = [0x34];
        loop {
            pci.write(0, &address(at[0].into()));
            let mut word = [0; 4];
            pci.read(4, &mut word);
            match word {
                [0x11, ..] => break pci.write(6, &0x8000u16.to_le_bytes()),
                [next, ..] if at == [0x34] => at = [next],
                [_, next, ..] => at = [next],
            }
        }
        drop(pci);
        let bar = 0xe000_0000 + 0x8000 * slot as u64;
        for (offset, word) in [(0x4000, 0xfee0_0000u32), (0x4004, 0), (0x4008, 0x41), (0x400c, 0)] {
            self.mmio.write(bar + offset, &word.to_le_bytes());
        }
        // Vector 0 for vring 0 and the configuration.
        self.mmio.write(bar + 0x1a, &[0, 0]);
        self.mmio.write(bar + 0x10, &[0, 0]);
        let mut vector = [9; 2];
        self.mmio.read(bar + 0x1a, &mut vector);
        assert_eq!(vector, [0, 0]);
    }
}

fn files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn devices_come_and_go_without_a_trace() {
    let vm = match vm() {
        Ok(vm) => vm,
        Err(error) => return eprintln!("SKIP devices_come_and_go_without_a_trace: /dev/kvm: {error}"),
    };
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    std::fs::write(&image, [0; 4096]).unwrap();
    let name = image.display().to_string();
    let mut machine = Machine::new(vm);
    assert_eq!(machine.devices.attach(Box::new(Rng::new(&machine.gate))).unwrap(), 1);
    assert_eq!(machine.events(), (0, 0), "a device from the start is no event");

    rounds(&mut machine, &image, &name);
    refusals(&mut machine, &image, &name);
    a_slow_guest(&mut machine, &image, &name);
    a_hostile_guest(&mut machine, &image);
    an_end_in_the_middle(&machine, &image, &name);
}

/// Fifty rounds: the guest is notified, finds the disk, uses its vectors, and releases it on request. The
/// image is locked only meanwhile, all slots take turns, and no file stays open.
fn rounds(machine: &mut Machine, image: &Path, name: &str) {
    let before = files();
    for round in 0..50 {
        let slot = 2 + round % (PCI_SLOTS - 2);
        assert_eq!(machine.plug_disk(image).unwrap(), slot);
        assert!(machine.interrupts());
        assert_eq!(machine.events(), (1 << slot, 0));
        assert_eq!(machine.identity(slot), 0x1042_1af4);
        machine.connect(slot);
        assert!(machine.open_disk(image).is_err());
        let devices = machine.devices.clone();
        let owned = name.to_owned();
        let client = thread::spawn(move || devices.remove(DeviceKind::Disk, &owned, LIMIT));
        while !machine.interrupts() {
            thread::yield_now();
        }
        assert_eq!(machine.events(), (0, 1 << slot));
        assert!(!machine.interrupts());
        assert!(machine.is_removing(1));
        machine.eject(1 << slot);
        client.join().unwrap().unwrap();
        assert_eq!(machine.identity(slot), u32::MAX);
        let mut data = [0; 4];
        machine.mmio.read(0xe000_0000 + 0x8000 * slot as u64, &mut data);
        assert_eq!(data, [0xff; 4]);
        drop(machine.open_disk(image).unwrap());
    }
    assert_eq!(files(), before);
}

/// A duplicate name, a full bus, and an unknown name: each has its error, and nothing of the device stays.
fn refusals(machine: &mut Machine, image: &Path, name: &str) {
    let before = files();
    machine.plug_disk(image).unwrap();
    let taken = machine.devices.room_for(DeviceKind::Disk, name);
    assert!(matches!(taken, Err(PlugError::Taken { .. })));
    assert!(machine.devices.room_for(DeviceKind::Net, name).is_ok());
    let absent = machine.devices.remove(DeviceKind::Disk, "1", AT_ONCE).unwrap_err();
    assert!(absent.to_string().contains(name), "{absent}");
    for number in 3..PCI_SLOTS {
        let other = image.with_file_name(format!("disk{number}"));
        std::fs::write(&other, [0; 512]).unwrap();
        machine.plug_disk(&other).unwrap();
    }
    let other = image.with_file_name("one-too-many");
    std::fs::write(&other, [0; 512]).unwrap();
    let full = machine.plug_disk(&other);
    assert!(matches!(full, Err(PlugError::Slot(SlotError::Full))));
    drop(machine.open_disk(&other).unwrap());
    assert_eq!(machine.events().0, !3, "all but the host bridge and the device from the start");
    machine.eject(!2);
    assert_eq!(machine.devices.status().len(), 1);
    assert_eq!(files(), before);
}

/// A guest that does not answer keeps the device. The request is repeated, and the guest may answer later. A
/// request in its queue then refers to the device that it had. So no other device gets that slot before all
/// requests are answered, if another slot is free.
fn a_slow_guest(machine: &mut Machine, image: &Path, name: &str) {
    let slot = machine.plug_disk(image).unwrap();
    assert!(!machine.is_removing(1));
    for _ in 0..3 {
        let late = machine.devices.remove(DeviceKind::Disk, name, AT_ONCE);
        assert!(matches!(late, Err(PlugError::Late { .. })));
        assert_eq!(machine.events().1, 1 << slot);
        assert!(machine.is_removing(1));
    }
    // One more request, which the guest has not read when it ejects the slot.
    assert!(machine.devices.remove(DeviceKind::Disk, name, AT_ONCE).is_err());
    machine.eject(1 << slot);
    assert_eq!(machine.devices.status().len(), 1);
    assert_eq!(machine.events(), (0, 0), "an empty slot has no event");
    // All slots but that one in turn, with one device at a time.
    for _ in 0..2 * PCI_SLOTS {
        let other = machine.plug_disk(image).unwrap();
        assert_ne!(other, slot);
        assert!(!machine.is_removing(1), "there was no request");
        assert_eq!(machine.events(), (1 << other, 0));
        machine.eject(1 << other);
    }
    machine.eject(1 << slot);
    machine.eject(1 << slot);
    let mut filled = 0;
    while filled != slot {
        filled = machine.plug_disk(image).unwrap();
        machine.eject(1 << filled);
    }
    assert_eq!(machine.devices.status().len(), 1);
    machine.events();
}

/// The guest ejects everything at any time, while devices are added. The host bridge stays, and nothing is
/// lost or left.
fn a_hostile_guest(machine: &mut Machine, image: &Path) {
    machine.eject(u32::MAX);
    assert!(machine.devices.status().is_empty());
    assert_eq!(machine.identity(0), 0x0008_1b36);
    let before = files();
    let devices = machine.devices.clone();
    let gate = machine.gate.clone();
    let operator = thread::spawn(move || {
        for _ in 0..200 {
            // Refused while the previous one exists.
            while devices.plug(Box::new(Rng::new(&gate))).is_err() {}
        }
    });
    while !operator.is_finished() {
        machine.eject(u32::MAX);
        machine.events();
    }
    operator.join().unwrap();
    machine.eject(u32::MAX);
    assert!(machine.devices.status().is_empty());
    assert_eq!((1..PCI_SLOTS).map(|slot| machine.identity(slot)).find(|word| *word != u32::MAX), None);
    assert_eq!(files(), before);
    machine.plug_rng().unwrap();
    machine.plug_disk(image).unwrap();
    assert_eq!(machine.devices.status().len(), 2);
}

/// The machine's end closes the devices although a request waits for one of them. The request fails.
fn an_end_in_the_middle(machine: &Machine, image: &Path, name: &str) {
    let (devices, name) = (machine.devices.clone(), name.to_owned());
    let client = thread::spawn(move || devices.remove(DeviceKind::Disk, &name, LIMIT));
    while !machine.is_removing(1) {
        thread::yield_now();
    }
    machine.devices.end();
    drop(machine.open_disk(image).unwrap());
    assert!(matches!(client.join().unwrap(), Err(PlugError::Ended)));
    assert!(matches!(machine.plug_disk(image), Err(PlugError::Ended)));
    assert!(machine.devices.status().is_empty());
}
