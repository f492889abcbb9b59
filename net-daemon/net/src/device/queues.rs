//! The queues in front of a port's queue: see [`crate::port`] for their order.

use std::collections::btree_map::Entry;
use std::io;
use std::sync::Arc;

use super::{DeviceError, NetDevice};
use crate::filter::{DeviceFilter, FilterQueue};
use crate::port::PortQueue;
use crate::port::inject::Injector;
use crate::worker::WorkerError;

/// Answers to refused frames that a pair's guest has not taken.
const ANSWERS: usize = 64;

impl NetDevice {
    /// Sets or removes the filter of all pairs, from the next start of each.
    pub fn set_filter(&mut self, filter: Option<DeviceFilter>) {
        self.filter = filter;
    }

    /// Returns the filter in force.
    pub fn filter(&self) -> Option<&DeviceFilter> {
        self.filter.as_ref()
    }

    /// Returns the queue for the frames of `pair`, with everything that stands in front of the port's.
    pub(super) fn queues(&mut self, pair: usize) -> Result<Arc<dyn PortQueue>, DeviceError> {
        let failed = |error| DeviceError { pair, source: WorkerError::Start(error) };
        let mut queue = self.port.queue(pair);
        if let Some(limiter) = &self.limiter {
            queue = limiter.limit(queue, self.counters.pair(pair)).map_err(failed)?;
        }
        if let Some(filter) = self.filter.clone() {
            // It delivers injected frames as well.
            queue = self.filtered(pair, queue, &filter).map_err(failed)?;
        } else if let Some(injector) = self.injectors.get(&pair) {
            queue = injector.before(queue);
        }
        Ok(match &self.capture {
            Some(capture) if self.filter.is_some() => capture.before_filter(pair, queue),
            Some(capture) => capture.before(pair, queue),
            None => queue,
        })
    }

    /// Puts `filter` in front of `queue`. Also judges a frame that waits for the guest: it may have been
    /// received without this filter.
    fn filtered(
        &mut self,
        pair: usize,
        queue: Arc<dyn PortQueue>,
        filter: &DeviceFilter,
    ) -> io::Result<Arc<dyn PortQueue>> {
        let injector = match self.injectors.entry(pair) {
            Entry::Occupied(own) => own.get().clone(),
            Entry::Vacant(place) => place.insert(Injector::new(ANSWERS)?).clone(),
        };
        let capture = self.capture.as_ref().and_then(|capture| capture.judged(pair));
        let filtered = FilterQueue::new(filter, queue, self.counters.pair(pair), Some(injector), capture);
        if self.stashes[pair].as_mut().is_some_and(|frame| !filtered.admits(frame)) {
            self.stashes[pair] = None;
        }
        Ok(Arc::new(filtered))
    }
}
