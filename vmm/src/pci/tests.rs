use super::*;

fn bus() -> PciBus {
    let mut bus = PciBus::default();
    let identity =
        Identity { vendor: 0x1af4, device: 0x1041, revision: 1, class: 0x02_0000, subsystem: [1, 2] };
    bus.insert(1, Arc::new(Mutex::new(ConfigSpace::new(identity))));
    bus
}

/// What stands at `address`, as a driver reads it.
fn config(bus: &mut PciBus, address: u32) -> u32 {
    let mut data = [0; 4];
    bus.write(0, &(ENABLE | address).to_le_bytes());
    bus.read(4, &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn functions_are_found_by_their_number_and_all_others_read_as_ones() {
    let mut bus = bus();
    assert_eq!(config(&mut bus, 0), 0x0008_1b36);
    assert_eq!(config(&mut bus, 8), 0x0600_0000, "a host bridge");
    assert_eq!(config(&mut bus, 1 << 11), 0x1041_1af4);
    for absent in [2 << 11, 31 << 11, 1 << 11 | 1 << 8, 1 << 16, 0xff << 16] {
        assert_eq!(config(&mut bus, absent), u32::MAX, "{absent:#x}");
    }
    bus.write(0, &0u32.to_le_bytes());
    let mut data = [0; 4];
    bus.read(4, &mut data);
    assert_eq!(data, [0xff; 4], "not enabled");
}

/// Functions come and go in any order; the host bridge stays.
#[test]
fn slots_are_filled_and_emptied() {
    let mut bus = bus();
    let function =
        |device| Identity { vendor: 0x1af4, device, revision: 1, class: 0x02_0000, subsystem: [1, 2] };
    for slot in 2..SLOTS {
        bus.insert(slot, Arc::new(Mutex::new(ConfigSpace::new(function(slot as u16)))));
    }
    assert_eq!(config(&mut bus, 31 << 11), 0x001f_1af4);
    for slot in [31, 7, 1] {
        bus.remove(slot);
        bus.remove(slot);
        assert_eq!(config(&mut bus, (slot as u32) << 11), u32::MAX);
    }
    bus.write(4, &[0xff; 4]);
    bus.remove(SLOTS);
    bus.remove(usize::MAX);
    assert_eq!(config(&mut bus, 0), 0x0008_1b36);
}

/// A kernel looks for mechanism #1 so: a byte at the last port changes nothing, and the address reads back.
#[test]
fn the_address_reads_back_and_narrow_writes_do_not_reach_it() {
    let mut bus = bus();
    bus.write(0, &ENABLE.to_le_bytes());
    bus.write(3, &[1]);
    let mut data = [0; 4];
    bus.read(0, &mut data);
    assert_eq!(u32::from_le_bytes(data), ENABLE);
}

#[test]
fn parts_of_a_register_are_read_alone() {
    let mut bus = bus();
    bus.write(0, &(ENABLE | 1 << 11).to_le_bytes());
    let mut data = [0; 2];
    bus.read(6, &mut data);
    assert_eq!(u16::from_le_bytes(data), 0x1041);
    let mut data = [0];
    bus.read(5, &mut data);
    assert_eq!(data, [0x1a]);
}

/// Whatever a guest writes and reads at the ports, of whatever width: no panic, and nothing outside of the ports' range.
#[test]
fn any_access_is_survived() {
    let mut bus = bus();
    for address in [0, ENABLE, ENABLE | 1 << 11 | 0xfc, u32::MAX] {
        for offset in (0..9).chain([u64::MAX]) {
            for width in [0, 1, 2, 3, 4, 8, 16] {
                bus.write(0, &address.to_le_bytes());
                let mut data = vec![0xa5; width];
                bus.read(offset, &mut data);
                bus.write(offset, &data);
            }
        }
    }
    assert_eq!(config(&mut bus, 1 << 11), 0x1041_1af4);
}
