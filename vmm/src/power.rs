//! The registers by which a guest resets or powers off the machine, and the button by which it is asked to.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::exit::{ExitEvent, ExitReason};
use crate::layout::{RESET_REG, RESET_VALUE, SLEEP_CONTROL, SLEEP_STATUS, SLEEP_TYPE_S5};

/// `SLP_EN` of the sleep control register (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;

/// Reset register, sleep control and sleep status register as the FADT places them.
pub struct PowerRegisters {
    exit: Arc<ExitEvent>,
}

impl PowerRegisters {
    /// Number of ports, from [`RESET_REG`] on.
    pub const SIZE: u16 = SLEEP_STATUS - RESET_REG + 1;

    /// Registers that report to `exit`.
    pub fn new(exit: Arc<ExitEvent>) -> PowerRegisters {
        PowerRegisters { exit }
    }
}

impl BusDevice for PowerRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        if offset == 0 && value == RESET_VALUE {
            self.exit.request(ExitReason::Reset("the ACPI reset register"));
        } else if offset == u64::from(SLEEP_CONTROL - RESET_REG)
            && value & SLEEP_ENABLE != 0
            && value >> 2 & 7 == SLEEP_TYPE_S5
        {
            self.exit.request(ExitReason::PowerOff);
        }
    }
}

/// The power button. What comes of it is the guest's affair: its `button` driver makes a key press of it.
pub struct PowerButton {
    irqfd: EventFd,
}

impl PowerButton {
    /// A button behind `irqfd`, the interrupt of the DSDT's event device (ACPI 6.5, 5.6.9).
    pub fn new(irqfd: EventFd) -> PowerButton {
        PowerButton { irqfd }
    }

    /// Presses it.
    pub fn press(&self) {
        // Fails only when the counter is full, and then it is pressed already.
        let _ = self.irqfd.write(1);
    }
}

/// The command port of a keyboard controller, as far as resetting the processor goes.
pub struct KeyboardReset {
    exit: Arc<ExitEvent>,
}

impl KeyboardReset {
    /// "Pulse output port" with only the reset line low.
    const PULSE_RESET: u8 = 0xfe;

    /// A port that reports to `exit`.
    pub fn new(exit: Arc<ExitEvent>) -> KeyboardReset {
        KeyboardReset { exit }
    }
}

impl BusDevice for KeyboardReset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Status: nothing to read, ready for a command.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&Self::PULSE_RESET) {
            self.exit.request(ExitReason::Reset("the keyboard controller"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(offset: u64, value: u8) -> Option<u8> {
        let exit = Arc::new(ExitEvent::new().unwrap());
        PowerRegisters::new(Arc::clone(&exit)).write(offset, &[value]);
        exit.reason().map(ExitReason::status)
    }

    #[test]
    fn only_the_right_values_end_the_machine() {
        assert_eq!(after(0, RESET_VALUE), Some(3));
        assert_eq!(after(0, 0), None);
        assert_eq!(after(1, SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE), Some(0));
        assert_eq!(after(1, SLEEP_TYPE_S5 << 2), None, "SLP_EN is clear");
        assert_eq!(after(1, 3 << 2 | SLEEP_ENABLE), None, "another state");
        assert_eq!(after(2, 0xff), None, "the status register");
    }

    #[test]
    fn the_keyboard_controller_resets_by_one_command_only() {
        let exit = Arc::new(ExitEvent::new().unwrap());
        let mut port = KeyboardReset::new(Arc::clone(&exit));
        port.write(0, &[0xd1]);
        assert!(!exit.is_requested());
        port.write(0, &[0xfe]);
        assert!(exit.is_requested());
    }
}
