//! The registers for reset and power-off, and the power button.

use std::sync::{Arc, Mutex, PoisonError};

use crate::board::bus::BusDevice;
use crate::board::exit::{ExitEvent, ExitReason};
use crate::board::irq::LevelLine;
use crate::board::layout::{BUTTON_STATUS, RESET_REG, RESET_VALUE, SLEEP_CONTROL, SLEEP_TYPE_S5};

/// `SLP_EN` of the sleep control register (ACPI 6.5, 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;

/// Reset register, sleep control and sleep status register at the FADT's addresses, followed by the button's
/// status at the DSDT's.
pub struct PowerRegisters {
    exit: Arc<ExitEvent>,
    button: Arc<PowerButton>,
}

impl PowerRegisters {
    /// Number of ports, from [`RESET_REG`] on.
    pub const SIZE: u16 = BUTTON_STATUS - RESET_REG + 1;

    /// Creates registers that report to `exit`, and show the state of `button`.
    pub fn new(exit: Arc<ExitEvent>, button: Arc<PowerButton>) -> PowerRegisters {
        PowerRegisters { exit, button }
    }
}

impl BusDevice for PowerRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (true, [status]) = (offset == u64::from(BUTTON_STATUS - RESET_REG), data) {
            *status = self.button.take().into();
        }
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

/// The power button. The guest decides what to do: its `button` driver turns a press into a key press.
pub struct PowerButton {
    pressed: Mutex<bool>,
    line: LevelLine,
}

impl PowerButton {
    /// Creates a button that raises `line`, the interrupt of the DSDT's event device (ACPI 6.5, 5.6.9).
    pub fn new(line: LevelLine) -> PowerButton {
        PowerButton { pressed: Mutex::new(false), line }
    }

    /// Presses the button. The press is kept until the guest reads it, however long the boot takes.
    pub fn press(&self) {
        self.set(true);
    }

    /// Returns whether the button was pressed since the last call.
    fn take(&self) -> bool {
        self.set(false)
    }

    fn set(&self, pressed: bool) -> bool {
        let mut state = self.pressed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *state, pressed);
        if before != pressed {
            self.line.set(pressed);
        }
        before
    }
}

/// The command port of a keyboard controller, reduced to the reset of the processor.
pub struct KeyboardReset {
    exit: Arc<ExitEvent>,
}

impl KeyboardReset {
    /// "Pulse output port" with only the reset line low.
    const PULSE_RESET: u8 = 0xfe;

    /// Creates a port that reports to `exit`.
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
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn after(offset: u64, value: u8) -> Option<u8> {
        let exit = Arc::new(ExitEvent::new().unwrap());
        let button = Arc::new(PowerButton::new(LevelLine::new(|_| {})));
        PowerRegisters::new(Arc::clone(&exit), button).write(offset, &[value]);
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

    /// The pin is high from the press until the status is read. The status shows the press once.
    #[test]
    fn a_press_stays_until_it_is_read() {
        let level = Arc::<AtomicBool>::default();
        let pin = level.clone();
        let line = LevelLine::new(move |high| pin.store(high, Ordering::SeqCst));
        let button = Arc::new(PowerButton::new(line));
        let mut registers = PowerRegisters::new(Arc::new(ExitEvent::new().unwrap()), button.clone());
        let mut status = || {
            let mut data = [0xee];
            registers.read(3, &mut data);
            data[0]
        };
        assert_eq!(status(), 0);
        for _ in 0..3 {
            button.press();
            button.press();
            assert!(level.load(Ordering::SeqCst));
            assert_eq!(status(), 1);
            assert!(!level.load(Ordering::SeqCst));
            assert_eq!(status(), 0);
        }
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
