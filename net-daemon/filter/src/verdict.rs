//! The filter: one verdict for each frame.
//!
//! Several threads judge at the same time, each with its own frames. All that must outlive a process lies in
//! [`Memory`]: flows, neighbours, learnt addresses, counts.

use std::fmt;
use std::hash::Hasher;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use siphasher::sip::SipHasher13;
use thiserror::Error;

use crate::Way;
use crate::flows::table::{self, Locks, Table};
use crate::guard::Guard;
use crate::judge::{Judge, Objection, PolicyInForce};
pub use crate::memory::Memory;
use crate::memory::{self, NEIGHBOURS, Parts};
use crate::reason::Reason;
use crate::rules::{Mode, Policy, PolicyError};
use crate::setup::Setup;
use crate::wire::packet::{Words, words};
use crate::{rate, reply};

/// Bytes of a frame that are copied and judged, virtio-net header included. Longer frames go on after them
/// with payload that no rule looks at.
pub const JUDGED: usize = 2048;

/// Answers to refused frames in a second.
const REPLIES: u32 = 100;

/// Why there is no filter.
#[derive(Debug, Error)]
pub enum FilterError {
    /// The policy.
    #[error("the policy")]
    Policy(#[from] PolicyError),
    /// The memory does not fit the settings.
    #[error("the memory of the flow table has {0} words instead of {1}")]
    Memory(usize, usize),
}

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Pass,
    /// Pass it on, and note that a policy in force would refuse it: [`Mode::Log`].
    Note(Reason),
    /// Drop it.
    Refuse(Reason),
}

/// Judges frames.
pub struct Filter {
    setup: Setup,
    /// The given addresses, as they are compared.
    own: Vec<(Words, bool)>,
    policy: Option<Policy>,
    /// The server whose DHCP answers count.
    dhcp: Option<Ipv4Addr>,
    /// The number of the policy in the memory.
    number: u32,
    memory: Memory,
    flow_words: usize,
    locks: Locks,
    neighbour_locks: Locks,
    /// Answers to refused frames: see [`rate`].
    replies: AtomicU64,
}

impl Filter {
    /// Returns how many words a filter with these settings needs.
    pub fn words(setup: &Setup) -> usize {
        memory::words(table::words(setup.flows as usize))
    }

    /// Creates a filter. `key` is random, and used if the memory is new.
    ///
    /// # Errors
    ///
    /// See [`FilterError`].
    pub fn new(setup: Setup, memory: Memory, key: [u64; 2]) -> Result<Filter, FilterError> {
        Filter::over(setup, memory, Some(key))
    }

    /// Creates a filter. `key`: the memory is prepared, which no other filter may use at the same time for
    /// its counts to be right.
    fn over(setup: Setup, memory: Memory, key: Option<[u64; 2]>) -> Result<Filter, FilterError> {
        let policy = setup.policy.as_deref().map(Policy::parse).transpose()?;
        let (has, needs) = ((*memory).as_ref().len(), Filter::words(&setup));
        if has < needs {
            return Err(FilterError::Memory(has, needs));
        }
        let flow_words = table::words(setup.flows as usize);
        let parts = Parts::new(&memory, flow_words);
        if let Some(key) = key {
            table::prepare(parts.flows(), key, setup.flows as usize);
            table::prepare(parts.neighbours(), [key[1], key[0]], NEIGHBOURS);
        }
        let number = number(parts, setup.policy.as_deref());
        let learns = setup.learn.as_ref().and_then(|learn| learn.dhcp);
        let dhcp = learns.or_else(|| policy.as_ref().and_then(|policy| policy.network().dhcp));
        let (locks, neighbour_locks) = Default::default();
        Ok(Filter {
            own: setup.addresses.iter().map(|own| (words(*own), own.is_ipv4())).collect(),
            setup,
            policy,
            dhcp,
            number,
            memory,
            flow_words,
            locks,
            neighbour_locks,
            replies: AtomicU64::new(0),
        })
    }

    /// Returns a filter with another policy, which continues with the same memory. Flows are judged anew by
    /// the new policy with their next frames.
    ///
    /// # Errors
    ///
    /// See [`FilterError`].
    pub fn with_policy(&self, text: Option<String>) -> Result<Filter, FilterError> {
        Filter::over(Setup { policy: text, ..self.setup.clone() }, self.memory.clone(), None)
    }

