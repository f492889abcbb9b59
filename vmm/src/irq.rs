//! How a virtio device interrupts its driver.
//!
//! A device knows only [`Interrupt`]; which wires stand behind it is the transport's affair. With
//! virtio-mmio that is one irqfd per device and a status register ([`MmioInterrupt`]), with virtio-pci an eventfd for each
//! vring and one for the configuration ([`PciInterrupt`](crate::virtio::pci::PciInterrupt)). What is not virtio and tells rarely, hot-plug
//! and the power button, has a [`LevelLine`].

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use kvm_ioctls::VmFd;
use log::error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A pin of KVM's interrupt controllers whose level says whether a device of the machine has something to tell. It stays until
/// that was read: a guest that has the pin masked, as every one has that boots, finds it when it unmasks it, where an edge would
/// be lost.
pub struct LevelLine(Box<dyn Fn(bool) + Send + Sync>);

impl LevelLine {
    /// Pin `gsi` of `vm`, which has its interrupt controllers.
    pub fn of(vm: Arc<VmFd>, gsi: u32) -> LevelLine {
        LevelLine::new(move |high| {
            if let Err(error) = vm.set_irq_line(gsi, high) {
                error!("KVM does not change the level of interrupt {gsi}: {error}");
            }
        })
    }

    /// Tells every level to `set`. For tests of what does not need KVM.
    pub fn new(set: impl Fn(bool) + Send + Sync + 'static) -> LevelLine {
        LevelLine(Box::new(set))
    }

    /// High: there is something to tell.
    pub fn set(&self, high: bool) {
        (self.0)(high);
    }
}

/// Bit 0 of `InterruptStatus`: buffers were used (virtio 1.2, 4.2.2).
pub const INT_VRING: u32 = 1;
/// Bit 1 of `InterruptStatus`: the configuration changed.
pub const INT_CONFIG: u32 = 2;

/// The notifications that a device sends to its driver (virtio 1.2, 2.3).
pub trait Interrupt: Send + Sync {
    /// Says that buffers of vring `index` were used.
    fn used(&self, index: u16);

    /// Says that the configuration space changed.
    fn config_changed(&self);

    /// Says that the device is lost until the driver resets it (`DEVICE_NEEDS_RESET`, 2.1.2).
    fn needs_reset(&self);

    /// The eventfd that an external back-end writes to in place of [`Interrupt::used`].
    fn call(&self, index: u16) -> &EventFd;
}

/// What a transport's registers need of an interrupt.
pub trait TransportInterrupt: Interrupt {
    /// Whether the device asked to be reset.
    fn is_lost(&self) -> bool;

    /// `ConfigGeneration`: differs after each change of the configuration space.
    fn generation(&self) -> u32;

    /// Forgets everything pending; the device no longer uses it.
    fn reset(&self);
}

/// Interrupts of a virtio-mmio device: one irqfd, whose reason the driver finds in `InterruptStatus`.
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
    /// An interrupt with nothing pending. The caller connects [`MmioInterrupt::irqfd`] to a GSI.
    ///
    /// # Errors
    ///
    /// When the process may open no more files.
    pub fn new() -> io::Result<MmioInterrupt> {
        Ok(MmioInterrupt {
            irqfd: EventFd::new(EFD_NONBLOCK)?,
            status: AtomicU32::new(0),
            external: AtomicBool::new(false),
            generation: AtomicU32::new(0),
            lost: AtomicBool::new(false),
        })
    }

    /// The eventfd behind the interrupt line.
    pub fn irqfd(&self) -> &EventFd {
        &self.irqfd
    }

    /// `InterruptStatus` as the driver reads it.
    pub fn status(&self) -> u32 {
        // An external back-end writes to the irqfd and cannot reach this register, so with one of those
        // every interrupt may be about a vring.
        let external = if self.external.load(Ordering::Acquire) { INT_VRING } else { 0 };
        self.status.load(Ordering::Acquire) | external
    }

    /// Takes the driver's write to `InterruptACK`.
    pub fn acknowledge(&self, bits: u32) {
        self.status.fetch_and(!bits, Ordering::AcqRel);
    }

    fn raise(&self, reason: u32) {
        self.status.fetch_or(reason, Ordering::AcqRel);
        // Fails only when the counter is full, and then the line is raised already.
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
