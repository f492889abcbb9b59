//! Hot-plug of the bus's slots by ACPI: what tells the guest that a slot was filled or is wanted back, and where it says that it
//! gives one back.
//!
//! The registers are this machine's own; the AML of [`boot::acpi`](crate::boot::acpi) is their only driver. Whoever fills a slot
//! calls [`HotplugEvents::plugged`], whoever wants it back [`HotplugEvents::eject`]; both raise the interrupt of the event
//! device, whose method reads what happened and notifies the slots (ACPI 6.5, 5.6.6: device check, eject request). The
//! guest takes its drivers off and evaluates the slot's `_EJ0` (6.3.3), which writes the register that ends in the
//! function given to [`HotplugRegisters::new`].
//!
//! | offset | access | 32 bits, one for each slot |
//! |---:|---|---|
//! | 0 | read | slots filled since the last read |
//! | 4 | read | slots wanted back since the last read |
//! | 8 | write | slots that the guest gives back |

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::pci::SLOTS;

/// Number of the registers' ports.
pub const SIZE: u16 = 12;

const PLUGGED: u64 = 0;
const WANTED: u64 = 4;
const EJECTED: u64 = 8;

// A bit for each slot.
const _: () = assert!(SLOTS == u32::BITS as usize);

/// What the guest has not yet been told.
pub struct HotplugEvents {
    plugged: AtomicU32,
    wanted: AtomicU32,
    irqfd: EventFd,
}

impl HotplugEvents {
    /// Nothing to tell; `irqfd` is the interrupt of the event device.
    pub fn new(irqfd: EventFd) -> HotplugEvents {
        HotplugEvents { plugged: AtomicU32::new(0), wanted: AtomicU32::new(0), irqfd }
    }

    /// Tells that `slot` was filled.
    pub fn plugged(&self, slot: usize) {
        self.raise(&self.plugged, slot);
    }

    /// Asks for `slot`, once more if that was done before.
    pub fn eject(&self, slot: usize) {
        self.raise(&self.wanted, slot);
    }

    /// Forgets what was not yet told of `slot`: it is empty.
    fn forget(&self, slot: usize) {
        for events in [&self.plugged, &self.wanted] {
            events.fetch_and(!bit(slot), Ordering::AcqRel);
        }
    }

    fn raise(&self, events: &AtomicU32, slot: usize) {
        events.fetch_or(bit(slot), Ordering::AcqRel);
        // Fails only when the counter is full, and then the interrupt is raised already.
        let _ = self.irqfd.write(1);
    }
}

fn bit(slot: usize) -> u32 {
    debug_assert!(slot < SLOTS, "slots come from the bus");
    1 << (slot % SLOTS)
}

/// Empties a slot that the guest gives back, if there is something in it. Called on a vCPU's thread.
pub type Eject = Box<dyn FnMut(usize) + Send>;

/// The registers at [`HOTPLUG_PORTS`](crate::layout::HOTPLUG_PORTS).
pub struct HotplugRegisters {
    events: Arc<HotplugEvents>,
    eject: Eject,
}

impl HotplugRegisters {
    /// Registers that tell `events`.
    pub fn new(events: Arc<HotplugEvents>, eject: Eject) -> HotplugRegisters {
        HotplugRegisters { events, eject }
    }
}

impl BusDevice for HotplugRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // By its whole width only, so that no part of an event is lost.
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = match offset {
                PLUGGED => self.events.plugged.swap(0, Ordering::AcqRel),
                WANTED => self.events.wanted.swap(0, Ordering::AcqRel),
                _ => 0,
            }
            .to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (EJECTED, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) else { return };
        let slots = u32::from_le_bytes(data);
        for slot in (0..SLOTS).filter(|slot| slots & bit(*slot) != 0) {
            self.events.forget(slot);
            (self.eject)(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    struct Rig {
        events: Arc<HotplugEvents>,
        irqfd: EventFd,
        registers: HotplugRegisters,
        ejected: Arc<Mutex<Vec<usize>>>,
    }

    impl Rig {
        fn new() -> Rig {
            let irqfd = EventFd::new(EFD_NONBLOCK).unwrap();
            let events = Arc::new(HotplugEvents::new(irqfd.try_clone().unwrap()));
            let ejected = Arc::new(Mutex::new(Vec::new()));
            let list = ejected.clone();
            let eject = Box::new(move |slot| list.lock().unwrap().push(slot));
            let registers = HotplugRegisters::new(events.clone(), eject);
            Rig { events, irqfd, registers, ejected }
        }

        fn read(&mut self, offset: u64) -> u32 {
            let mut data = [0xee; 4];
            self.registers.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn ejected(&self) -> Vec<usize> {
            std::mem::take(&mut self.ejected.lock().unwrap())
        }
    }

    #[test]
    fn each_event_interrupts_and_is_read_once() {
        let mut rig = Rig::new();
        assert_eq!((rig.read(0), rig.read(4), rig.read(8)), (0, 0, 0));
        rig.events.plugged(1);
        rig.events.plugged(31);
        rig.events.eject(3);
        assert_eq!(rig.irqfd.read().unwrap(), 3);
        assert_eq!((rig.read(0), rig.read(4)), (1 << 31 | 2, 8));
        assert_eq!((rig.read(0), rig.read(4)), (0, 0));
        rig.events.eject(3);
        assert_eq!(rig.irqfd.read().unwrap(), 1, "what is asked again is asked again");
        assert_eq!(rig.read(4), 8);
    }

    #[test]
    fn ejected_slots_are_given_back_and_nothing_more_is_told_of_them() {
        let mut rig = Rig::new();
        rig.events.plugged(5);
        rig.events.eject(5);
        rig.events.eject(6);
        rig.registers.write(8, &(1u32 << 5 | 1 << 31).to_le_bytes());
        assert_eq!(rig.ejected(), [5, 31]);
        assert_eq!((rig.read(0), rig.read(4)), (0, 1 << 6));
    }

    /// Whatever a guest reads and writes, of whatever width: no panic, no event is lost in part, and only a whole write to the
    /// one register ejects.
    #[test]
    fn any_access_is_survived() {
        let mut rig = Rig::new();
        rig.events.plugged(2);
        for offset in (0..13).chain([u64::MAX]) {
            for width in [0, 1, 2, 3, 5, 8, 16] {
                let mut data = vec![0xff; width];
                rig.registers.write(offset, &data);
                rig.registers.read(offset, &mut data);
                assert!(data.iter().all(|byte| *byte == 0));
            }
            if offset != 8 {
                rig.registers.write(offset, &[0xff; 4]);
            }
        }
        assert!(rig.ejected().is_empty());
        assert_eq!(rig.read(0), 4);
        rig.registers.write(8, &[0xff; 4]);
        assert_eq!(rig.ejected(), (0..SLOTS).collect::<Vec<_>>());
    }
}
