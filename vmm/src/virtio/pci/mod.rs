//! virtio over PCI (virtio 1.2, section 4.1): a modern device, with MSI-X only.
//!
//! [`PciSlots`](slots::PciSlots) creates one [`PciTransport`] for each device. It adds the transport to the
//! [`PciBus`](crate::pci::PciBus) for the configuration space, and to the bus for memory-mapped I/O for the
//! BAR, and removes it from both. Notifications and interrupts bypass the transport. Each vring has its own
//! address at which KVM turns the driver's write into an eventfd write (ioeventfd). Each vring has its own
//! eventfd that KVM turns into the message of its MSI-X vector (irqfd).
//!
//! The BAR does not move, because KVM knows the notifications' addresses from the start. Dropping a transport
//! resets its device and gives everything back.
//!
//! | module | holds |
//! |---|---|
//! | [`capabilities`] | the capabilities in the configuration space, and the structures in the BAR |
//! | [`common`] | the common configuration structure |
//! | [`interrupt`] | the eventfds of a device's interrupts |
//! | [`notification`] | the ioeventfd of a vring |
//! | [`slots`] | the transports of a machine, each in its slot |

use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::board::bus::BusDevice;
use crate::board::layout::PCI_BAR_SIZE;
use crate::pci::PciFunction;
use crate::pci::config::ConfigSpace;
use crate::pci::msi::{MsiLine, MsiRoutes};
use crate::pci::msix::Msix;
use crate::virtio::VirtioDevice;
use crate::virtio::registers::{Registers, TransportError};

mod capabilities;
mod common;
mod interrupt;
mod notification;
pub mod slots;

pub use capabilities::MAX_VRINGS;
use capabilities::{COMMON, Capabilities, DEVICE, ISR, NOTIFY, NOTIFY_MULTIPLIER, PENDING, TABLE, Window};
pub use interrupt::PciInterrupt;
use notification::Notification;

/// The vector of a source that must not interrupt (4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;
/// Bytes of each of the BAR's structures.
const STRUCTURE: u32 = 0x1000;

/// A source of interrupts: a vring, or the configuration.
struct Source {
    /// The vector that the driver chose.
    vector: u16,
    line: MsiLine,
}

/// A device's function on the PCI bus.
pub struct PciTransport {
    registers: Registers<PciInterrupt>,
    config: ConfigSpace,
    capabilities: Capabilities,
    msix: Msix,
    /// The sources of the vrings, then that of the configuration.
    sources: Vec<Source>,
    /// The notifications of the vrings. Empty in tests that do not need KVM.
    notifications: Vec<Notification>,
}

