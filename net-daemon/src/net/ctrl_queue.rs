//! The control virtqueue served from its ring (virtio 1.2, section 5.1.6.5), for front-ends that leave it to the
//! back-end.

use log::{debug, warn};

use crate::net::counters::Counter;
use crate::net::ctrl::{self, ACK_ERR, ACK_OK, Command, Limits, MAX_COMMAND_LEN};
use crate::net::vring::Vring;
use crate::virtio::chain::ChainError;
use crate::virtio::memory::{IoPart, read_parts, write_parts};
use crate::virtio::ring::RingError;

/// Most commands served in one go; a driver has one outstanding.
const BATCH: usize = 16;

/// A control virtqueue that runs.
#[derive(Debug)]
pub struct ControlQueue {
    /// Its vring.
    pub vring: Vring,
    bad_chains: Counter,
}

impl ControlQueue {
    /// The control queue over `vring`.
    pub fn new(vring: Vring) -> ControlQueue {
        ControlQueue { vring, bad_chains: Counter::default() }
    }

    /// Hands each available command to `carry_out`, answers the driver, and says whether there may be more.
    ///
    /// # Errors
    ///
    /// When the driver broke the ring. What was carried out before is answered.
    pub fn run(&mut self, limits: Limits, carry_out: impl FnMut(Command)) -> Result<bool, RingError> {
        let more = self.batch(limits, carry_out);
        if self.vring.ring.publish() {
            self.call();
        }
        Ok(more? || self.vring.ring.enable_kicks()?)
    }

    fn batch(&mut self, limits: Limits, mut carry_out: impl FnMut(Command)) -> Result<bool, RingError> {
        for _ in 0..BATCH {
            let Some(head) = self.vring.ring.pop()? else { return Ok(false) };
            let written = match self.serve(head, limits, &mut carry_out) {
                Ok(()) => 1,
                Err(error) => {
                    self.vring.bad_chain(error, &self.bad_chains);
                    0
                }
            };
            self.vring.ring.push_used(head, written);
        }
        Ok(true)
    }

    /// Notifies the driver. Not by [`Vring::call`]: this runs on the main thread, which no descriptor may hold.
    pub fn call(&self) {
        if let Some(call) = self.vring.call.as_ref().filter(|call| call.is_ready()) {
            call.notify();
        }
    }

    fn serve(
        &mut self,
        head: u16,
        limits: Limits,
        carry_out: &mut impl FnMut(Command),
    ) -> Result<(), ChainError> {
        let (mut readable, mut writable) = (Vec::<IoPart>::new(), None);
        let mut len = 0;
        self.vring.ring.walk(head, |part, write| match write {
            true => writable = writable.or(Some(part)),
            false if len < MAX_COMMAND_LEN => {
                len += part.len();
                readable.push(part);
            }
            false => len = len.saturating_add(part.len()),
        })?;
        let ack = writable.ok_or(ChainError::Direction)?;
        if len > MAX_COMMAND_LEN {
            return Err(ChainError::Long(MAX_COMMAND_LEN));
        }
        let mut bytes = vec![0; len];
        read_parts(&readable, &mut bytes);
        let answer = match ctrl::parse(&bytes, limits) {
            Ok(command) => {
                debug!("control queue: {command:?}");
                carry_out(command);
                ACK_OK
            }
            Err(error) => {
                warn!("control queue: command refused: {error}");
                ACK_ERR
            }
        };
        write_parts(&[ack], 0, &[answer]);
        Ok(())
    }
}
