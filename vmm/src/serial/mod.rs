//! COM1: a 16550 (vm-superio) between the guest and this process's console.
//!
//! Output goes byte by byte to a bounded buffer, the [`Output`], which a thread of its own empties: no vCPU
//! waits for a reader. While the buffer is full the guest sees a busy transmitter, as long as somebody reads.
//! Input comes from the [console](crate::console) by [`Uart::feed`], which takes no more than the FIFO holds.
//! When there is room again in either direction, the console is told by an eventfd.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use vm_superio::serial::SerialEvents as _;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::board::bus::BusDevice;

mod output;
mod room;

pub use output::Output;
pub use room::Room;

/// Transmitter holding register.
const THR: u8 = 0;
/// Interrupt enable register.
const IER: u8 = 1;
/// Its "received data available" bit.
const IER_RECEIVED: u8 = 1;
/// Its "transmitter holding register empty" bit.
const IER_THRE: u8 = 2;
/// Line control register.
const LCR: u8 = 3;
/// Its divisor latch access bit: THR and IER are something else meanwhile.
const LCR_DLAB: u8 = 1 << 7;
/// Modem control register, which has the loop-back bit.
const MCR: u8 = 4;
/// Line status register.
const LSR: u8 = 5;
/// Its bits for an empty holding register and an idle transmitter.
const LSR_EMPTY: u8 = 0x60;

/// COM1 as the bus sees it.
pub struct Uart {
    serial: Serial<Irq, Arc<Room>, Output>,
    /// The guest's interrupt enable register. The model's lacks the transmitter's bit while that is busy,
    /// because the model's transmitter never is: switched on again, the interrupt comes.
    ier: u8,
    busy: bool,
}

impl Uart {
    /// A UART that writes to `output`, raises `irqfd`, and tells `room` when it takes input again.
    pub fn new(irqfd: EventFd, room: Arc<Room>, output: Output) -> Uart {
        Uart { serial: Serial::with_events(Irq(irqfd), room, output), ier: 0, busy: false }
    }

    /// Gives the guest as much of `input` as it can take now, and returns how many bytes that were.
    ///
    /// When something is left, [`Room::event`] is written as soon as it is worth trying again. A guest that
    /// has not opened the port (its receive interrupt is off) gets nothing: its driver would throw it away.
    pub fn feed(&mut self, input: &[u8]) -> usize {
        let open = self.serial.state().interrupt_enable & IER_RECEIVED != 0;
        let taken = if open { self.serial.enqueue_raw_bytes(input).unwrap_or(0) } else { 0 };
        self.serial.events().wanted.store(taken < input.len(), Ordering::Relaxed);
        taken
    }

    /// Lets the guest write again if there is room now, or if nobody reads. Otherwise returns when to call
    /// this again, if [`Room::event`] is not written before.
    pub fn serve_output(&mut self) -> Option<Instant> {
        let busy_until = self.busy.then(|| self.serial.writer().busy_until()).flatten();
        if self.busy && busy_until.is_none() {
            self.set_busy(false);
        }
        busy_until
    }

    fn set_busy(&mut self, busy: bool) {
        self.busy = busy;
        let ier = if busy { self.ier & !IER_THRE } else { self.ier };
        let lcr = self.serial.read(LCR);
        for (register, value) in [(LCR, lcr & !LCR_DLAB), (IER, ier), (LCR, lcr)] {
            self.write_register(register, value);
        }
    }

    fn write_register(&mut self, register: u8, value: u8) {
        // Neither the interrupt line nor the output has an error to tell.
        let _ = self.serial.write(register, value);
    }

    fn is_divisor(&mut self) -> bool {
        self.serial.read(LCR) & LCR_DLAB != 0
    }
}

impl BusDevice for Uart {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Several bytes are a string instruction's, each a read of the same register.
        let register = register(offset);
        data.fill_with(|| {
            if register == LSR {
                self.serve_output();
            }
            match self.serial.read(register) {
                status if register == LSR && self.busy => status & !LSR_EMPTY,
                _ if register == IER && !self.is_divisor() => self.ier,
                value => value,
            }
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let register = register(offset);
        for &byte in data {
            let is_divisor = self.is_divisor();
            if register == IER && !is_divisor {
                self.ier = byte & 0xf;
                self.set_busy(self.busy);
                continue;
            }
            if register == THR && !is_divisor && !self.busy && self.serial.writer().fills() {
                self.set_busy(true);
            }
            self.write_register(register, byte);
        }
        if matches!(register, IER | MCR) {
            self.serial.events().in_buffer_empty();
        }
    }
}

/// The bus keeps offsets within the UART's eight ports.
fn register(offset: u64) -> u8 {
    (offset & 7) as u8
}

/// COM1's interrupt line, edge-triggered.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // Fails only when the counter is full, and then the interrupt is pending already.
        let _ = self.0.write(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
