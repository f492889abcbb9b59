//! The virtio-mmio registers under any reads and writes of a driver: the device status follows virtio 1.2,
//! 2.1 and 3.1.1, and the device is activated only with checked features and vrings, and never twice.

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use volt_virtio::features::Features;
use volt_vmm::board::bus::BusDevice;
use volt_vmm::virtio::mmio::MmioTransport;
use volt_vmm::virtio::{ActivateError, Activation, VirtioDevice};

use super::STEPS;

pub(super) const MEMORY: u64 = 0x10_0000;
const SIZES: [u16; 3] = [8, 256, 64];
pub(super) const OFFERED: Features = Features::from_bits_retain(1 << 32 | 1 << 29 | 1 << 28 | 0xff);
const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    refuses: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Read {
        offset: u16,
        len: u8,
    },
    Write {
        offset: u16,
        data: Vec<u8>,
    },
    /// An existing register.
    Register {
        register: u8,
        value: Value,
    },
    Status(u8),
    Features {
        high: bool,
        value: u32,
    },
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
}

#[derive(Arbitrary, Debug)]
enum Value {
    Small(u8),
    Any(u32),
}

/// Events of the device.
#[derive(Default)]
pub(super) struct Life {
    pub(super) active: bool,
    pub(super) broken: Option<String>,
}

/// The device of this transport, and of virtio-pci.
pub(super) struct Device {
    pub(super) life: Arc<Mutex<Life>>,
    pub(super) refuses: bool,
}

impl VirtioDevice for Device {
    fn device_id(&self) -> u32 {
        2
    }

    fn label(&self) -> &str {
        "fuzzed"
    }

    fn features(&self) -> Features {
        OFFERED
    }

    fn vring_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0x77);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut life = self.life.lock().expect("no panic before");
        if life.active {
            life.broken = Some("activated twice".to_owned());
        }
        life.active = true;
        let acked = activation.features;
        if !OFFERED.contains(acked) || !acked.contains(Features::VERSION_1) {
            life.broken = Some(format!("activated with {acked:?}"));
        }
        for vring in &activation.vrings {
            let (size, max) = (vring.queue.size(), SIZES[usize::from(vring.index)]);
            let parts = [
                (vring.queue.desc_table(), 16 * u64::from(size), 16),
                (vring.queue.avail_ring(), 6 + 2 * u64::from(size), 2),
                (vring.queue.used_ring(), 6 + 8 * u64::from(size), 4),
            ];
            let inside = |(at, len, align): (u64, u64, u64)| {
                at.is_multiple_of(align) && at.checked_add(len).is_some_and(|end| end <= MEMORY)
            };
            if !size.is_power_of_two() || size > max || !parts.into_iter().all(inside) {
                life.broken = Some(format!("vring {}: {size} entries at {parts:x?}", vring.index));
            }
        }
        if self.refuses { Err(ActivateError::NoVring(0)) } else { Ok(()) }
    }

    fn reset(&mut self) {
        self.life.lock().expect("no panic before").active = false;
    }
}

/// The status register by the specification: bits are set in sequence, and cleared only by a reset.
#[derive(Default)]
struct Model {
    status: u32,
    features: u64,
    features_sel: u32,
}

impl Model {
    fn write(&mut self, register: u32, value: u32) {
        match register {
            0x24 => self.features_sel = value,
            0x20 if self.status & (DRIVER | FEATURES_OK) == DRIVER => {
                self.features = match self.features_sel {
                    0 => self.features >> 32 << 32 | u64::from(value),
                    1 => self.features & 0xffff_ffff | u64::from(value) << 32,
                    _ => self.features,
                };
            }
            0x70 if value == 0 => *self = Model::default(),
            0x70 => self.set(value),
            _ => {}
        }
    }