    /// Returns the settings.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// Returns the policy.
    pub fn policy(&self) -> Option<&Policy> {
        self.policy.as_ref()
    }

    /// Judges a frame of `len` bytes, whose first bytes are in `frame`: all of them, or [`JUDGED`]. It begins
    /// with the virtio-net header, which is rebuilt from what the frame needs. `now` is in seconds of a clock
    /// that never goes back and goes on in the next process.
    ///
    /// A reason in the verdict is counted: see [`Filter::refused`].
    #[inline]
    pub fn judge(&self, way: Way, frame: &mut [u8], len: usize, now: u32) -> Verdict {
        let parts = self.parts();
        let judge = Judge {
            guard: Guard::new(&self.setup, &self.own, parts, now),
            policy: self.policy.as_ref().map(|rules| PolicyInForce {
                rules,
                number: self.number,
                parts,
                locks: [&self.locks, &self.neighbour_locks],
                most: self.setup.flows as usize,
                now,
            }),
            dhcp: self.dhcp,
            way,
            now,
        };
        match judge.frame(frame, len) {
            Ok(()) => Verdict::Pass,
            Err(objection) => self.object(parts, way, objection),
        }
    }

    #[cold]
    fn object(&self, parts: Parts<'_>, way: Way, objection: Objection) -> Verdict {
        let (Objection::Guard(reason) | Objection::Policy(reason)) = objection;
        parts.refused(way, reason).fetch_add(1, Relaxed);
        let logs = self.policy.as_ref().is_some_and(|policy| policy.mode() == Mode::Log);
        match objection {
            Objection::Policy(reason) if logs => Verdict::Note(reason),
            _ => Verdict::Refuse(reason),
        }
    }

    #[inline]
    fn parts(&self) -> Parts<'_> {
        Parts::new(&self.memory, self.flow_words)
    }

    /// Returns the frame, header first, that tells the guest that its frame was refused: a TCP reset or an
    /// ICMP error. `None` if none is due.
    #[cold]
    pub fn reply(&self, frame: &[u8], reason: Reason, now: u32) -> Option<Vec<u8>> {
        let policy = self.policy.as_ref().filter(|policy| !policy.is_silent())?;
        let wanted = policy.mode() == Mode::Enforce && reply::is_due(reason);
        if !wanted || !rate::has_room(&self.replies, now, REPLIES) {
            return None;
        }
        let reply = reply::to(frame)?;
        rate::count(&self.replies, now);
        Some(reply)
    }

    /// Returns the number of refused frames by way and reason, those of earlier processes included. In log
    /// mode, these are the frames that would have been refused.
    pub fn refused(&self) -> impl Iterator<Item = (Way, Reason, u64)> {
        let parts = self.parts();
        let all = Way::BOTH.into_iter().flat_map(|way| Reason::ALL.iter().map(move |reason| (way, *reason)));
        all.map(move |(way, reason)| (way, reason, parts.refused(way, reason).load(Relaxed)))
    }

    /// Returns the number of entries in the flow table, expired ones that were not found yet included.
    pub fn flows(&self) -> usize {
        Table::new(self.parts().flows(), &self.locks, self.setup.flows as usize, 0).used()
    }

    /// Returns the guest's IP addresses, learnt ones included.
    pub fn addresses(&self, now: u32) -> Vec<IpAddr> {
        Guard::new(&self.setup, &self.own, self.parts(), now).addresses()
    }
}

/// Returns the number of this policy: that of the memory, or the next one if the memory has seen another
/// policy last. So flows are judged anew whoever has changed it.
fn number(parts: Parts<'_>, policy: Option<&str>) -> u32 {
    let mut hasher = SipHasher13::new_with_keys(0, 0);
    hasher.write(policy.unwrap_or_default().as_bytes());
    let hash = hasher.finish();
    let (number, seen) = (parts.policy(), parts.policy_hash());
    if seen.load(Relaxed) != hash {
        number.fetch_add(1, Relaxed);
        seen.store(hash, Relaxed);
    }
    number.load(Relaxed) as u32
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").field("setup", &self.setup).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
