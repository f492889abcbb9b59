//! Notifications from the UART and its output to the console, in either direction.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Notifies the console that it should serve the UART: the guest takes input again, or its transmitter has
/// become busy or free.
pub struct Room {
    event: EventFd,
    /// Whether input waits.
    pub(super) wanted: AtomicBool,
}

impl Room {
    /// Creates it. No notification is wanted yet.
    ///
    /// # Errors
    ///
    /// Fails if the process may open no more files.
    pub fn new() -> io::Result<Room> {
        Ok(Room { event: EventFd::new(EFD_NONBLOCK)?, wanted: AtomicBool::new(false) })
    }

    /// Returns the eventfd that is readable when [`Uart::feed`](super::Uart::feed) and
    /// [`Uart::serve_output`](super::Uart::serve_output) should be called again.
    pub fn event(&self) -> &EventFd {
        &self.event
    }

    pub(super) fn tell(&self) {
        // Fails only if the counter is full, and then it is readable already.
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
