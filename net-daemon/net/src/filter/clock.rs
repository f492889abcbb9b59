//! The clock of flows.
#![expect(unsafe_code, reason = "clock_gettime of the C library")]

/// Returns the time for [`Filter::judge`](volt_filter::verdict::Filter::judge), in seconds since the machine
/// started. The coarse clock is read without a system call and costs a few nanoseconds. The C library has
/// found the vDSO at the start of the process. Others look for it at their first call, by a system call that
/// a confined thread may not make.
#[inline]
pub(super) fn now() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is written, and nothing else. The clock exists since Linux 2.6.32, so this does
    // not fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec as u32
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn seconds_pass() {
        let (began, first) = (Instant::now(), now());
        assert!(first > 0, "the machine has run for a second");
        while now() == first {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(now() > first);
    }
}
