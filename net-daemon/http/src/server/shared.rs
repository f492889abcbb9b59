//! State that the threads of a server share: counts, and the server's end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

/// The counted things.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    /// Connections that are being served.
    Connections,
    /// Requests whose head has arrived and whose response is not written yet.
    Requests,
    /// Running closures of [`Turn::carry_out`](super::Turn::carry_out), including those that nobody waits for
    /// any more.
    Work,
}

/// The counts, by [`Count`].
#[derive(Debug, Default)]
struct State {
    counts: [usize; 3],
    ends: bool,
}

/// Shared by the threads of a server. Threads that the server does not wait for keep it alive.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Becomes readable for all pollers when the end begins.
    end: OwnedFd,
    /// Becomes readable when the server stops waiting for responses.
    over: OwnedFd,
}

impl Shared {
    pub(super) fn new() -> io::Result<Shared> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Shared { state: Mutex::default(), changed: Condvar::new(), end: event()?, over: event()? })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the end: nothing new may start.
    pub(super) fn begin_end(&self) {
        self.state().ends = true;
        self.changed.notify_all();
        // The first write to an eventfd cannot fail.
        let _ = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
    }

    /// Finishes the end: nobody waits for clients any more.
    pub(super) fn finish_end(&self) {
        let _ = rustix::io::write(&self.over, &1_u64.to_ne_bytes());
    }

    /// Whether the end has begun.
    pub(super) fn ends(&self) -> bool {
        self.state().ends
    }

    /// Becomes readable when the end begins.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Becomes readable when the end is over.
    pub(super) fn over(&self) -> BorrowedFd<'_> {
        self.over.as_fd()
    }

    /// Counts one more if there are fewer than `most`.
    pub(super) fn try_count(self: &Arc<Self>, what: Count, most: usize) -> Option<Counted> {
        let mut state = self.state();
        let count = &mut state.counts[what as usize];
        (*count < most).then(|| {
            *count += 1;
            Counted { shared: self.clone(), what }
        })
    }

    /// Like [`Shared::try_count`], but waits until there are fewer. Returns `None` if the server ends.
    pub(super) fn count(self: &Arc<Self>, what: Count, most: usize) -> Option<Counted> {
        let full = |state: &mut State| state.counts[what as usize] >= most && !state.ends;
        let waited = self.changed.wait_while(self.state(), full);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.ends {
            return None;
        }
        state.counts[what as usize] += 1;
        Some(Counted { shared: self.clone(), what })
    }

    /// Waits until there are none, for up to `limit`.
    pub(super) fn wait_for_none(&self, what: Count, limit: Duration) {
        let some = |state: &mut State| state.counts[what as usize] > 0;
        let _ = self.changed.wait_timeout_while(self.state(), limit, some);
    }
}

/// One item, counted until this value is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    shared: Arc<Shared>,
    what: Count,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.shared.state().counts[self.what as usize] -= 1;
        self.shared.changed.notify_all();
    }
}
