//! The virtual machine's virtio devices.
//!
//! Life cycle: the builder creates a device (`Block::open`, `Rng::new`, `net::open`) and puts it behind a
//! transport ([`mmio::MmioTransport`], [`pci::PciTransport`]) on the bus. The driver's register writes reach
//! the transport on a vCPU's thread. At `DRIVER_OK` the transport calls [`VirtioDevice::activate`], and the
//! device serves its vrings on its own thread. At a reset the transport calls [`VirtioDevice::reset`], after
//! which the device touches neither vrings nor memory. Both may repeat any number of times, in turn. Dropping
//! a device stops its thread.
//!
//! | module | holds |
//! |---|---|
//! | [`handle`] | the interface to a device beside its transport: kind, status, limits, pause |
//! | [`status`] | a device's status, as the API shows it |
//! | [`interrupt`] | interrupts from a device to its driver |
//! | [`registers`] | the common registers of all transports: device status, features and vrings |
//! | [`mmio`] | the virtio-mmio transport: ioeventfd, one irqfd |
//! | [`pci`] | the virtio-pci transport: capabilities, an ioeventfd and an irqfd for each vring |
//! | [`ring`] | a vring served by the VMM itself, one checked chain at a time |
//! | [`chain`] | a descriptor chain as two lists of buffers |
//! | [`worker`] | the thread that serves one ring |
//! | [`maker`] | starting and resetting devices on other threads than the vCPU's |
//! | [`blk`], [`rng`], [`net`] | the devices |

use std::io;
use std::sync::Arc;

use thiserror::Error;
use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;
use volt_net::config::Mac;
use volt_virtio::features::Features;

use crate::virtio::handle::{DeviceHandle, DeviceKind, Labelled};
use crate::virtio::interrupt::Interrupt;

pub mod blk;
pub mod chain;
pub mod handle;
pub mod interrupt;
pub mod maker;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod registers;
pub mod ring;
pub mod rng;
pub mod status;
pub mod worker;

#[cfg(test)]
pub(crate) mod testing;

/// The interface of a device to its transport. All calls come from one vCPU's thread at a time.
pub trait VirtioDevice: Send {
    /// Returns the device's number (virtio 1.2, section 5).
    fn device_id(&self) -> u32;

    /// Returns the kind of device, which a caller gives with the name.
    fn kind(&self) -> DeviceKind {
        DeviceKind::Other
    }

    /// Returns its name among the devices of its kind: interface, socket or image.
    fn name(&self) -> &str {
        self.label()
    }

    /// Returns its name in logs: kind and name.
    fn label(&self) -> &str;

    /// Returns the interface beside the transport.
    fn handle(&self) -> Arc<dyn DeviceHandle> {
        Arc::new(Labelled(self.label().to_owned()))
    }

    /// Returns the offered features. They never change.
    fn features(&self) -> Features;

    /// Returns the largest size of each vring, a power of two. The length is the number of vrings.
    fn vring_sizes(&self) -> &[u16];

    /// Fills `data` from byte `offset` of the configuration space, with zeroes after its end.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes over vrings and memory, at `DRIVER_OK`. Never waits for another process.
    ///
    /// # Errors
    ///
    /// Fails if the device cannot run. The driver sees `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Gives up everything that [`VirtioDevice::activate`] took: after the return the device touches none of
    /// it.
    ///
    /// Waits a bounded time for the request in progress. Does nothing without an activation.
    fn reset(&mut self);

    /// Returns the address that a network device has after a reset.
    fn mac(&self) -> Option<Mac> {
        None
    }
}

/// The resources of a device from `DRIVER_OK` on.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// Features that the driver acknowledged, a subset of the offer, with `VERSION_1`.
    pub features: Features,
    /// The vrings that the driver made ready, in order of their index. Sizes and addresses are checked.
    pub vrings: Vec<Vring>,
    /// Interrupts to the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Takes vring `index` out of the list.
    ///
    /// # Errors
    ///
    /// Fails if the driver did not make the vring ready.
    pub fn take_vring(&mut self, index: u16) -> Result<Vring, ActivateError> {
        let position = self.vrings.iter().position(|vring| vring.index == index);
        position.map(|at| self.vrings.remove(at)).ok_or(ActivateError::NoVring(index))
    }
}

/// A vring that the driver made ready.
pub struct Vring {
    /// Its number within the device.
    pub index: u16,
    /// Size, addresses and positions.
    pub queue: Queue,
    /// Written by the driver's `QueueNotify`, through KVM. Non-blocking.
    pub kick: Arc<EventFd>,
}

/// Why a device did not start.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// `QueueSize` is invalid.
    #[error("vring {index}: size {size} is not a power of two up to {max}")]
    Size {
        /// The vring.
        index: u16,
        /// The size that the driver wrote.
        size: u32,
        /// The device's maximum.
        max: u16,
    },
    /// A part of a vring is misaligned or not in guest memory.
    #[error("vring {index}: its {part} at {address:#x} is misaligned or outside of guest memory")]
    Address {
        /// The vring.
        index: u16,
        /// "descriptor table", "available ring" or "used ring".
        part: &'static str,
        /// Guest physical address.
        address: u64,
    },
    /// The device needs this vring.
    #[error("vring {0} was not made ready")]
    NoVring(u16),
    /// There is no thread or eventfd.
    #[error("its thread cannot start")]
    Thread(#[source] io::Error),
    /// The data path of a network device cannot start.
    #[error("its data path cannot start")]
    DataPath(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Copies `config` from `offset` on into `data`. Bytes after its end read as zero.
fn copy_config(config: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or(&[]);
    let len = rest.len().min(data.len());
    data.fill(0);
    data[..len].copy_from_slice(&rest[..len]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_reads_end_in_zeroes() {
        let mut data = [9; 4];
        copy_config(&[1, 2, 3], 1, &mut data);
        assert_eq!(data, [2, 3, 0, 0]);
        copy_config(&[1, 2, 3], u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
