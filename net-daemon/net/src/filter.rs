//! A device's filter: a queue in front of a port that judges each frame (`volt_filter`).
//!
//! ```text
//! Tx -> copies the first bytes -> judged -> copy, and the rest of the guest's parts -> port
//! Rx <- guest's buffers <- judged <- whole frame in private memory                  <- port
//! ```
//!
//! What was judged is what passes: the guest can change a frame in its memory at any time, but not the copy.
//! Nothing of a refused frame reaches the guest's memory. A refused frame is counted, listed in a [`log`],
//! shown to a capture, and the batch continues with the next one.
//!
//! A [`DeviceFilter`] is given to [`NetDevice::set_filter`](crate::device::NetDevice::set_filter) and part of
//! a state. Its flows, learnt addresses and counts are in shared memory, so that they outlive the process.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
pub use volt_filter;
use volt_filter::setup::Setup;
use volt_filter::verdict::{Filter, FilterError};

use crate::counters::PairCounters;
use crate::port::PortQueue;
use crate::shared_words::{Kind, SharedWords, WordsError};
use crate::state::{Exporter, FdId, Importer, StateError};

mod clock;
pub mod log;
mod queue;

use log::RefusalLog;
pub(crate) use queue::FilterQueue;

/// The memory of a filter. Version 1 is that of `volt_filter::verdict::Memory`.
const KIND: Kind = Kind { magic: *b"voltFLTR", version: 1 };

/// Why there is no filter.
#[derive(Debug, Error)]
pub enum DeviceFilterError {
    /// No memory that outlives the process.
    #[error("the filter has no memory that outlives this process")]
    Memory(#[source] WordsError),
    /// No random bytes.
    #[error("no random bytes for the filter's flow table")]
    Random(#[source] getrandom::Error),
    /// Settings or memory.
    #[error("the filter cannot be used")]
    Filter(#[from] FilterError),
    /// Its memory did not come with the state.
    #[error("the filter of the state")]
    State(#[source] StateError),
}

/// Whether a host can have this address, and so a guest.
pub fn is_host(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

/// The filter in a state, from format 3 on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilterState {
    /// The settings in force.
    pub setup: Setup,
    /// The memory.
    pub memory: FdId,
}

/// A filter with its memory, for all queue pairs of a device. Clones share it.
#[derive(Clone, Debug)]
pub struct DeviceFilter {
    filter: Arc<Filter>,
    memory: Arc<SharedWords>,
    /// Number of the memory in a state.
    memory_id: FdId,
    log: Arc<RefusalLog>,
}

impl DeviceFilter {
    /// Creates a filter that knows no flows.
    ///
    /// # Errors
    ///
    /// See [`DeviceFilterError`].
    pub fn new(setup: Setup) -> Result<DeviceFilter, DeviceFilterError> {
        let memory = SharedWords::create_file("volt-filter", KIND, Filter::words(&setup))
            .map_err(DeviceFilterError::Memory)?;
        DeviceFilter::over(setup, Arc::new(memory), FdId::fresh(), Arc::default())
    }

    /// Continues the filter of a state, in the same memory.
    ///
    /// # Errors
    ///
    /// Fails if the memory did not come or is something else, or if the settings cannot be used.
    pub fn import(state: FilterState, from: &mut Importer) -> Result<DeviceFilter, DeviceFilterError> {
        let memory = from.take(state.memory).map_err(DeviceFilterError::State)?;
        let memory = SharedWords::open(memory, KIND).map_err(DeviceFilterError::Memory)?;
        DeviceFilter::over(state.setup, Arc::new(memory), state.memory, Arc::default())
    }

    /// Adds the filter to a state.
    pub fn export<'a>(&'a self, out: &mut Exporter<'a>) -> FilterState {
        if let Some(file) = self.memory.file() {
            out.fd(self.memory_id, file);
        }
        FilterState { setup: self.filter.setup().clone(), memory: self.memory_id }
    }

    /// Returns a filter with other settings. It keeps flows, learnt addresses and counts if MAC address and
    /// size of the flow table are the same.
    ///
    /// # Errors
    ///
    /// See [`DeviceFilterError`].
    pub fn with_setup(&self, setup: Setup) -> Result<DeviceFilter, DeviceFilterError> {
        let own = self.filter.setup();
        if (own.mac, own.flows) != (setup.mac, setup.flows) {
            return DeviceFilter::new(setup);
        }
        DeviceFilter::over(setup, self.memory.clone(), self.memory_id, self.log.clone())
    }

    /// Returns a filter with another policy and everything else of this one. Makes no system call.
    ///
    /// # Errors
    ///
    /// Fails if the policy cannot be used.
    pub fn with_policy(&self, text: Option<String>) -> Result<DeviceFilter, FilterError> {
        let filter = Arc::new(self.filter.with_policy(text)?);
        Ok(DeviceFilter { filter, ..self.clone() })
    }

    fn over(
        setup: Setup,
        memory: Arc<SharedWords>,
        memory_id: FdId,
        log: Arc<RefusalLog>,
    ) -> Result<DeviceFilter, DeviceFilterError> {
        let mut key = [0; 16];
        getrandom::fill(&mut key).map_err(DeviceFilterError::Random)?;
        let (halves, _) = key.as_chunks();
        let key = [halves[0], halves[1]].map(u64::from_ne_bytes);
        let filter = Arc::new(Filter::new(setup, memory.clone(), key)?);
        Ok(DeviceFilter { filter, memory, memory_id, log })
    }

    /// Puts this filter in front of a queue that is served without a [`NetDevice`]. `counters` are those of
    /// the queue's pair. Refused frames get no answer.
    ///
    /// [`NetDevice`]: crate::device::NetDevice
    pub fn before(&self, queue: Arc<dyn PortQueue>, counters: PairCounters) -> Arc<dyn PortQueue> {
        Arc::new(FilterQueue::new(self, queue, counters, None, None))
    }

    /// Returns the filter itself.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Returns the guest's IP addresses: given, learnt, and configured by itself.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.filter.addresses(clock::now())
    }

    /// Returns the list of refused frames. It begins with this process.
    pub fn log(&self) -> &RefusalLog {
        &self.log
    }
}

#[cfg(test)]
mod tests;
