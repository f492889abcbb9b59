//! How the UART and its output tell the console that there is room again, in either direction.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Tells the console that it is worth looking at the UART: the guest takes input again, or its transmitter
/// has become busy or free.
pub struct Room {
    event: EventFd,
    /// Input waits.
    pub(super) wanted: AtomicBool,
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

    /// Readable when [`Uart::feed`](super::Uart::feed) and [`Uart::serve_output`](super::Uart::serve_output)
    /// may be called again.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    pub(super) fn tell(&self) {
        // Fails only when the counter is full, and then it is readable already.
        let _ = self.event.write(1);
    }
}

impl SerialEvents for Room {
    fn buffer_read(&self) {}

    fn out_byte(&self) {}

    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // The UART's lock orders this with `feed`.
        if self.wanted.swap(false, Ordering::Relaxed) {
            self.tell();
        }
    }
}
