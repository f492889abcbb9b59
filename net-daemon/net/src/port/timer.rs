//! A timer that ends a worker's wait: see [`PortQueue::wakers`](crate::port::PortQueue::wakers).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

/// Becomes readable once. Nobody reads it.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// Creates a timer.
    ///
    /// # Errors
    ///
    /// Fails if the process has no descriptor left.
    pub(crate) fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Timer(rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// Makes it readable `wait` from now, and not earlier.
    ///
    /// # Errors
    ///
    /// Fails if `wait` is longer than any timer.
    pub(crate) fn arm(&self, wait: Duration) -> io::Result<()> {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Timespec::try_from(wait).map_err(io::Error::other)?;
        let setting = Itimerspec { it_interval: never, it_value: once };
        rustix::time::timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &setting)?;
        Ok(())
    }
}

impl AsFd for Timer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
