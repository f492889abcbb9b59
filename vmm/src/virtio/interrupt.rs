//! Interrupts from a virtio device to its driver.
//!
//! A device knows only [`Interrupt`]. The transport decides what is behind it. With virtio-mmio, that is one
//! irqfd for each device and a status register
//! ([`MmioInterrupt`](crate::virtio::mmio::interrupt::MmioInterrupt)). With virtio-pci, it is an eventfd for
//! each vring and one for the configuration ([`PciInterrupt`](crate::virtio::pci::PciInterrupt)).

use vmm_sys_util::eventfd::EventFd;

/// The notifications that a device sends to its driver (virtio 1.2, 2.3).
pub trait Interrupt: Send + Sync {
    /// Reports used buffers in vring `index`.
    fn used(&self, index: u16);

    /// Reports a change of the configuration space.
    fn config_changed(&self);

    /// Reports that the device is lost until the driver resets it (`DEVICE_NEEDS_RESET`, 2.1.2).
    fn needs_reset(&self);

    /// Returns the eventfd that an external back-end writes instead of calling [`Interrupt::used`].
    fn call(&self, index: u16) -> &EventFd;
}

/// The methods of an interrupt for a transport's registers.
pub trait TransportInterrupt: Interrupt {
    /// Returns whether the device requested a reset.
    fn is_lost(&self) -> bool;

    /// Returns `ConfigGeneration`, which differs after each change of the configuration space.
    fn generation(&self) -> u32;

    /// Clears all pending interrupts. The device no longer uses it.
    fn reset(&self);
}
