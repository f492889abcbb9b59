//! The virtio-pci function under any reads and writes of the configuration space and the BAR, of any width.
//! The device is activated only with checked features and vrings, and never twice; the function and its BAR
//! stay unchanged. The hot-plug controller reports each event once and completely, and ejects exactly the
//! slots written to its eject register.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use volt_vmm::board::bus::BusDevice;
use volt_vmm::board::irq::LevelLine;
use volt_vmm::board::layout::{PCI_BAR_SIZE, PCI_SLOTS};
use volt_vmm::pci::PciFunction;
use volt_vmm::pci::hotplug::{HotplugEvents, HotplugRegisters};
use volt_vmm::virtio::pci::PciTransport;

use super::STEPS;
use super::mmio::{Device, Life, MEMORY, OFFERED};

const BASE: u32 = 0xe000_8000;
const DRIVER_OK: u8 = 4;
const NEEDS_RESET: u8 = 64;
/// Offsets of the common configuration structure (virtio 1.2, 4.1.4.3).
const STATUS: u16 = 0x14;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    refuses: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    ReadBar {
        offset: u16,
        len: u8,
    },
    WriteBar {
        offset: u16,
        data: Vec<u8>,
    },
    ReadConfig {
        offset: u16,
        len: u8,
    },
    WriteConfig {
        offset: u8,
        data: Vec<u8>,
    },
    /// A field of the common configuration structure, with a width that fits some fields.
    Common {
        field: u8,
        width: u8,
        value: u64,
    },
    Status(u8),
    /// A word of the MSI-X table.
    Table {
        word: u8,
        value: u32,
    },
    MsixControl(u16),
    /// A vring at a valid address.
    Vring {
        index: u8,
        log: u8,
        page: u8,
    },
    /// A complete start, like a driver's.
    Start {
        bits: u64,
        vrings: u8,
    },
    /// The machine fills a slot.
    Plugged(u8),
    /// The machine requests the removal of a slot's device.
    Wanted(u8),
    ReadHotplug {
        offset: u8,
        len: u8,
    },
    WriteHotplug {
        offset: u8,
        data: Vec<u8>,
    },
}

struct Peer {
    function: PciTransport,
    life: Arc<Mutex<Life>>,
    hotplug: Hotplug,
}

/// The controller, and its expected events.
struct Hotplug {
    registers: HotplugRegisters,
    events: Arc<HotplugEvents>,
    ejected: Arc<Mutex<u32>>,
    level: Arc<AtomicBool>,
    plugged: u32,
    wanted: u32,
}

impl Hotplug {
    fn new() -> Hotplug {
        let level = Arc::new(AtomicBool::new(false));
        let pin = level.clone();
        let line = LevelLine::new(move |high| pin.store(high, Ordering::SeqCst));
        let events = Arc::new(HotplugEvents::new(line));
        let ejected = Arc::new(Mutex::new(0));
        let (mask, its) = (ejected.clone(), events.clone());
        let eject = Box::new(move |slot: usize| {
            *mask.lock().expect("no panic") |= 1 << slot;
            its.forget(slot);
        });
        let registers = HotplugRegisters::new(events.clone(), eject);
        Hotplug { registers, events, ejected, level, plugged: 0, wanted: 0 }
    }

    fn read(&mut self, offset: u8, len: u8) {
        let mut data = vec![0xee; usize::from(len % 9)];
        self.registers.read(offset.into(), &mut data);
        let expected = match (offset, data.len()) {
            (0, 4) => std::mem::take(&mut self.plugged),
            (4, 4) => std::mem::take(&mut self.wanted),
            _ => 0,
        };
        let expected = expected.to_le_bytes().into_iter().chain([0; 4]);
        assert!(data.iter().copied().eq(expected.take(data.len())), "an event is repeated or incomplete");
    }

    fn write(&mut self, offset: u8, data: &[u8]) {
        self.registers.write(offset.into(), data);
        let slots = match (offset, <[u8; 4]>::try_from(data)) {
            (8, Ok(data)) => u32::from_le_bytes(data),
            _ => 0,
        };
        assert_eq!(std::mem::take(&mut *self.ejected.lock().expect("no panic")), slots);
        self.plugged &= !slots;
        self.wanted &= !slots;
    }
}

pub(super) fn run(input: Input) {
    let life = Arc::new(Mutex::new(Life::default()));
    let device = Device { life: life.clone(), refuses: input.refuses };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("guest memory");
    let function = PciTransport::unconnected(Box::new(device), memory, BASE).expect("eventfds");
    let mut peer = Peer { function, life, hotplug: Hotplug::new() };
    peer.function.write_config(4, &[6, 0]);
    for step in input.steps.iter().take(STEPS) {
        peer.step(step);
        peer.check();
    }
}

impl Peer {
    fn write(&mut self, offset: u16, data: &[u8]) {
        self.function.write(offset.into(), data);
    }

