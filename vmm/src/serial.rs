//! COM1: a 16550 (vm-superio) between the guest and this process's console.
//!
//! Output leaves on the vCPU's thread, byte by byte as the guest writes it. Input comes from the
//! [console](crate::console) by [`Uart::feed`], which takes no more than the FIFO holds; when there is room
//! again, the UART says so by an eventfd.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::warn;
use rustix::event::{PollFd, PollFlags, poll};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::exit::ExitEvent;

/// Interrupt enable register.
const IER: u8 = 1;
/// Its "received data available" bit.
const IER_RECEIVED: u8 = 1;
/// Modem control register, which has the loop-back bit.
const MCR: u8 = 4;

/// COM1 as the bus sees it.
pub struct Uart {
    serial: Serial<Irq, Arc<Room>, Output>,
    output_failed: bool,
}

impl Uart {
    /// A UART that writes to `output`, raises `irqfd`, and tells `room` when it takes input again.
    pub fn new(irqfd: EventFd, room: Arc<Room>, output: Output) -> Uart {
        Uart { serial: Serial::with_events(Irq(irqfd), room, output), output_failed: false }
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
}

impl BusDevice for Uart {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // Several bytes are a string instruction's, each a read of the same register.
        data.fill_with(|| self.serial.read(register(offset)));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let register = register(offset);
        for &byte in data {
            // The guest goes on without its output, as it would with the cable pulled.
            if let Err(error) = self.serial.write(register, byte)
                && !self.output_failed
            {
                self.output_failed = true;
                warn!("serial output is lost from now on: {error}");
            }
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

/// Tells the console that the guest takes input again.
pub struct Room {
    event: EventFd,
    wanted: AtomicBool,
}

impl Room {
    /// Nothing is wanted yet.
    ///
    /// # Errors
    ///
    /// When the process may open no more files.
    pub fn new() -> io::Result<Room> {
        Ok(Room { event: EventFd::new(EFD_NONBLOCK)?, wanted: AtomicBool::new(false) })
    }

    /// Readable when [`Uart::feed`] may be called again.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // The UART's lock orders this with `feed`.
        if self.wanted.swap(false, Ordering::Relaxed) {
            let _ = self.event.write(1);
        }
    }
}

/// Where the guest's output goes.
pub struct Output {
    fd: OwnedFd,
    exit: Arc<ExitEvent>,
}

impl Output {
    /// Output to `file`, given up when `exit` is requested.
    pub fn new(file: impl Into<OwnedFd>, exit: Arc<ExitEvent>) -> Output {
        Output { fd: file.into(), exit }
    }

    /// Output to this process's standard output.
    ///
    /// # Errors
    ///
    /// When standard output is closed.
    pub fn stdout(exit: Arc<ExitEvent>) -> io::Result<Output> {
        Ok(Output::new(io::stdout().as_fd().try_clone_to_owned()?, exit))
    }

    /// Output to the file at `path`, which is created or emptied.
    ///
    /// # Errors
    ///
    /// When it cannot be opened for writing.
    pub fn file(path: &std::path::Path, exit: Arc<ExitEvent>) -> io::Result<Output> {
        Ok(Output::new(File::create(path)?, exit))
    }
}

impl Write for Output {
    /// Waits for a reader who is slow, as a terminal may be, but not beyond the machine's end: the kick of
    /// the vCPU's thread interrupts the wait.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match rustix::io::write(&self.fd, bytes) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => return Ok(written),
                Err(rustix::io::Errno::INTR) if self.exit.is_requested() => {
                    return Err(io::Error::other("the machine ends"));
                }
                Err(rustix::io::Errno::INTR) => {}
                // Whoever shares this terminal or pipe made it non-blocking.
                Err(rustix::io::Errno::AGAIN) => {
                    let mut fds =
                        [PollFd::new(&self.fd, PollFlags::OUT), PollFd::new(&self.exit, PollFlags::IN)];
                    let _ = poll(&mut fds, None);
                    if self.exit.is_requested() {
                        return Err(io::Error::other("the machine ends"));
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    struct Rig {
        uart: Uart,
        room: Arc<Room>,
        reader: io::PipeReader,
        irq: EventFd,
    }

    fn rig() -> Rig {
        let (reader, writer) = io::pipe().unwrap();
        let room = Arc::new(Room::new().unwrap());
        let irq = EventFd::new(EFD_NONBLOCK).unwrap();
        let exit = Arc::new(ExitEvent::new().unwrap());
        let uart = Uart::new(irq.try_clone().unwrap(), Arc::clone(&room), Output::new(writer, exit));
        Rig { uart, room, reader, irq }
    }

    fn guest_reads(uart: &mut Uart) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut byte = [0];
        loop {
            uart.read(5, &mut byte);
            if byte[0] & 1 == 0 {
                return bytes;
            }
            uart.read(0, &mut byte);
            bytes.push(byte[0]);
        }
    }

    #[test]
    fn output_leaves_at_once() {
        let mut rig = rig();
        rig.uart.write(0, b"v");
        rig.uart.write(0, b"olt");
        let mut seen = [0; 4];
        rig.reader.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"volt");
    }

    #[test]
    fn ten_kilobytes_of_input_arrive_whole() {
        let mut rig = rig();
        let input: Vec<u8> = (0..10_240u32).map(|n| (n % 251) as u8).collect();
        let mut seen = Vec::new();
        let mut rest = &input[..];
        assert_eq!(rig.uart.feed(rest), 0, "the guest has not opened the port");
        rig.uart.write(1, &[IER_RECEIVED]);
        assert!(rig.room.event().read().is_ok(), "opening the port asks for input");
        while !rest.is_empty() {
            let taken = rig.uart.feed(rest);
            assert!(taken > 0 && taken <= 64);
            assert!(rig.irq.read().is_ok());
            rest = &rest[taken..];
            assert!(rig.room.event().read().is_err(), "no event before the guest has read");
            seen.extend(guest_reads(&mut rig.uart));
            assert_eq!(rig.room.event().read().is_ok(), !rest.is_empty());
        }
        assert_eq!(seen, input);
    }

    #[test]
    fn a_full_fifo_takes_nothing_and_loses_nothing() {
        let mut rig = rig();
        rig.uart.write(1, &[IER_RECEIVED]);
        assert_eq!(rig.uart.feed(&[7; 100]), 64);
        assert_eq!(rig.uart.feed(&[8; 100]), 0);
        assert_eq!(guest_reads(&mut rig.uart), [7; 64]);
    }

    #[test]
    fn loop_back_mode_delays_input() {
        let mut rig = rig();
        rig.uart.write(1, &[IER_RECEIVED]);
        rig.uart.write(4, &[0x10]);
        assert_eq!(rig.uart.feed(b"x"), 0);
        rig.uart.write(4, &[0]);
        assert!(rig.room.event().read().is_ok());
        assert_eq!(rig.uart.feed(b"x"), 1);
    }

    #[test]
    fn output_that_nobody_reads_does_not_stop_the_guest() {
        let Rig { mut uart, reader, .. } = rig();
        drop(reader);
        uart.write(0, b"x");
        uart.write(0, b"y");
        assert!(uart.output_failed);
    }
}
