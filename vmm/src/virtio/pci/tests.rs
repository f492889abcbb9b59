use std::sync::Mutex;

use virtio_queue::QueueT;
use volt_virtio::features::Features;

use super::*;
use crate::pci::msix::Message;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::testing::{REGION, memory};
use crate::virtio::{ActivateError, Activation, copy_config};

const BASE: u32 = 0xe000_8000;
const VRINGS: usize = 2;

/// Number, size and addresses of a vring.
type VringNote = (u16, u16, [u64; 3]);

/// The calls that a device received.
#[derive(Default)]
struct Log {
    activations: Vec<(Features, Vec<VringNote>)>,
    resets: usize,
    interrupt: Option<Arc<dyn Interrupt>>,
}

/// A device with two vrings that only records its calls.
struct Recorder(Arc<Mutex<Log>>);

impl VirtioDevice for Recorder {
    fn device_id(&self) -> u32 {
        1
    }

    fn label(&self) -> &str {
        "recorder"
    }

    fn features(&self) -> Features {
        Features::VERSION_1.union(Features::NET_MAC)
    }

    fn vring_sizes(&self) -> &[u16] {
        &[256, 64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&[1, 2, 3, 4, 5, 6], offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut log = self.0.lock().unwrap();
        let vrings = activation.vrings.iter().map(|vring| {
            let queue = &vring.queue;
            (vring.index, queue.size(), [queue.desc_table(), queue.avail_ring(), queue.used_ring()])
        });
        log.activations.push((activation.features, vrings.collect()));
        log.interrupt = Some(activation.interrupt);
        Ok(())
    }

    fn reset(&mut self) {
        self.0.lock().unwrap().resets += 1;
    }
}

/// A driver of the function alone, like Linux's. It uses the widths that the specification allows.
struct Driver {
    function: PciTransport,
    log: Arc<Mutex<Log>>,
}

impl Driver {
    fn new() -> Driver {
        let log = Arc::new(Mutex::new(Log::default()));
        let device = Box::new(Recorder(Arc::clone(&log)));
        let mut function = PciTransport::unconnected(device, memory(), BASE).unwrap();
        function.write_config(4, &[6, 0]);
        Driver { function, log }
    }

    fn read<const N: usize>(&mut self, offset: u32) -> [u8; N] {
        let mut data = [0; N];
        BusDevice::read(&mut self.function, offset.into(), &mut data);
        data
    }

    fn read_16(&mut self, offset: u32) -> u16 {
        u16::from_le_bytes(self.read(offset))
    }

    fn read_32(&mut self, offset: u32) -> u32 {
        u32::from_le_bytes(self.read(offset))
    }

    fn write(&mut self, offset: u32, data: &[u8]) {
        BusDevice::write(&mut self.function, offset.into(), data);
    }