impl PciTransport {
    /// Connects `device` to `vm` with its BAR at `base`, a multiple of [`PCI_BAR_SIZE`]. From here on its
    /// notifications work. Its interrupts work as soon as the driver has chosen vectors.
    ///
    /// # Errors
    ///
    /// Fails if KVM refuses an eventfd, or has no interrupts left.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        vm: &Arc<VmFd>,
        routes: &Arc<MsiRoutes>,
        base: u32,
    ) -> Result<PciTransport, TransportError> {
        let vrings = device.vring_sizes().len();
        let line = |eventfd| MsiLine::new(eventfd, routes).ok_or(TransportError::Interrupts(vrings));
        let mut transport = PciTransport::with_lines(device, memory, base, line)?;
        for (index, kick) in transport.registers.kicks.iter().enumerate() {
            let address = u64::from(base + NOTIFY + NOTIFY_MULTIPLIER * index as u32);
            let notification = Notification::new(vm, kick, address)
                .map_err(|source| TransportError::IoEventFd { index, address, source })?;
            transport.notifications.push(notification);
        }
        Ok(transport)
    }

    /// Creates the function alone, for tests. Notifications work through [`BusDevice::write`]. Interrupts
    /// stay in their eventfds.
    ///
    /// # Errors
    ///
    /// Fails if the process may open no more files.
    #[doc(hidden)]
    pub fn unconnected(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        base: u32,
    ) -> Result<PciTransport, TransportError> {
        PciTransport::with_lines(device, memory, base, |eventfd| Ok(MsiLine::unconnected(eventfd)))
    }

    fn with_lines(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        base: u32,
        line: impl Fn(Arc<EventFd>) -> Result<MsiLine, TransportError>,
    ) -> Result<PciTransport, TransportError> {
        let vrings = device.vring_sizes().len();
        if vrings > MAX_VRINGS {
            return Err(TransportError::Interrupts(vrings));
        }
        let interrupt = PciInterrupt::new(vrings).map_err(TransportError::EventFd)?;
        let source = |eventfd: &Arc<_>| Ok(Source { vector: NO_VECTOR, line: line(Arc::clone(eventfd))? });
        let sources: Vec<_> = interrupt.eventfds().map(source).collect::<Result<_, _>>()?;
        let msix = Msix::new(sources.len() as u16);
        let mut config = ConfigSpace::new(capabilities::identity(device.device_id()));
        config.set_bar(base, PCI_BAR_SIZE);
        let capabilities = Capabilities::add(&mut config, &msix, vrings as u32);
        let mut registers = Registers::new(device, memory, interrupt)?;
        registers.set_dma(config.is_bus_master());
        Ok(PciTransport { registers, config, capabilities, msix, sources, notifications: Vec::new() })
    }

    /// Connects each source of interrupts to the present message of its vector. A message is a write to
    /// memory, so it waits while the function may not write.
    fn rewire(&mut self) {
        let may_write = self.config.is_bus_master();
        for Source { vector, line } in &mut self.sources {
            line.connect(self.msix.message(*vector).filter(|_| may_write));
        }
    }

    fn set_vector(&mut self, source: usize, vector: u16) {
        let exists = vector < self.msix.vectors();
        if let Some(source) = self.sources.get_mut(source) {
            if source.vector == NO_VECTOR {
                // There was no vector to interrupt.
                source.line.take_pending();
            }
            source.vector = if exists { vector } else { NO_VECTOR };
        }
        self.rewire();
    }

    /// Resets the vectors to their first state. The table of messages is not reset.
    fn forget_vectors(&mut self) {
        for source in &mut self.sources {
            source.vector = NO_VECTOR;
        }
        self.rewire();
    }

    fn is_pending(&self, vector: u16) -> bool {
        self.sources.iter().any(|source| source.vector == vector && source.line.is_pending())
    }

    /// Reads and clears the ISR status (4.1.4.5). Bit 0 is for vrings, only for a driver without MSI-X. Bit 1
    /// is for the configuration.
    fn read_isr(&mut self) -> u8 {
        let config = self.registers.interrupt.take_config_changed();
        let without_msix = !self.msix.is_enabled();
        let vrings = self.registers.kicks.len();
        // All of them, so that each is cleared.
        let used =
            self.sources[..vrings].iter().filter(|source| without_msix && source.line.take_pending()).count();
        u8::from(used > 0) | u8::from(config) << 1
    }

    fn read_bar(&mut self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let at = offset % STRUCTURE;
        match offset - at {
            COMMON => self.read_common(at, data),
            ISR => {
                if let (0, Some(first)) = (at, data.first_mut()) {
                    *first = self.read_isr();
                }
            }
            DEVICE => self.registers.device.read_config(at.into(), data),
            TABLE => self.msix.read_table(at as usize, data),
            PENDING => self.msix.read_pending(at as usize, data, |vector| self.is_pending(vector)),
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u32, data: &[u8]) {
        let at = offset % STRUCTURE;
        match offset - at {
            COMMON => self.write_common(at, data),
            // Usually handled by KVM's ioeventfd. Here for writes that it does not handle.
            NOTIFY => self.registers.kick((at / NOTIFY_MULTIPLIER) as usize),
            TABLE => {
                self.msix.write_table(at as usize, data);
                self.rewire();
            }
            // No device here has a configuration that a driver may write.
            _ => {}
        }
    }
}

impl Drop for PciTransport {
    fn drop(&mut self) {
        // Before its interrupts and notifications are removed.
        self.registers.device.reset();
    }
}

impl BusDevice for PciTransport {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match u32::try_from(offset) {
            Ok(offset) if offset < PCI_BAR_SIZE && self.config.memory_enabled() => {
                self.read_bar(offset, data);
            }
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(offset) = u32::try_from(offset)
            && offset < PCI_BAR_SIZE
            && self.config.memory_enabled()
        {
            self.write_bar(offset, data);
        }
    }
}

impl PciFunction for PciTransport {
    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        if let Some(Window { offset, len, register }) =
            self.capabilities.window(&self.config, offset, data.len())
        {
            let mut word = [0; 4];
            self.read_bar(offset, &mut word[..len]);
            self.config.set(register, word);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) {
        self.config.write(offset, data);
        if let Some(Window { offset, len, register }) =
            self.capabilities.window(&self.config, offset, data.len())
        {
            let word = self.config.u32(register).to_le_bytes();
            self.write_bar(offset, &word[..len]);
        }
        let control = self.capabilities.msix_control(&self.config);
        self.msix.set_control(control);
        self.rewire();
        self.registers.set_dma(self.config.is_bus_master());
    }
}

#[cfg(test)]
mod tests;
