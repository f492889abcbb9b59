//! Interrupts of virtio-mmio: `InterruptStatus`, `InterruptACK` and the irqfd behind them (virtio 1.2,
//! 4.2.2).

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::virtio::interrupt::{Interrupt, TransportInterrupt};

/// Bit 0 of `InterruptStatus`: buffers were used (virtio 1.2, 4.2.2).
pub const INT_VRING: u32 = 1;
/// Bit 1 of `InterruptStatus`: the configuration changed.
pub const INT_CONFIG: u32 = 2;

/// The interrupt of a virtio-mmio device: one irqfd. The driver finds the reason in `InterruptStatus`.
///
/// The irqfd is edge-triggered: each write raises its GSI once.
pub struct MmioInterrupt {
    irqfd: EventFd,
    status: AtomicU32,
    external: AtomicBool,
    generation: AtomicU32,
    lost: AtomicBool,
}

impl MmioInterrupt {
    /// Creates an interrupt with nothing pending. The caller connects [`MmioInterrupt::irqfd`] to a GSI.
    ///
    /// # Errors
    ///
    /// Fails if the process may open no more files.
    pub fn new() -> io::Result<MmioInterrupt> {
        Ok(MmioInterrupt {
            irqfd: EventFd::new(EFD_NONBLOCK)?,
            status: AtomicU32::new(0),
            external: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            lost: AtomicBool::new(false),
        })
    }

    /// Returns the eventfd behind the interrupt line.
    pub fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }

    /// Returns `InterruptStatus` for the driver.
    pub fn status(&self) -> u32 {
        // An external back-end writes to the irqfd and cannot reach this register. With one, every interrupt
        // may be about a vring.
        let external = if self.external.load(Ordering::Acquire) { INT_VRING } else { 0 };
        self.status.load(Ordering::Acquire) | external
    }

    /// Handles the driver's write to `InterruptACK`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::AcqRel);
        // Fails only if the counter is full, and then the line is raised already.
        let _ = self.irqfd.write(1);
    }
}

impl TransportInterrupt for MmioInterrupt {
    fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    fn reset(&self) {
        self.external.store(false, Ordering::Release);
        self.lost.store(false, Ordering::Release);
        self.status.store(0, Ordering::Release);
    }
}

impl Interrupt for MmioInterrupt {
    fn used(&self, _index: u16) {
        self.raise(INT_VRING);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.raise(INT_CONFIG);
    }

    fn needs_reset(&self) {
        self.lost.store(true, Ordering::Release);
        self.raise(INT_CONFIG);
    }

    fn call(&self, _index: u16) -> &EventFd {
        self.external.store(true, Ordering::Release);
        &self.irqfd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_stay_until_acknowledged() {
        let interrupt = MmioInterrupt::new().unwrap();
        assert_eq!(interrupt.status(), 0);
        interrupt.used(0);
        interrupt.config_changed();
        assert_eq!(interrupt.irqfd().read().unwrap(), 2);
        assert_eq!(interrupt.status(), INT_VRING | INT_CONFIG);
        interrupt.acknowledge(INT_VRING);
        assert_eq!(interrupt.status(), INT_CONFIG);
        assert_eq!(interrupt.generation(), 1);
    }

    #[test]
    fn an_external_back_end_may_interrupt_at_any_time() {
        let interrupt = MmioInterrupt::new().unwrap();
        interrupt.call(0).write(1).unwrap();
        assert_eq!(interrupt.status(), INT_VRING);
        interrupt.acknowledge(INT_VRING);
        assert_eq!(interrupt.status(), INT_VRING);
        interrupt.config_changed();
        assert_eq!(interrupt.status(), INT_VRING | INT_CONFIG);
        interrupt.reset();
        assert_eq!(interrupt.status(), 0);
    }
}
