//! Detects that a processor works without progress.
//!
//! A KVM that emulates may meet an instruction that it neither carries out nor reports. Then `KVM_RUN` uses
//! CPU time forever. Before the guest's first output, this cannot be distinguished from a slow guest by its
//! output. So the main thread brings the boot processor out of the guest once a second, and its thread
//! compares the registers. It compares all registers: an emulated `rep movs` stays at one instruction for a
//! minute and counts down in RCX. Only the CPU time of this thread counts, so that a busy host is not
//! mistaken for a stalled guest. A guest that is halted or paused uses some CPU time, too, at each check and
//! each tick. But its thread waits in between, and the thread of a working guest never does.

use std::mem::MaybeUninit;
use std::time::Duration;

use kvm_bindings::kvm_regs;
use rustix::time::{ClockId, clock_gettime};

/// How long the registers may stay the same, in CPU time of this thread.
const LIMIT: Duration = Duration::from_secs(5);

/// A thread's use of the host's processor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// CPU time in the guest and in the kernel.
    time: Duration,
    /// Number of waits, in which it gave up the processor (`voluntary_ctxt_switches` in /proc).
    waits: i64,
}

/// The observed registers of one processor.
#[derive(Default)]
pub(super) struct StallDetector {
    since: Option<(kvm_regs, Usage)>,
    told: bool,
}

impl StallDetector {
    /// Records that the guest caused an exit to this process.
    pub(super) fn moved(&mut self) {
        self.since = None;
    }

    /// Compares the registers, and the thread's usage. Returns once, with the CPU time without progress, if
    /// that is too long.
    pub(super) fn look(&mut self, registers: kvm_regs, used: Usage) -> Option<Duration> {
        match self.since {
            Some((before, since)) if before == registers && since.waits == used.waits => {
                let stood = used.time.saturating_sub(since.time);
                (stood >= LIMIT && !std::mem::replace(&mut self.told, true)).then_some(stood)
            }
            _ => {
                self.since = Some((registers, used));
                None
            }
        }
    }
}

/// Returns the usage of the calling thread.
pub(super) fn used() -> Usage {
    let time = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    // SAFETY: an all-zero rusage is a valid one.
    let mut usage: libc::rusage = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: fills the struct. Fails only for an unknown scope.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage) };
    Usage { time, waits: usage.ru_nvcsw }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(rip: u64, rcx: u64) -> kvm_regs {
        kvm_regs { rip, rcx, ..Default::default() }
    }

    fn working(time: Duration) -> Usage {
        Usage { time, waits: 3 }
    }

    #[test]
    fn a_standstill_is_told_once() {
        let mut detector = StallDetector::default();
        let told: Vec<u32> =
            (0..60).filter(|&second| detector.look(at(7, 1), working(SECOND * second)).is_some()).collect();
        assert_eq!(told, [5]);
    }

    /// The stall is reported even if the host rarely runs it.
    #[test]
    fn a_standstill_on_a_busy_host_is_told_later() {
        let mut detector = StallDetector::default();
        let told: Vec<u32> =
            (0..600).filter(|&look| detector.look(at(7, 1), working(SECOND * look / 20)).is_some()).collect();
        assert_eq!(told, [100]);
    }

    #[test]
    fn a_guest_that_gets_on_is_none() {
        let mut detector = StallDetector::default();
        for second in 0..60 {
            let registers = at(7, (60 - u64::from(second)) / 4);
            assert!(detector.look(registers, working(SECOND * second)).is_none());
        }
        let mut detector = StallDetector::default();
        for second in 0..60 {
            assert!(detector.look(at(7, 1), working(SECOND * second)).is_none());
            // An exit, after which it continues at the same place.
            if second % 4 == 3 {
                detector.moved();
            }
        }
    }

    /// Like a guest that is halted or paused, for hours.
    #[test]
    fn a_guest_that_waits_is_none() {
        let mut detector = StallDetector::default();
        for look in 0..10_000 {
            let used = Usage { time: SECOND * look / 200, waits: look.into() };
            assert!(detector.look(at(7, 1), used).is_none());
        }
    }

    #[test]
    fn a_thread_that_sleeps_waits() {
        let before = used();
        std::thread::sleep(Duration::from_millis(1));
        assert!(used().waits > before.waits);
    }
}
