//! Notices that a processor works and does not get on.
//!
//! A KVM that emulates may meet an instruction that it neither carries out nor reports: `KVM_RUN` then burns processor time
//! for ever. Before the guest's first output nobody can tell that from a guest that is slow, so the main thread brings the boot
//! processor out of the guest once a second, and its thread looks at the registers. All of them: an emulated `rep movs` stays at one
//! instruction for a minute and counts down in RCX. Only the time counts that this thread has had the host's processor; a
//! guest that is halted or paused, and one that the host does not let run, have none.

use std::time::Duration;

use kvm_bindings::kvm_regs;
use rustix::time::{ClockId, clock_gettime};

/// How long the registers may stay what they are, in this thread's processor time.
const LIMIT: Duration = Duration::from_secs(5);

/// What one processor's thread has seen of its registers.
#[derive(Default)]
pub(super) struct Standstill {
    since: Option<(kvm_regs, Duration)>,
    told: bool,
}

impl Standstill {
    /// The guest did something that reached this process.
    pub(super) fn moved(&mut self) {
        self.since = None;
    }

    /// Takes the registers, and this thread's processor time up to now; answers once, with the time that it has stood still,
    /// when that is too long.
    pub(super) fn look(&mut self, registers: kvm_regs, used: Duration) -> Option<Duration> {
        match self.since {
            Some((before, since)) if before == registers => {
                let stood = used.saturating_sub(since);
                (stood >= LIMIT && !std::mem::replace(&mut self.told, true)).then_some(stood)
            }
            _ => {
                self.since = Some((registers, used));
                None
            }
        }
    }
}

/// The processor time of the calling thread, in the guest and in the kernel too.
pub(super) fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(rip: u64, rcx: u64) -> kvm_regs {
        kvm_regs { rip, rcx, ..Default::default() }
    }

    #[test]
    fn a_standstill_is_told_once() {
        let mut standstill = Standstill::default();
        let told: Vec<u32> =
            (0..60).filter(|&second| standstill.look(at(7, 1), SECOND * second).is_some()).collect();
        assert_eq!(told, [5]);
    }

    #[test]
    fn a_guest_that_gets_on_is_none() {
        let mut standstill = Standstill::default();
        for second in 0..60 {
            assert!(standstill.look(at(7, (60 - u64::from(second)) / 4), SECOND * second).is_none());
        }
        let mut standstill = Standstill::default();
        for second in 0..60 {
            assert!(standstill.look(at(7, 1), SECOND * second).is_none());
            // An exit, after which it is where it was.
            if second % 4 == 3 {
                standstill.moved();
            }
        }
    }

    /// As one that is halted or paused, or whose thread has to wait for the host's other work.
    #[test]
    fn a_guest_that_does_not_run_is_none() {
        let mut standstill = Standstill::default();
        for second in 0..600 {
            assert!(standstill.look(at(7, 1), SECOND * second / 200).is_none());
        }
    }
}
