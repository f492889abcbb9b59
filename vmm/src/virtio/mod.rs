//! The virtual machine's virtio devices.
//!
//! Life cycle: the builder makes a device (`Block::open`, `Rng::new`, `net::open`) and puts it behind a
//! transport ([`mmio::MmioTransport`], [`pci::PciTransport`]) on the bus. The driver's register writes reach
//! the transport on a vCPU's thread; at `DRIVER_OK` the transport calls [`VirtioDevice::activate`], from
//! where the device serves its vrings on a thread of its own, and at a reset [`VirtioDevice::reset`], after
//! which it touches neither vrings nor memory. Both may come any number of times, in turn. Dropping a device
//! stops its thread.
//!
//! | module | holds |
//! |---|---|
//! | [`handle`] | a device for everybody but its transport: kind, status, limits, pause |
//! | [`status`] | how a device is, as the API shows it |
//! | [`interrupt`] | how a device interrupts its driver |
//! | [`registers`] | what every transport has: device status, features and vrings |
//! | [`mmio`] | the virtio-mmio transport: ioeventfd, one irqfd |
//! | [`pci`] | the virtio-pci transport: capabilities, an ioeventfd and an irqfd for each vring |
//! | [`ring`] | a vring that the VMM serves itself, one checked chain at a time |
//! | [`chain`] | a descriptor chain as two lists of buffers |
//! | [`worker`] | the thread that serves one ring |
//! | [`maker`] | devices are started and reset beside the vCPU that asks for it |
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

/// What a transport needs from a device. All calls come from one vCPU's thread at a time.
pub trait VirtioDevice: Send {
    /// The device's number (virtio 1.2, section 5).
    fn device_id(&self) -> u32;

    /// What it is for whoever names it.
    fn kind(&self) -> DeviceKind {
        DeviceKind::Other
    }

    /// Its name among the devices of its kind: interface, socket or image.
    fn name(&self) -> &str {
        self.label()
    }

    /// The device in logs: kind and name.
    fn label(&self) -> &str;

    /// What shows and changes it beside the transport.
    fn handle(&self) -> Arc<dyn DeviceHandle> {
        Arc::new(Labelled(self.label().to_owned()))
    }

    /// Feature bits on offer; they never change.
    fn features(&self) -> Features;

    /// The largest size of each vring, a power of two; the length is the number of vrings.
    fn vring_sizes(&self) -> &[u16];

    /// Fills `data` from byte `offset` of the configuration space, with zeroes behind its end.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Takes over vrings and memory, at `DRIVER_OK`. Never waits for another process.
    ///
    /// # Errors
    ///
    /// The device cannot run; the driver sees `DEVICE_NEEDS_RESET`.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Gives up what [`VirtioDevice::activate`] took: after the return nothing of it is touched any more.
    ///
    /// Waits for the request in hand, for a bounded time. Without an activation it does nothing.
    fn reset(&mut self);

    /// The address that a network device has after a reset.
    fn mac(&self) -> Option<Mac> {
        None
    }
}

/// What a device gets at `DRIVER_OK`.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemoryMmap,
    /// Features that the driver acknowledged, a subset of the offer, with `VERSION_1`.
    pub features: Features,
    /// The vrings that the driver made ready, by rising index; sizes and addresses are checked.
    pub vrings: Vec<Vring>,
    /// The way back to the driver.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Takes vring `index` out of the list.
    ///
    /// # Errors
    ///
    /// When the driver did not make it ready.
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
    /// Written by the driver's `QueueNotify`, by way of KVM; non-blocking.
    pub kick: Arc<EventFd>,
}

/// Why a device did not start.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// `QueueSize` cannot be.
    #[error("vring {index}: size {size} is no power of two up to {max}")]
    Size {
        /// The vring.
        index: u16,
        /// What the driver wrote.
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
    /// The device cannot do without this vring.
    #[error("vring {0} was not made ready")]
    NoVring(u16),
    /// No thread, no eventfd.
    #[error("its thread does not start")]
    Thread(#[source] io::Error),
    /// Whoever moves a network device's frames cannot.
    #[error("its data path does not start")]
    DataPath(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Copies the part of `config` from `offset` on into `data`; what lies behind the end reads as zero.
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
