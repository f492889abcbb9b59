//! Hot-plug of the bus's slots with ACPI: registers that tell the guest which slots were filled and which are
//! to be emptied, and a register with which it ejects slots.
//!
//! The registers are specific to this machine. Their only driver is the AML of
//! [`boot::acpi`](crate::boot::acpi). [`HotplugEvents::plugged`] reports a filled slot.
//! [`HotplugEvents::eject`] requests one back. Both raise the interrupt of the event device, whose method
//! reads the events and notifies the slots (ACPI 6.5, 5.6.6: device check, eject request). The guest detaches
//! its drivers and evaluates the slot's `_EJ0` (6.3.3). `_EJ0` writes the register that calls the function
//! given to [`HotplugRegisters::new`].
//!
//! | offset | access | 32 bits, one for each slot |
//! |---:|---|---|
//! | 0 | read | slots filled since the last read |
//! | 4 | read | slots requested back since the last read |
//! | 8 | write | slots that the guest ejects |
//!
//! The interrupt is a level: high as long as an event is unread.
//!
//! A guest keeps an eject request that it has read in its own queue. Nobody can take it back from there, and
//! it may still be there when the slot is empty and filled again. So volt-vmm counts the requests that were
//! read against those that were answered, and fills a slot with unanswered ones last
//! ([`HotplugEvents::is_settled`]).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::board::bus::BusDevice;
use crate::board::irq::LevelLine;
use crate::board::layout::PCI_SLOTS;

/// Number of the registers' ports.
pub const SIZE: u16 = 12;

const PLUGGED: u64 = 0;
const WANTED: u64 = 4;
const EJECTED: u64 = 8;

// A bit for each slot.
const _: () = assert!(PCI_SLOTS == u32::BITS as usize);

/// Events that the guest has not read or not answered.
pub struct HotplugEvents {
    state: Mutex<State>,
    line: LevelLine,
}

#[derive(Default)]
struct State {
    /// A bit for each slot.
    plugged: u32,
    wanted: u32,
    /// For each slot, the eject requests that the guest has read, minus those that it has answered.
    unanswered: [u32; PCI_SLOTS],
}

impl HotplugEvents {
    /// Creates the state without events. `line` is the interrupt of the event device.
    pub fn new(line: LevelLine) -> HotplugEvents {
        HotplugEvents { state: Mutex::default(), line }
    }

    /// Reports that `slot` was filled.
    pub fn plugged(&self, slot: usize) {
        self.change(|state| state.plugged |= bit(slot));
    }

    /// Requests `slot` back. Repeats an earlier request.
    pub fn eject(&self, slot: usize) {
        self.change(|state| state.wanted |= bit(slot));
    }

    /// Removes unread events of `slot`, which is empty. Must be called before the slot can be filled.
    pub fn forget(&self, slot: usize) {
        self.change(|state| {
            state.plugged &= !bit(slot);
            state.wanted &= !bit(slot);
        });
    }

    /// Returns whether the guest has answered each eject request of `slot` that it has read.
    pub fn is_settled(&self, slot: usize) -> bool {
        self.state().unanswered[slot % PCI_SLOTS] == 0
    }

    fn take_plugged(&self) -> u32 {
        self.change(|state| std::mem::take(&mut state.plugged))
    }

    fn take_wanted(&self) -> u32 {
        self.change(|state| {
            let wanted = std::mem::take(&mut state.wanted);
            for slot in (0..PCI_SLOTS).filter(|slot| wanted & bit(*slot) != 0) {
                state.unanswered[slot] = state.unanswered[slot].saturating_add(1);
            }
            wanted
        })
    }

    /// Records that the guest ejected `slot`. It does so for each request, even if the slot is empty.
    fn answered(&self, slot: usize) {
        let mut state = self.state();
        state.unanswered[slot] = state.unanswered[slot].saturating_sub(1);
    }

    /// Changes the events, and sets the level accordingly.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let before = state.has_news();
        let result = change(&mut state);
        if state.has_news() != before {
            self.line.set(!before);
        }
        result
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn has_news(&self) -> bool {
        self.plugged | self.wanted != 0
    }
}

fn bit(slot: usize) -> u32 {
    debug_assert!(slot < PCI_SLOTS, "slots come from the bus");
    1 << (slot % PCI_SLOTS)
}

/// Empties a slot that the guest ejects, if it has a device. Called on a vCPU's thread.
pub type Eject = Box<dyn FnMut(usize) + Send>;

