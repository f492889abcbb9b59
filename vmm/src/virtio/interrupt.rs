//! How a virtio device interrupts its driver.
//!
//! A device knows only [`Interrupt`]; what stands behind it is the transport's affair. With virtio-mmio that
//! is one irqfd for each device and a status register
//! ([`MmioInterrupt`](crate::virtio::mmio::interrupt::MmioInterrupt)), with virtio-pci an eventfd for each
//! vring and one for the configuration ([`PciInterrupt`](crate::virtio::pci::PciInterrupt)).

use vmm_sys_util::eventfd::EventFd;

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