    fn config(&mut self, offset: u16) -> u32 {
        let mut data = [0xee; 4];
        self.function.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::ReadBar { offset, len } => {
                let mut data = vec![0xee; usize::from(len % 9)];
                self.function.read((*offset).into(), &mut data);
                let outside = u32::from(*offset) >= PCI_BAR_SIZE;
                assert!(!outside || data.iter().all(|byte| *byte == 0xff), "somebody answers behind the BAR");
            }
            Step::WriteBar { offset, data } => self.write(*offset, &data[..data.len().min(9)]),
            Step::ReadConfig { offset, len } => {
                let mut data = vec![0xee; usize::from(len % 9)];
                self.function.read_config(*offset, &mut data);
                assert!(*offset < 256 || data.iter().all(|byte| *byte == 0), "the space has 256 bytes");
            }
            Step::WriteConfig { offset, data } => {
                self.function.write_config((*offset).into(), &data[..data.len().min(9)]);
            }
            Step::Common { field, width, value } => {
                let width = [1, 2, 4, 8][usize::from(width % 4)];
                self.write(u16::from(field % 0x40), &value.to_le_bytes()[..width]);
            }
            Step::Status(status) => self.write(STATUS, &[*status]),
            Step::Table { word, value } => self.write(0x4000 + u16::from(*word) * 4, &value.to_le_bytes()),
            Step::MsixControl(control) => {
                let mut at = self.config(0x34) as u8;
                while at != 0 && self.config(at.into()) as u8 != 0x11 {
                    at = (self.config(at.into()) >> 8) as u8;
                }
                assert_ne!(at, 0, "the list of capabilities has MSI-X");
                self.function.write_config(u16::from(at) + 2, &control.to_le_bytes());
            }
            Step::Vring { index, log, page } => self.vring(*index, *log, *page),
            Step::Plugged(slot) => {
                let slot = usize::from(*slot) % PCI_SLOTS;
                self.hotplug.events.plugged(slot);
                self.hotplug.plugged |= 1 << slot;
            }
            Step::Wanted(slot) => {
                let slot = usize::from(*slot) % PCI_SLOTS;
                self.hotplug.events.eject(slot);
                self.hotplug.wanted |= 1 << slot;
            }
            Step::ReadHotplug { offset, len } => self.hotplug.read(*offset, *len),
            Step::WriteHotplug { offset, data } => self.hotplug.write(*offset, &data[..data.len().min(9)]),
            Step::Start { bits, vrings } => {
                [0, 1, 3].into_iter().for_each(|status| self.write(STATUS, &[status]));
                let features = bits & OFFERED.bits() | 1 << 32;
                for half in [0u32, 1] {
                    self.write(0x08, &half.to_le_bytes());
                    self.write(0x0c, &((features >> (32 * half)) as u32).to_le_bytes());
                }
                self.write(STATUS, &[11]);
                (0..3).filter(|n| vrings >> n & 1 == 1).for_each(|n| self.vring(n, 3, n));
                self.write(STATUS, &[15]);
            }
        }
    }

    fn vring(&mut self, index: u8, log: u8, page: u8) {
        let at = u32::from(page) * 0x1000;
        self.write(0x16, &u16::from(index % 4).to_le_bytes());
        self.write(0x18, &(1u16 << (log % 10)).to_le_bytes());
        self.write(0x1a, &u16::from(index % 5).to_le_bytes());
        for (field, address) in [(0x20, at), (0x28, at + 0x400), (0x30, at + 0x800)] {
            self.write(field, &address.to_le_bytes());
        }
        self.write(0x1c, &1u16.to_le_bytes());
    }

    fn check(&mut self) {
        let life = self.life.lock().expect("no panic in the device");
        assert_eq!(life.broken, None);
        let active = life.active;
        drop(life);
        assert_eq!((self.config(0), self.config(0x2c)), (0x1042_1af4, 0x1042_1af4));
        let bar = self.config(0x10);
        assert!([BASE, !(PCI_BAR_SIZE - 1)].contains(&bar), "the BAR is at {bar:#x}");
        assert_eq!(self.config(0x3c) >> 8, 0, "no interrupt pin");
        let news = self.hotplug.plugged | self.hotplug.wanted != 0;
        assert_eq!(
            self.hotplug.level.load(Ordering::SeqCst),
            news,
            "the pin does not match the pending events"
        );
        let command = self.config(4) as u16;
        let is_master = command & 4 != 0;
        assert!(is_master || !active, "active without bus mastering");
        let mut status = [0];
        self.function.write_config(4, &(command | 2).to_le_bytes());
        self.function.read(STATUS.into(), &mut status);
        self.function.write_config(4, &command.to_le_bytes());
        let [status] = status;
        assert!(!active || status & DRIVER_OK != 0, "active without DRIVER_OK");
        // A driver that has set DRIVER_OK has a device, or is notified that it has none.
        assert!(active || !is_master || status & DRIVER_OK == 0 || status & NEEDS_RESET != 0);
    }
}
