//! What the threads of a server have in common: how many there are, and that it ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    /// Connections that are served.
    Connections,
    /// Requests whose head has come and whose answer is not written.
    Requests,
    /// Closures of [`Turn::carry_out`](super::Turn::carry_out) that run, also when nobody waits for them any
    /// more.
    Work,
}

/// How many there are, by [`Count`].
#[derive(Debug, Default)]
struct State {
    counts: [usize; 3],
    ends: bool,
}

/// Shared by the threads of a server, and outlives it in those that it does not wait for.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Can be read from the end on, by everybody who polls.
    end: OwnedFd,
    /// The same from when answers are not waited for any more.
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

    /// From now on nothing new is begun.
    pub(super) fn begin_end(&self) {
        self.state().ends = true;
        self.changed.notify_all();
        // A first write to a counter does not fail.
        let _ = rustix::io::write(&self.end, &1_u64.to_ne_bytes());
    }

    /// From now on nobody waits for a client.
    pub(super) fn finish_end(&self) {
        let _ = rustix::io::write(&self.over, &1_u64.to_ne_bytes());
    }

    /// Whether the end has begun.
    pub(super) fn ends(&self) -> bool {
        self.state().ends
    }

    /// Can be read from the end on.
    pub(super) fn end(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// Can be read when the end is over.
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

    /// The same, and waits until there are fewer; `None` when the server ends.
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

    /// Waits until there are none, for `limit` at most.
    pub(super) fn wait_for_none(&self, what: Count, limit: Duration) {
        let some = |state: &mut State| state.counts[what as usize] > 0;
        let _ = self.changed.wait_timeout_while(self.state(), limit, some);
    }
}

/// One that counts until this is dropped.
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
