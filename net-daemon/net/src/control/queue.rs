//! A control virtqueue that is served from its ring (virtio 1.2, section 5.1.6.5), for front-ends that leave
//! it to the back-end.

use std::sync::Arc;

use log::warn;
use volt_virtio::chain::ChainError;
use volt_virtio::notify::Notifier;
use volt_virtio::part::{IoPart, read_parts, write_parts};
use volt_virtio::ring::{Head, RingError};

use crate::control::command::{self, Command, Limits, MAX_COMMAND_LEN};
use crate::control::relay::Relay;
use crate::counters::Counters;
use crate::vring::Vring;
use crate::worker::WorkerError;

/// Maximum number of commands in one go. A driver has one outstanding.
const BATCH: usize = 16;

/// A running control virtqueue.
#[derive(Debug)]
pub struct ControlQueue {
    /// Its vring.
    pub vring: Vring,
    /// Handles its descriptors: the main thread serves this queue, and no descriptor may block it.
    relay: Relay,
    counters: Counters,
}

impl ControlQueue {
    /// Creates the control queue over `vring`.
    ///
    /// # Errors
    ///
    /// Fails if no thread can be started for its descriptors, or if its kick descriptor does not support
    /// waiting.
    pub fn new(vring: Vring) -> Result<ControlQueue, WorkerError> {
        Ok(ControlQueue { relay: Relay::start(&vring)?, vring, counters: Counters::default() })
    }

    /// Becomes readable when the driver has kicked. The caller must clear it.
    pub fn kicked(&self) -> &Arc<Notifier> {
        self.relay.kicked()
    }

    /// Passes each available command to `carry_out`. Returns whether there may be more. The driver gets no
    /// answer before [`ControlQueue::answer`], so that the caller can record changes first.
    ///
    /// # Errors
    ///
    /// Fails if the driver broke the ring.
    pub fn run(&mut self, limits: Limits, mut carry_out: impl FnMut(Command)) -> Result<bool, RingError> {
        let mut more = true;
        for served in 0..BATCH {
            let index = self.vring.ring.next_index();
            let head = match self.vring.ring.pop() {
                Ok(Some(head)) => head,
                Ok(None) => {
                    more = false;
                    break;
                }
                // Answer the commands that were carried out first. The next call fails again.
                Err(_) if served > 0 => break,
                Err(error) => return Err(error),
            };
            let begun = self.vring.begin(index);
            let written = match begun.and_then(|()| self.serve(head, limits, &mut carry_out)) {
                Ok(()) => 1,
                Err(error) => {
                    self.vring.bad_chain(error, &self.counters.tx_bad_chain, &self.counters);
                    0
                }
            };
            self.vring.ring.push_used(head, written);
        }
        self.vring.idle();
        Ok(more)
    }

    /// Answers the driver. Returns whether more commands have arrived.
    ///
    /// # Errors
    ///
    /// Fails if the driver broke the ring.
    pub fn answer(&mut self) -> Result<bool, RingError> {
        if self.vring.ring.publish() {
            self.call();
        }
        self.vring.ring.enable_kicks()
    }

    /// Notifies the driver.
    pub fn call(&self) {
        self.relay.call();
    }

    /// Tells the front-end that the ring is broken.
    pub fn err(&self) {
        self.relay.err();
    }

    fn serve(
        &self,
        head: Head,
        limits: Limits,
        carry_out: &mut impl FnMut(Command),
    ) -> Result<(), ChainError> {
        let (mut readable, mut writable) = (Vec::<IoPart<'_>>::new(), None);
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
        let result = command::execute(len, |bytes| read_parts(&readable, bytes), limits, carry_out);
        if let Err(error) = &result {
            warn!(event = "control_command_refused"; "control queue: command refused: {error}");
        }
        write_parts(&[ack], 0, &[command::ack(&result)]);
        self.vring.ring.mark_written(&[ack], 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use volt_virtio::features::Features;
    use volt_virtio::testing::{BUFFERS, Driver};

    use super::*;
    use crate::testing::Rig;

    #[test]
    fn commands_before_a_broken_entry_are_answered() {
        let mut driver = Driver::new(8, Features::empty());
        let mut control = ControlQueue::new(Rig::vring(&driver, 4)).unwrap();
        driver.write(BUFFERS, &[4, 0, 2, 0]);
        driver.add(&[(BUFFERS, 4, false), (BUFFERS + 64, 1, true)]);
        driver.offer(8);
        let limits = Limits { acked: Features::NET_MQ, max_pairs: 2 };
        let mut commands = Vec::new();
        assert_eq!(control.run(limits, |command| commands.push(command)), Ok(true));
        assert_eq!(commands, [Command::SetPairs(2)]);
        assert_eq!(control.answer(), Ok(true));
        assert_eq!(driver.take_used(), [(0, 1)]);
        assert!(control.run(limits, |_| panic!("carried out twice")).is_err());
    }
}