    fn set(&mut self, value: u32) {
        let has = |bits: u32| self.status & bits == bits;
        let added = value & !self.status & !NEEDS_RESET;
        let features = Features::from_bits_retain(self.features);
        let allowed = match added {
            0 | FAILED | ACKNOWLEDGE | 3 => true,
            DRIVER => has(ACKNOWLEDGE),
            FEATURES_OK => {
                has(DRIVER) && OFFERED.contains(features) && features.contains(Features::VERSION_1)
            }
            DRIVER_OK => has(FEATURES_OK),
            _ => false,
        };
        if allowed && self.status & !value == 0 && self.status & FAILED == 0 {
            self.status |= added;
        }
    }
}

struct Peer {
    transport: MmioTransport,
    life: Arc<Mutex<Life>>,
    model: Model,
}

pub(super) fn run(input: Input) {
    let life = Arc::new(Mutex::new(Life::default()));
    let device = Device { life: life.clone(), refuses: input.refuses };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("guest memory");
    let transport = MmioTransport::unconnected(Box::new(device), memory).expect("eventfds");
    let mut peer = Peer { transport, life, model: Model::default() };
    for step in input.steps.iter().take(STEPS) {
        peer.step(step);
        peer.check();
    }
}

impl Peer {
    fn write(&mut self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
        self.model.write(register, value);
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut data = [0xee; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Read { offset, len } => {
                let mut data = vec![0xee; usize::from(len % 9)];
                self.transport.read(u64::from(*offset), &mut data);
                let config = *offset >= 0x100;
                assert!(!config || data.iter().all(|byte| *byte == 0x77), "the configuration space has gaps");
                assert!(config || data.len() == 4 || data.iter().all(|byte| *byte == 0));
            }
            Step::Write { offset, data } => {
                let data = &data[..data.len().min(9)];
                match <[u8; 4]>::try_from(data) {
                    Ok(word) if offset % 4 == 0 => self.write(u32::from(*offset), u32::from_le_bytes(word)),
                    _ => self.transport.write(u64::from(*offset), data),
                }
            }
            Step::Register { register, value } => {
                let value = match value {
                    Value::Small(n) => u32::from(*n),
                    Value::Any(n) => *n,
                };
                self.write(u32::from(register % 64) * 4, value);
            }
            Step::Status(status) => self.write(0x70, u32::from(*status)),
            Step::Features { high, value } => {
                self.write(0x24, u32::from(*high));
                self.write(0x20, *value);
            }
            Step::Vring { index, log, page } => self.vring(*index, *log, *page),
            Step::Start { bits, vrings } => {
                [0, 1, 3].into_iter().for_each(|status| self.write(0x70, status));
                let features = bits & OFFERED.bits() | 1 << 32;
                for half in [0, 1] {
                    self.write(0x24, half);
                    self.write(0x20, (features >> (32 * half)) as u32);
                }
                self.write(0x70, 11);
                (0..3).filter(|n| vrings >> n & 1 == 1).for_each(|n| self.vring(n, 3, n));
                self.write(0x70, 15);
            }
        }
    }

    fn vring(&mut self, index: u8, log: u8, page: u8) {
        let at = u32::from(page) * 0x1000;
        for (register, value) in [
            (0x30, u32::from(index % 4)),
            (0x38, 1 << (log % 10)),
            (0x80, at),
            (0x90, at + 0x400),
            (0xa0, at + 0x800),
            (0x44, 1),
        ] {
            self.write(register, value);
        }
    }

    fn check(&mut self) {
        let life = self.life.lock().expect("no panic in the device");
        assert_eq!(life.broken, None);
        let active = life.active;
        drop(life);
        let shown = self.read(0x70);
        assert_eq!(shown & !NEEDS_RESET, self.model.status, "the device status");
        assert!(!active || shown & DRIVER_OK != 0, "active without DRIVER_OK");
        // A driver that has set DRIVER_OK has a device, or is notified that it has none.
        assert!(active || shown & DRIVER_OK == 0 || shown & NEEDS_RESET != 0);
        assert_eq!((self.read(0), self.read(4), self.read(8)), (0x7472_6976, 2, 2));
    }
}