    fn write_16(&mut self, offset: u32, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    fn write_32(&mut self, offset: u32, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    fn config<const N: usize>(&mut self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_config(offset, &mut data);
        data
    }

    /// Returns the offset of the capability with this number, and with `kind` of that one among virtio's.
    fn capability(&mut self, id: u8, kind: Option<u8>) -> u16 {
        let [mut at] = self.config(0x34);
        while at != 0 {
            let [found, next, _, found_kind] = self.config(at.into());
            if found == id && kind.is_none_or(|kind| kind == found_kind) {
                return at.into();
            }
            at = next;
        }
        panic!("no capability {id:#x} {kind:?}");
    }

    /// Goes from a reset to FEATURES_OK.
    fn negotiate(&mut self, features: Features) -> u8 {
        for status in [0, 1, 3] {
            self.write(0x14, &[status]);
        }
        for half in [0, 1] {
            self.write_32(0x08, half);
            self.write_32(0x0c, (features.bits() >> (32 * half)) as u32);
        }
        self.write(0x14, &[11]);
        self.status()
    }

    fn status(&mut self) -> u8 {
        self.read::<1>(0x14)[0]
    }

    fn add_vring(&mut self, index: u16, size: u16, at: u64) {
        self.write_16(0x16, index);
        self.write_16(0x18, size);
        for (field, address) in [(0x20, at), (0x28, at + 0x4000), (0x30, at + 0x8000)] {
            self.write_32(field, address as u32);
            self.write_32(field + 4, (address >> 32) as u32);
        }
        self.write_16(0x1c, 1);
    }

    fn start(&mut self) -> u8 {
        self.write(0x14, &[15]);
        self.status()
    }

    /// Chooses `vector` for a vring, or for the configuration. Returns the device's answer.
    fn set_vector(&mut self, vring: Option<u16>, vector: u16) -> u16 {
        if let Some(vring) = vring {
            self.write_16(0x16, vring);
        }
        let field = if vring.is_some() { 0x1a } else { 0x10 };
        self.write_16(field, vector);
        self.read_16(field)
    }

    fn set_msix_control(&mut self, control: u16) {
        let at = self.capability(0x11, None);
        self.function.write_config(at + 2, &control.to_le_bytes());
    }

    fn set_message(&mut self, vector: u32, message: Message, control: u32) {
        let entry = TABLE + 16 * vector;
        self.write_32(entry, message.address as u32);
        self.write_32(entry + 4, (message.address >> 32) as u32);
        self.write_32(entry + 8, message.data);
        self.write_32(entry + 12, control);
    }

    fn messages(&self) -> Vec<Option<Message>> {
        self.function.sources.iter().map(|source| source.line.message()).collect()
    }
}

const ENABLE: u16 = 1 << 15;
const MASK_ALL: u16 = 1 << 14;

fn message(data: u32) -> Message {
    Message { address: 0xfee0_0000, data }
}

#[test]
fn a_driver_finds_every_structure_by_its_capability() {
    let mut driver = Driver::new();
    assert_eq!(u32::from_le_bytes(driver.config(0)), 0x1041_1af4);
    assert_eq!(u32::from_le_bytes(driver.config(8)), 0x0200_0001);
    assert_eq!(driver.config(0x3d), [0], "no interrupt pin");
    for (kind, offset, len) in [(1, COMMON, 0x40), (2, NOTIFY, 8), (3, ISR, 1), (4, DEVICE, 0x1000)] {
        let at = driver.capability(9, Some(kind));
        assert_eq!(driver.config::<1>(at + 4), [0], "BAR 0");
        assert_eq!(u32::from_le_bytes(driver.config(at + 8)), offset);
        assert_eq!(u32::from_le_bytes(driver.config(at + 12)), len);
        assert!(offset + len <= PCI_BAR_SIZE);
    }
    let notify = driver.capability(9, Some(2));
    assert_eq!(u32::from_le_bytes(driver.config(notify + 16)), NOTIFY_MULTIPLIER);
    let msix = driver.capability(0x11, None);
    assert_eq!(u16::from_le_bytes(driver.config(msix + 2)), 2, "three vectors");
    assert_eq!(u32::from_le_bytes(driver.config(msix + 4)), TABLE);
    assert_eq!(u32::from_le_bytes(driver.config(msix + 8)), PENDING);
    // The table and pending bits of the largest device fit.
    assert!(16 * (MAX_VRINGS as u32 + 1) <= STRUCTURE && NOTIFY_MULTIPLIER * MAX_VRINGS as u32 <= STRUCTURE);
    assert_eq!(driver.read::<8>(DEVICE), [1, 2, 3, 4, 5, 6, 0, 0]);
}

#[test]
fn a_driver_starts_and_resets_as_often_as_it_likes() {
    let mut driver = Driver::new();
    let high = 2 * REGION;
    for _ in 0..3 {
        assert_eq!(driver.read_16(0x12), 2);
        assert_eq!(driver.negotiate(Features::VERSION_1), 11);
        driver.write_16(0x16, 1);
        assert_eq!(
            (driver.read_16(0x18), driver.read_16(0x1e)),
            (64, 1),
            "the largest size, its notification"
        );
        driver.add_vring(1, 32, high);
        driver.add_vring(0, 16, 0x1_0000);
        assert_eq!(driver.start(), 15);
        assert_eq!((driver.read_16(0x1c), driver.read_32(0x28)), (1, 0x1_4000));
        driver.write_16(0x18, 8);
        driver.write_16(0x1c, 0);
        assert_eq!(
            (driver.read_16(0x18), driver.read_16(0x1c)),
            (16, 1),
            "nothing of it changes while it runs"
        );
    }
    let vrings = vec![(0, 16, [0x1_0000, 0x1_4000, 0x1_8000]), (1, 32, [high, high + 0x4000, high + 0x8000])];
    assert_eq!(driver.log.lock().unwrap().activations, vec![(Features::VERSION_1, vrings); 3]);
    driver.write(0x14, &[0]);
    assert_eq!((driver.status(), driver.read_16(0x1c), driver.read_16(0x18)), (0, 0, 256));
}

#[test]
fn vrings_that_are_not_there_are_not_there() {
    let mut driver = Driver::new();
    driver.negotiate(Features::VERSION_1);
    for absent in [2, 255, u16::MAX] {
        driver.add_vring(absent, 16, 0x1_0000);
        assert_eq!((driver.read_16(0x18), driver.read_16(0x1c), driver.read_32(0x20)), (0, 0, 0));
        assert_eq!(driver.set_vector(Some(absent), 0), NO_VECTOR);
    }
    driver.start();
    assert_eq!(driver.log.lock().unwrap().activations, [(Features::VERSION_1, vec![])]);
}

/// The access for a driver that cannot map a BAR.
#[test]
fn the_bar_is_reached_by_the_configuration_space() {
    let mut driver = Driver::new();
    driver.function.write_config(4, &[0, 0]);
    assert_eq!(driver.read_32(0x12), u32::MAX, "the BAR does not answer");
    let cap = driver.capability(9, Some(5));
    driver.function.write_config(cap + 8, &0x14u32.to_le_bytes());
    driver.function.write_config(cap + 12, &1u32.to_le_bytes());
    driver.function.write_config(cap + 16, &[1]);
    assert_eq!(driver.config::<1>(cap + 16), [1]);
    driver.function.write_config(cap + 12, &2u32.to_le_bytes());
    driver.function.write_config(cap + 8, &0x12u32.to_le_bytes());
    assert_eq!(driver.config::<2>(cap + 16), [2, 0]);
    driver.function.write_config(cap + 8, &(NOTIFY + 4).to_le_bytes());
    driver.function.write_config(cap + 16, &[1, 0]);
    assert_eq!(driver.function.registers.kicks[1].read().unwrap(), 1);
    // No access: misaligned, after the end, too wide, or another BAR.
    for (bar, offset, len) in [(0u8, 0x11, 2u32), (0, PCI_BAR_SIZE, 4), (0, 0x14, 8), (0, 0, 0), (1, 0x14, 1)]
    {
        driver.function.write_config(cap + 4, &[bar]);
        driver.function.write_config(cap + 8, &offset.to_le_bytes());
        driver.function.write_config(cap + 12, &len.to_le_bytes());
        driver.function.write_config(cap + 16, &[0; 4]);
    }
    driver.function.write_config(4, &[2, 0]);
    assert_eq!(driver.status(), 1, "none of them was a reset");
}

#[test]
fn a_vring_is_notified_at_its_address() {
    let mut driver = Driver::new();
    driver.write_16(NOTIFY + 4, 0);
    driver.write_16(NOTIFY + 8, 1);
    assert!(driver.function.registers.kicks[0].read().is_err());
    assert_eq!(driver.function.registers.kicks[1].read().unwrap(), 1);
}

/// Any write of a guest, of any width and in any state, causes no panic.
#[test]
fn any_access_is_survived() {
    let mut driver = Driver::new();
    let structures = [COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING, PCI_BAR_SIZE].map(u64::from);
    for start in [false, true] {
        for around in structures {
            for offset in (around.saturating_sub(4)..around + 0x48).chain([u64::MAX]) {
                for width in [1, 2, 3, 4, 8, 16] {
                    for fill in [0x00, 0x01, 0x0f, 0x80, 0xff] {
                        let mut data = vec![fill; width];
                        driver.function.write_config(4, &[6, 0]);
                        BusDevice::write(&mut driver.function, offset, &data);
                        BusDevice::read(&mut driver.function, offset, &mut data);
                        let place = offset as u16;
                        driver.function.write_config(place, &data);
                        driver.function.read_config(place, &mut data);
                    }
                }
            }
        }
        driver.function.write_config(4, &[6, 0]);
        assert_eq!(driver.negotiate(Features::VERSION_1), 11);
        if start {
            driver.add_vring(0, 16, 0x1_0000);
            assert_eq!(driver.start(), 15);
        }
    }
    assert_eq!(driver.function.sources.len(), VRINGS + 1);
}

mod interrupts;
mod kvm;
