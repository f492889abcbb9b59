//! COM1: a 16550 (vm-superio) between the guest and this process's console.
//!
//! Each byte of output goes to a bounded buffer, the [`Output`], which a separate thread empties. So no vCPU
//! waits for a reader. While the buffer is full and its reader makes progress, the guest sees a busy
//! transmitter. Input comes from the [console](crate::console) through [`Uart::feed`], which takes no more
//! than the FIFO holds. When there is room again in either direction, an eventfd notifies the console.

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
/// IER: "received data available".
const IER_RECEIVED: u8 = 1;
/// IER: "transmitter holding register empty".
const IER_THRE: u8 = 2;
/// Line control register.
const LCR: u8 = 3;
/// LCR: divisor latch access bit. While it is set, THR and IER have another meaning.
const LCR_DLAB: u8 = 1 << 7;
/// Modem control register, with the loop-back bit.
const MCR: u8 = 4;
/// Line status register.
const LSR: u8 = 5;
/// LSR: holding register empty, and transmitter idle.
const LSR_EMPTY: u8 = 0x60;

/// COM1 as a device on the bus.
pub struct Uart {
    serial: Serial<Irq, Arc<Room>, Output>,
    /// The guest's interrupt enable register. The model's register lacks the transmitter's bit while the
    /// transmitter is busy, because the model's transmitter never is. Setting the bit again raises the
    /// interrupt.
    ier: u8,
    busy: bool,
}

impl Uart {
    /// Creates a UART that writes to `output`, raises `irqfd`, and notifies `room` when it accepts input
    /// again.
    pub fn new(irqfd: EventFd, room: Arc<Room>, output: Output) -> Uart {
        Uart { serial: Serial::with_events(Irq(irqfd), room, output), ier: 0, busy: false }
    }

    /// Passes as much of `input` to the guest as it can take now. Returns the number of bytes.
    ///
    /// If bytes are left, [`Room::event`] is written when a new attempt makes sense. A guest that has not
    /// opened the port (its receive interrupt is off) gets nothing, because its driver would drop it.
    pub fn feed(&mut self, input: &[u8]) -> usize {
        let open = self.serial.state().interrupt_enable & IER_RECEIVED != 0;
        let taken = if open { self.serial.enqueue_raw_bytes(input).unwrap_or(0) } else { 0 };
        self.serial.events().wanted.store(taken < input.len(), Ordering::Relaxed);
        taken
    }

    /// Lets the guest write again if there is room now, or if nobody reads. Otherwise returns when to call
    /// this again, unless [`Room::event`] is written before.
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
        // Neither the interrupt line nor the output can fail.
        let _ = self.serial.write(register, value);
    }

    fn is_divisor(&mut self) -> bool {
        self.serial.read(LCR) & LCR_DLAB != 0
    }
}

impl BusDevice for Uart {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Several bytes belong to a string instruction. Each is a read of the same register.
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

/// Returns the register. The bus keeps offsets within the UART's eight ports.
fn register(offset: u64) -> u8 {
    (offset & 7) as u8
}

/// COM1's interrupt line, edge-triggered.
struct Irq(EventFd);

impl Trigger for Irq {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // Fails only if the counter is full, and then the interrupt is pending already.
        let _ = self.0.write(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
