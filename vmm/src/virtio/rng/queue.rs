//! The request queue of the entropy device (virtio 1.2, 5.4.6): buffers to fill.

use crate::faults::Faults;
use crate::virtio::chain::{Chain, ChainError};

/// Most bytes for one request; the device may fill less than the driver offers.
const FILL_MAX: usize = 1 << 16;

/// Serves requests for one activation.
pub(super) struct RequestQueue {
    faults: Faults,
    bytes: Vec<u8>,
}

impl RequestQueue {
    pub(super) fn new(label: &str) -> RequestQueue {
        RequestQueue { faults: Faults::new(label), bytes: vec![0; FILL_MAX] }
    }

    /// Fills a chain. Returns the number of bytes.
    pub(super) fn serve(&mut self, chain: Result<&Chain<'_>, ChainError>) -> u32 {
        let chain = match chain {
            Ok(chain) => chain,
            Err(error) => {
                self.faults.report(&error);
                return 0;
            }
        };
        let bytes = &mut self.bytes[..chain.writable.len().min(FILL_MAX)];
        if let Err(error) = getrandom::fill(bytes) {
            self.faults.report(&error);
            return 0;
        }
        chain.writable.copy_from(bytes) as u32
    }
}
