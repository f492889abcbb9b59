//! Guest to wire: chains of the transmit queue to the port, one batch at a time.
//!
//! Header and payload go to the port as the guest wrote them. No decision depends on bytes that the guest can
//! still change: this module checks lengths, and the kernel checks contents after it has copied them. A
//! [filter](crate::filter) judges and sends its own copy.

use volt_virtio::chain::ChainError;
use volt_virtio::gather::{Chain, Gathered};
use volt_virtio::part::{IoPart, read_parts};
use volt_virtio::ring::{Head, RingError};

use crate::batch::{BATCH, Turn};
use crate::counters::{Counters, DropReason};
use crate::health::{Health, Verdict};
use crate::port::queue::MAX_PARTS;
use crate::port::{MAX_FRAME_LEN, MIN_FRAME_LEN, PortQueue};
use crate::vring::Vring;

/// The transmit half of a queue pair.
#[derive(Debug)]
pub struct Tx {
    pub(crate) vring: Vring,
    /// Whether the front-end disabled the ring after it was enabled: frames that the guest kicks for are
    /// dropped.
    pub discard: bool,
    /// Whether the worker polls the ring: no kicks until [`Tx::expect_kicks`].
    pub polled: bool,
    parts: Gathered,
    /// Buffer for a frame in more parts than one call accepts.
    bounce: Vec<u8>,
}

impl Tx {
    /// Creates the transmit half over `vring`.
    pub fn new(vring: Vring, discard: bool) -> Tx {
        let parts = Gathered::new(&vring.ring, MAX_PARTS);
        Tx { vring, discard, polled: false, parts, bounce: Vec::new() }
    }

    /// Returns the used index as the driver sees it.
    pub fn base(&self) -> u16 {
        self.vring.ring.base()
    }

    /// Sends up to [`BATCH`] frames, but at most half a ring, and publishes them.
    ///
    /// # Errors
    ///
    /// Fails if the driver broke the ring. Frames that were sent before are published.
    pub fn run(
        &mut self,
        port: &dyn PortQueue,
        health: &mut Health,
        counters: &Counters,
    ) -> Result<Turn, RingError> {
        self.vring.ring.disable_kicks();
        let turn = self.batch(port, health, counters);
        let turn = match port.flush() {
            Ok(()) => turn,
            Err(error) => left_behind(turn, health.failed(&error), counters),
        };
        self.vring.idle();
        self.vring.publish(counters);
        match turn? {
            Turn::Idle if !self.polled && self.expect_kicks()? => Ok(Turn::More),
            Turn::PortFull => {
                counters.tx_waits.add(1);
                Ok(Turn::PortFull)
            }
            turn => Ok(turn),
        }
    }

    /// Asks the driver for kicks. Returns whether there is something to send already.
    ///
    /// # Errors
    ///
    /// Fails if the driver broke the ring.
    pub fn expect_kicks(&mut self) -> Result<bool, RingError> {
        self.vring.ring.enable_kicks()
    }

    fn batch(
        &mut self,
        port: &dyn PortQueue,
        health: &mut Health,
        counters: &Counters,
    ) -> Result<Turn, RingError> {
        for _ in 0..BATCH {
            if self.vring.ring.is_due() {
                break;
            }
            let index = self.vring.ring.next_index();
            let Some(head) = self.vring.ring.pop()? else { return Ok(Turn::Idle) };
            match self.vring.begin(index).and_then(|()| self.collect(head)) {
                Err(error) => self.vring.bad_chain(error, &counters.tx_bad_chain, counters),
                Ok(_) if self.discard => self.dropped(DropReason::TxDisabled, port, counters),
                Ok(_) => match self.send(port, health, counters) {
                    Some(Verdict::Wait) => {
                        self.vring.ring.unpop();
                        return Ok(Turn::PortFull);
                    }
                    Some(Verdict::Refused) => self.dropped(DropReason::TxRefused, port, counters),
                    Some(Verdict::NoPort) => self.dropped(DropReason::TxNoPort, port, counters),
                    None => {}
                },
            }
            // The device writes nothing to a transmit chain.
            self.vring.ring.push_used(head, 0);
        }
        Ok(Turn::More)
    }

    /// Gathers the chain's parts. Returns the frame's length, header included.
    #[inline]
    fn collect(&mut self, head: Head) -> Result<usize, ChainError> {
        self.parts.clear();
        match self.parts.single(&self.vring.ring, head, MIN_FRAME_LEN..=MAX_FRAME_LEN, false) {
            Some(len) => Ok(len),
            None => self.collect_chain(head),
        }
    }

    #[inline(never)]
    fn collect_chain(&mut self, head: Head) -> Result<usize, ChainError> {
        // One byte more than the longest frame shows that a frame is too long.
        match self.parts.chain(&self.vring.ring, head, MAX_FRAME_LEN + 1)? {
            Chain { writable: true, .. } => Err(ChainError::Direction),
            Chain { len, .. } if len < MIN_FRAME_LEN => Err(ChainError::Short(len)),
            Chain { len, .. } if len > MAX_FRAME_LEN => Err(ChainError::Long(MAX_FRAME_LEN)),
            Chain { len, .. } => Ok(len),
        }
    }

    /// Drops the frame that was collected last.
    #[cold]
    fn dropped(&self, reason: DropReason, port: &dyn PortQueue, counters: &Counters) {
        counters.dropped(reason).add(1);
        let parts = self.parts.from(0);
        port.dropped(reason, parts, parts.iter().map(|part| part.len()).sum());
    }

    /// Sends the frame that was collected last. Returns `None` if the port accepted it.
    #[inline]
    fn send(&mut self, port: &dyn PortQueue, health: &mut Health, counters: &Counters) -> Option<Verdict> {
        let sent = match self.parts.len() {
            0..=MAX_PARTS => port.send(self.parts.from(0)),
            _ => port.send(&[linear(self.parts.from(0), &mut self.bounce)]),
        };
        match sent {
            Ok(bytes) => {
                health.works();
                counters.tx_frames.add(1);
                counters.tx_bytes.add(bytes as u64);
                None
            }
            Err(error) => health.failed(&error),
        }
    }
}

/// Returns how a batch ends that the port did not pass on as a whole.
#[cold]
fn left_behind(
    turn: Result<Turn, RingError>,
    verdict: Option<Verdict>,
    counters: &Counters,
) -> Result<Turn, RingError> {
    match verdict {
        Some(Verdict::Wait) => turn.map(|_| Turn::PortFull),
        Some(Verdict::Refused) => {
            counters.tx_refused.add(1);
            turn
        }
        _ => turn,
    }
}

/// Copies a frame of too many parts into one.
#[cold]
fn linear<'b>(parts: &[IoPart<'_>], bounce: &'b mut Vec<u8>) -> IoPart<'b> {
    bounce.resize(MAX_FRAME_LEN, 0);
    let len = read_parts(parts, bounce);
    IoPart::from_slice(&mut bounce[..len])
}

#[cfg(test)]
mod tests;
