//! The block device (virtio 1.2, section 5.2): one vring, one thread, one raw image.
//!
//! [`Block::open`] opens and locks the image for the lifetime of the device. Each activation starts a thread
//! that serves the vring with [`queue::RequestQueue`]. A reset ends it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use log::warn;
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use volt_virtio::features::Features;

use crate::board::pause_gate::PauseGate;
use crate::config::DiskConfig;
use crate::virtio::blk::image::{DiskImage, ImageError};
use crate::virtio::blk::queue::{Counts, RequestQueue};
use crate::virtio::handle::{DeviceHandle, DeviceKind};
use crate::virtio::ring::Ring;
use crate::virtio::status::{DeviceDetails, DeviceStatus, VringStatus};
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, VirtioDevice, copy_config};

pub mod format;
pub mod image;
pub mod lock;
pub mod queue;

/// The unit of `capacity` and of all positions (5.2.4).
pub const SECTOR_SIZE: u64 = 512;

const VRING_SIZE: u16 = 256;
/// Bytes in one segment of a request, and segments in one request: together, the most that a guest can make
/// the host hold or wait for at once. A ring of 256 has room for 254 segments beside header and status.
const SIZE_MAX: u32 = 1 << 20;
const SEG_MAX: u32 = VRING_SIZE as u32 - 2;
/// Ranges in one discard or write-zeroes request, and sectors in each. At most 64 MiB of zeroes have to be
/// written if the image's file system cannot make a hole.
const RANGES_MAX: u32 = 16;
const RANGE_SECTORS_MAX: u32 = 1 << 17;
/// 4 KiB in sectors: the unit that file systems can free.
const DISCARD_ALIGNMENT: u32 = 8;

/// Why a block device cannot be created.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The image cannot be used.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// A block device with an image.
pub struct Block {
    name: String,
    label: String,
    image: Arc<DiskImage>,
    features: Features,
    config: Vec<u8>,
    gate: Arc<PauseGate>,
    counts: Arc<Counts>,
    worker: Option<Worker>,
}

impl Block {
    /// Opens and locks the image.
    ///
    /// # Errors
    ///
    /// See [`ImageError`].
    pub fn open(config: &DiskConfig, gate: &Arc<PauseGate>) -> Result<Block, BlockError> {
        Ok(Block::of(DiskImage::open(config)?, config, gate))
    }

    /// Like [`Block::open`], but for an open file. `config` has its name.
    ///
    /// # Errors
    ///
    /// See [`ImageError`].
    pub fn over(file: OwnedFd, config: &DiskConfig, gate: &Arc<PauseGate>) -> Result<Block, BlockError> {
        Ok(Block::of(DiskImage::over(file.into(), config)?, config, gate))
    }

    fn of(image: DiskImage, config: &DiskConfig, gate: &Arc<PauseGate>) -> Block {
        let name = config.path.display().to_string();
        let label = format!("disk {name}");
        if image.surplus() != 0 {
            warn!(
                event = "disk_cut_off", device:% = label;
                "{label}: its last {} bytes are not a whole sector of 512; the guest does not see them",
                image.surplus()
            );
        }
        Block {
            name,
            label,
            features: features(config.read_only),
            config: config_space(image.sectors()),
            image: Arc::new(image),
            gate: gate.clone(),
            counts: Arc::default(),
            worker: None,
        }
    }
}

fn features(read_only: bool) -> Features {
    let common = Features::VERSION_1
        .union(Features::EVENT_IDX)
        .union(Features::INDIRECT_DESC)
        .union(Features::BLK_SIZE_MAX)
        .union(Features::BLK_SEG_MAX)
        .union(Features::BLK_BLK_SIZE)
        .union(Features::BLK_FLUSH);
    if read_only {
        common.union(Features::BLK_RO)
    } else {
        common.union(Features::BLK_DISCARD).union(Features::BLK_WRITE_ZEROES)
    }
}

/// Returns `struct virtio_blk_config` (5.2.4). Fields whose features are not offered are zero.
fn config_space(sectors: u64) -> Vec<u8> {
    let mut config = Vec::with_capacity(60);
    config.extend(sectors.to_le_bytes());
    for word in [SIZE_MAX, SEG_MAX, 0, SECTOR_SIZE as u32, 0, 0, 0] {
        config.extend(word.to_le_bytes());
    }
    for word in [RANGE_SECTORS_MAX, RANGES_MAX, DISCARD_ALIGNMENT, RANGE_SECTORS_MAX, RANGES_MAX] {
        config.extend(word.to_le_bytes());
    }
    // write_zeroes_may_unmap, and padding.
    config.extend([1, 0, 0, 0]);
    config
}

impl VirtioDevice for Block {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn kind(&self) -> DeviceKind {
        DeviceKind::Disk
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn label(&self) -> &str {
        &self.label
    }

    fn handle(&self) -> Arc<dyn DeviceHandle> {
        Arc::new(Handle { label: self.label.clone(), counts: self.counts.clone() })
    }

    fn features(&self) -> Features {
        self.features
    }

    fn vring_sizes(&self) -> &[u16] {
        &[VRING_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let vring = activation.take_vring(0)?;
        let mut requests =
            RequestQueue::new(&self.label, self.image.clone(), activation.features, self.counts.clone());
        let ring = Ring::new(vring, &activation);
        let worker = Worker::spawn(&self.label, "disk", &self.gate, ring, move |chain| requests.serve(chain));
        self.worker = Some(worker.map_err(ActivateError::Thread)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// The interface to the device beside its transport.
struct Handle {
    label: String,
    counts: Arc<Counts>,
}

impl DeviceHandle for Handle {
    fn status(&self) -> DeviceStatus {
        let (requests, failed) = self.counts.get();
        let vrings = [VringStatus::Requests { vring: 0, requests, failed }];
        DeviceStatus { device: self.label.clone(), details: Some(DeviceDetails::Disk { vrings }) }
    }
}

#[cfg(test)]
mod device_tests;
#[cfg(test)]
mod host_tests;
#[cfg(test)]
mod sharing_tests;
#[cfg(test)]
mod tests;
