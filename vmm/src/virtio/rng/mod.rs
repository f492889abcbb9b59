//! The entropy device (virtio 1.2, section 5.4): one vring, whose buffers it fills with random bytes.

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use volt_virtio::features::Features;

use crate::board::pause_gate::PauseGate;
use crate::virtio::ring::Ring;
use crate::virtio::worker::Worker;
use crate::virtio::{ActivateError, Activation, VirtioDevice};

mod queue;

const LABEL: &str = "rng";
const VRING_SIZE: u16 = 64;

/// An entropy device with the host's random numbers.
pub struct Rng {
    gate: Arc<PauseGate>,
    worker: Option<Worker>,
}

impl Rng {
    /// Creates a device, which runs after its activation.
    pub fn new(gate: &Arc<PauseGate>) -> Rng {
        Rng { gate: gate.clone(), worker: None }
    }
}

impl VirtioDevice for Rng {
    fn device_id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn label(&self) -> &str {
        LABEL
    }

    fn features(&self) -> Features {
        Features::VERSION_1.union(Features::EVENT_IDX).union(Features::INDIRECT_DESC)
    }

    fn vring_sizes(&self) -> &[u16] {
        &[VRING_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let vring = activation.take_vring(0)?;
        let ring = Ring::new(vring, &activation);
        let mut requests = queue::RequestQueue::new(LABEL);
        let worker = Worker::spawn(LABEL, LABEL, &self.gate, ring, move |chain| requests.serve(chain));
        self.worker = Some(worker.map_err(ActivateError::Thread)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

#[cfg(test)]
mod tests;
