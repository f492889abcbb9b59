use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::virtio::testing::eventually;

fn ports() -> ConfigPorts {
    let bus = PciBus::default();
    let identity =
        Identity { vendor: 0x1af4, device: 0x1041, revision: 1, class: 0x02_0000, subsystem: [1, 2] };
    bus.insert(1, Arc::new(Mutex::new(ConfigSpace::new(identity))));
    ConfigPorts::new(Arc::new(bus))
}

/// Returns the register at `address`, like a driver.
fn config(ports: &mut ConfigPorts, address: u32) -> u32 {
    let mut data = [0; 4];
    ports.write(0, &(ENABLE | address).to_le_bytes());
    ports.read(4, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn functions_are_found_by_their_number_and_all_others_read_as_ones() {
    let mut ports = ports();
    assert_eq!(config(&mut ports, 0), 0x0008_1b36);
    assert_eq!(config(&mut ports, 8), 0x0600_0000, "a host bridge");
    assert_eq!(config(&mut ports, 1 << 11), 0x1041_1af4);
    for absent in [2 << 11, 31 << 11, 1 << 11 | 1 << 8, 1 << 16, 0xff << 16] {
        assert_eq!(config(&mut ports, absent), u32::MAX, "{absent:#x}");
    }
    ports.write(0, &0u32.to_le_bytes());
    let mut data = [0; 4];
    ports.read(4, &mut data);
    assert_eq!(data, [0xff; 4], "not enabled");
}

/// Functions are added and removed in any order. The host bridge stays.
#[test]
fn slots_are_filled_and_emptied() {
    let mut ports = ports();
    let function =
        |device| Identity { vendor: 0x1af4, device, revision: 1, class: 0x02_0000, subsystem: [1, 2] };
    for slot in 2..PCI_SLOTS {
        ports.bus.insert(slot, Arc::new(Mutex::new(ConfigSpace::new(function(slot as u16)))));
    }
    assert_eq!(config(&mut ports, 31 << 11), 0x001f_1af4);
    for slot in [31, 7, 1] {
        ports.bus.remove(slot);
        ports.bus.remove(slot);
        assert_eq!(config(&mut ports, (slot as u32) << 11), u32::MAX);
    }
    ports.write(4, &[0xff; 4]);
    ports.bus.remove(PCI_SLOTS);
    ports.bus.remove(usize::MAX);
    assert_eq!(config(&mut ports, 0), 0x0008_1b36);
}

/// A kernel detects mechanism #1 like this: a byte at the last port changes nothing, and the address reads
/// back.
#[test]
fn the_address_reads_back_and_narrow_writes_do_not_reach_it() {
    let mut ports = ports();
    ports.write(0, &ENABLE.to_le_bytes());
    ports.write(3, &[1]);
    let mut data = [0; 4];
    ports.read(0, &mut data);
    assert_eq!(u32::from_le_bytes(data), ENABLE);
}

#[test]
fn parts_of_a_register_are_read_alone() {
    let mut ports = ports();
    ports.write(0, &(ENABLE | 1 << 11).to_le_bytes());
    let mut data = [0; 2];
    ports.read(6, &mut data);
    assert_eq!(u16::from_le_bytes(data), 0x1041);
    let mut data = [0];
    ports.read(5, &mut data);
    assert_eq!(data, [0x1a]);
}

/// Any access of a guest to the ports, of any width, causes no panic, and no access outside of the ports'
/// range.
#[test]
fn any_access_is_survived() {
    let mut ports = ports();
    for address in [0, ENABLE, ENABLE | 1 << 11 | 0xfc, u32::MAX] {
        for offset in (0..9).chain([u64::MAX]) {
            for width in [0, 1, 2, 3, 4, 8, 16] {
                ports.write(0, &address.to_le_bytes());
                let mut data = vec![0xa5; width];
                ports.read(offset, &mut data);
                ports.write(offset, &data);
            }
        }
    }
    assert_eq!(config(&mut ports, 1 << 11), 0x1041_1af4);
}

/// A function whose driver has just disabled bus mastering. Its reset takes long.
struct Slow {
    in_reset: Arc<AtomicBool>,
    hold: Arc<Mutex<()>>,
}

impl PciFunction for Slow {
    fn read_config(&mut self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u16, _data: &[u8]) {
        self.in_reset.store(true, Ordering::SeqCst);
        drop(self.hold.lock());
    }
}

/// A slow access does not delay adding another function, or removing one, even the slow one.
#[test]
fn a_slow_function_does_not_hold_the_bus() {
    let mut ports = ports();
    let (bus, in_reset, hold) = (ports.bus.clone(), Arc::<AtomicBool>::default(), Arc::default());
    bus.insert(2, Arc::new(Mutex::new(Slow { in_reset: in_reset.clone(), hold: Arc::clone(&hold) })));
    ports.write(0, &(ENABLE | 2 << 11 | 4).to_le_bytes());
    thread::scope(|scope| {
        let held = hold.lock().unwrap();
        let access = scope.spawn(|| ports.write(4, &[0, 0]));
        eventually("an access", || in_reset.load(Ordering::SeqCst));
        let other = scope.spawn(|| {
            bus.insert(3, Arc::new(Mutex::new(ConfigSpace::new(HOST_BRIDGE))));
            bus.remove(1);
            bus.remove(2);
        });
        eventually("a bus for others", || other.is_finished());
        assert!(!access.is_finished());
        drop(held);
    });
    let [gone, slow, added] = [1, 2, 3].map(|slot| config(&mut ports, slot << 11));
    assert_eq!((gone, slow, added), (u32::MAX, u32::MAX, 0x0008_1b36));
}