/// The registers at [`HOTPLUG_PORTS`](crate::board::layout::HOTPLUG_PORTS).
pub struct HotplugRegisters {
    events: Arc<HotplugEvents>,
    eject: Eject,
}

impl HotplugRegisters {
    /// Creates registers for `events`.
    pub fn new(events: Arc<HotplugEvents>, eject: Eject) -> HotplugRegisters {
        HotplugRegisters { events, eject }
    }
}

impl BusDevice for HotplugRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Only with the full width, so that no part of an event is lost.
        if let Ok(data) = <&mut [u8; 4]>::try_from(data) {
            *data = match offset {
                PLUGGED => self.events.take_plugged(),
                WANTED => self.events.take_wanted(),
                _ => 0,
            }
            .to_le_bytes();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (EJECTED, Ok(data)) = (offset, <[u8; 4]>::try_from(data)) else { return };
        let slots = u32::from_le_bytes(data);
        for slot in (0..PCI_SLOTS).filter(|slot| slots & bit(*slot) != 0) {
            self.events.answered(slot);
            (self.eject)(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    struct Rig {
        events: Arc<HotplugEvents>,
        level: Arc<AtomicBool>,
        registers: HotplugRegisters,
        ejected: Arc<Mutex<Vec<usize>>>,
    }

    impl Rig {
        fn new() -> Rig {
            let level = Arc::<AtomicBool>::default();
            let pin = level.clone();
            let line = LevelLine::new(move |high| pin.store(high, Ordering::SeqCst));
            let events = Arc::new(HotplugEvents::new(line));
            let ejected = Arc::new(Mutex::new(Vec::new()));
            let list = ejected.clone();
            let eject = Box::new(move |slot| list.lock().unwrap().push(slot));
            let registers = HotplugRegisters::new(events.clone(), eject);
            Rig { events, level, registers, ejected }
        }

        fn read(&mut self, offset: u64) -> u32 {
            let mut data = [0xee; 4];
            self.registers.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn is_high(&self) -> bool {
            self.level.load(Ordering::SeqCst)
        }

        fn ejected(&self) -> Vec<usize> {
            std::mem::take(&mut self.ejected.lock().unwrap())
        }
    }

    /// The pin is high exactly as long as an event is unread.
    #[test]
    fn each_event_interrupts_and_is_read_once() {
        let mut rig = Rig::new();
        assert_eq!((rig.read(0), rig.read(4), rig.read(8)), (0, 0, 0));
        assert!(!rig.is_high());
        rig.events.plugged(1);
        rig.events.plugged(31);
        rig.events.eject(3);
        assert!(rig.is_high());
        assert_eq!(rig.read(0), 1 << 31 | 2);
        assert!(rig.is_high());
        assert_eq!(rig.read(4), 8);
        assert!(!rig.is_high());
        assert_eq!((rig.read(0), rig.read(4)), (0, 0));
        rig.events.eject(3);
        assert!(rig.is_high());
        assert_eq!(rig.read(4), 8, "what is asked again is asked again");
        rig.events.plugged(4);
        rig.events.eject(4);
        rig.events.forget(4);
        assert!(!rig.is_high());
        assert_eq!((rig.read(0), rig.read(4)), (0, 0));
    }

    /// The guest answers each request that it has read, even of an empty slot. It never answers one that it
    /// has not read.
    #[test]
    fn a_slot_is_settled_when_all_requests_are_answered() {
        let mut rig = Rig::new();
        for _ in 0..3 {
            rig.events.eject(5);
            rig.events.eject(5);
            assert_eq!(rig.read(4), 1 << 5);
        }
        rig.events.eject(6);
        rig.events.forget(6);
        rig.read(4);
        for left in [true, true, false] {
            assert!(rig.events.is_settled(6) && !rig.events.is_settled(5));
            rig.registers.write(8, &(1u32 << 5 | 1 << 31).to_le_bytes());
            assert_eq!(rig.ejected(), [5, 31]);
            assert_eq!(rig.events.is_settled(5), !left);
        }
        rig.registers.write(8, &(1u32 << 5).to_le_bytes());
        assert!(rig.events.is_settled(5) && rig.events.is_settled(31));
    }

    /// Any access of a guest, of any width, causes no panic. No event is lost in part. Only a full write to
    /// the one register ejects.
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
        assert_eq!(rig.ejected(), (0..PCI_SLOTS).collect::<Vec<_>>());
    }
}
