//! The block device (virtio 1.2, section 5.2): one vring, one thread, one raw image.
//!
//! [`Block::open`] opens and locks the image, which stays so as long as the device lives. Each activation
//! starts a thread that serves the vring by [`queue::Requests`]; a reset ends it.

use std::sync::Arc;

use log::warn;
use serde_json::json;
use thiserror::Error;
use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use volt_net::virtio::features::Features;

use crate::api::Status;
use crate::config::DiskConfig;
use crate::gate::Gate;
use crate::virtio::blk::image::{Image, ImageError};
use crate::virtio::blk::queue::{Counts, Requests};
use crate::virtio::ring::Ring;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, VirtioDevice, copy_config};

pub mod format;
pub mod image;
pub mod lock;
pub mod queue;

/// The unit of `capacity` and of all positions (5.2.4).
pub const SECTOR_SIZE: u64 = 512;

const VRING_SIZE: u16 = 256;
/// Bytes in one segment of a request, and segments in one request: together the most that a guest can
/// make the host hold or wait for at once. A ring of 256 has room for 254 beside header and status.
const SIZE_MAX: u32 = 1 << 20;
const SEG_MAX: u32 = VRING_SIZE as u32 - 2;
/// Ranges in one discard or write-zeroes request, and sectors in each: at most 64 MiB of zeroes have to
/// be written where the image's file system cannot make a hole.
const RANGES_MAX: u32 = 16;
const RANGE_SECTORS_MAX: u32 = 1 << 17;
/// 4 KiB in sectors: what file systems can free.
const DISCARD_ALIGNMENT: u32 = 8;

/// Why there is no block device.
#[derive(Debug, Error)]
pub enum BlockError {
    /// The image is not usable.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// A block device over an image.
pub struct Block {
    label: String,
    image: Arc<Image>,
    features: Features,
    config: Vec<u8>,
    gate: Arc<Gate>,
    counts: Arc<Counts>,
    worker: Option<Worker>,
}

impl Block {
    /// Opens and locks the image.
    ///
    /// # Errors
    ///
    /// See [`ImageError`].
    pub fn open(config: &DiskConfig, gate: &Arc<Gate>) -> Result<Block, BlockError> {
        let image = Image::open(config)?;
        let label = format!("disk {}", config.path.display());
        if image.surplus() != 0 {
            warn!(
                "{label}: its last {} bytes are no whole sector of 512, and the guest does not see them",
                image.surplus()
            );
        }
        Ok(Block {
            label,
            features: features(config.read_only),
            config: config_space(image.sectors()),
            image: Arc::new(image),
            gate: gate.clone(),
            counts: Arc::default(),
            worker: None,
        })
    }
}

fn features(read_only: bool) -> Features {
    let bit = |bit: u32| Features(1 << bit);
    let common = Features::VERSION_1
        .with(Features::EVENT_IDX)
        .with(Features::INDIRECT_DESC)
        .with(bit(VIRTIO_BLK_F_SIZE_MAX))
        .with(bit(VIRTIO_BLK_F_SEG_MAX))
        .with(bit(VIRTIO_BLK_F_BLK_SIZE))
        .with(bit(VIRTIO_BLK_F_FLUSH));
    if read_only {
        common.with(bit(VIRTIO_BLK_F_RO))
    } else {
        common.with(bit(VIRTIO_BLK_F_DISCARD)).with(bit(VIRTIO_BLK_F_WRITE_ZEROES))
    }
}

/// `struct virtio_blk_config` (5.2.4), with zeroes in the fields whose features are not offered.
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

    fn label(&self) -> &str {
        &self.label
    }

    fn status(&self) -> Status {
        let (label, counts) = (self.label.clone(), self.counts.clone());
        Box::new(move || {
            let (requests, failed) = counts.get();
            let vring = json!({ "vring": 0, "kind": "requests", "requests": requests, "failed": failed });
            json!({ "device": label, "kind": "disk", "vrings": [vring] })
        })
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
            Requests::new(&self.label, self.image.clone(), activation.features, self.counts.clone());
        let ring = Ring::new(vring, &activation);
        let worker = Worker::spawn(&self.label, "disk", &self.gate, ring, move |chain| requests.serve(chain));
        self.worker = Some(worker.map_err(ActivateError::Thread)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
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
