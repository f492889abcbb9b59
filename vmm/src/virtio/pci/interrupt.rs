//! The device's side of the interrupts of a virtio-pci device: an eventfd for each vring and one for the
//! configuration. The transport connects them to vectors.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::interrupt::{Interrupt, TransportInterrupt};

/// A device's interrupts.
pub struct PciInterrupt {
    vrings: Vec<Arc<EventFd>>,
    config: Arc<EventFd>,
    config_changed: AtomicBool,
    generation: AtomicU32,
    lost: AtomicBool,
}

impl PciInterrupt {
    /// Creates the interrupts of a device with `vrings` vrings, with nothing pending.
    ///
    /// # Errors
    ///
    /// Fails if the process may open no more files.
    pub fn new(vrings: usize) -> io::Result<PciInterrupt> {
        let eventfd = || EventFd::new(EFD_NONBLOCK).map(Arc::new);
        Ok(PciInterrupt {
            vrings: (0..vrings).map(|_| eventfd()).collect::<Result<_, _>>()?,
            config: eventfd()?,
            config_changed: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            lost: AtomicBool::new(false),
        })
    }

    /// Returns the eventfds of the vrings in order, then that of the configuration.
    pub fn eventfds(&self) -> impl Iterator<Item = &Arc<EventFd>> {
        self.vrings.iter().chain([&self.config])
    }

    /// Returns whether the configuration has changed since the last call.
    pub fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::AcqRel)
    }

    fn raise_config(&self) {
        self.config_changed.store(true, Ordering::Release);
        // Fails only if the counter is full, and then it is pending already.
        let _ = self.config.write(1);
    }
}

impl Interrupt for PciInterrupt {
    fn used(&self, index: u16) {
        // See `raise_config`.
        let _ = self.call(index).write(1);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise_config();
    }

    fn needs_reset(&self) {
        self.lost.store(true, Ordering::Release);
        self.raise_config();
    }

    fn call(&self, index: u16) -> &EventFd {
        // The device has the number from its activation.
        &self.vrings[usize::from(index)]
    }
}

impl TransportInterrupt for PciInterrupt {
    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    fn reset(&self) {
        self.lost.store(false, Ordering::Release);
        self.config_changed.store(false, Ordering::Release);
        for eventfd in self.eventfds() {
            let _ = eventfd.read();
        }
    }
}
