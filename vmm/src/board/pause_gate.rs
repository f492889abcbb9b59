//! The gate that closes while a machine is paused.
//!
//! Every thread that works for the guest is a [`Member`]. vCPUs pass the gate between two exits, devices'
//! workers between two requests. [`PauseGate::close`] returns when all of them wait at it. From then on they
//! do not touch the guest's memory until [`PauseGate::open`]. While the gate is open, passing costs the read
//! of one flag.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

/// Interval of the kicks of a member. A kick may be lost right before a system call.
const AGAIN: Duration = Duration::from_millis(2);

/// Error that names the members that did not come to the gate in time.
#[derive(Debug, Error)]
#[error("{} did not stop within {} s", names.join(", "), limit.as_secs_f32())]
pub struct PauseTimeout {
    /// The names of the threads.
    pub names: Vec<String>,
    /// The time that they had.
    pub limit: Duration,
}

/// The gate of a machine. It is open at first.
#[derive(Default)]
pub struct PauseGate {
    closed: AtomicBool,
    members: Mutex<Members>,
    changed: Condvar,
}

#[derive(Default)]
struct Members {
    next: u64,
    all: BTreeMap<u64, Entry>,
}

struct Entry {
    name: String,
    waits: bool,
    kick: Box<dyn Fn() + Send>,
}

impl PauseGate {
    /// Makes the calling thread a member: it works for the guest from now on, until the member is dropped.
    /// `kick` must make it call [`Member::pass`] soon, from any sleep. `kick` is called on other threads,
    /// while the member exists.
    pub fn join(self: &Arc<PauseGate>, name: &str, kick: impl Fn() + Send + 'static) -> Member {
        let mut members = self.members();
        let id = members.next;
        members.next += 1;
        members.all.insert(id, Entry { name: name.to_owned(), waits: false, kick: Box::new(kick) });
        Member { gate: self.clone(), id }
    }

    /// Closes the gate, and waits until all members wait at it.
    ///
    /// # Errors
    ///
    /// Fails if a member does not come within `limit`. The gate is open again then.
    pub fn close(&self, limit: Duration) -> Result<(), PauseTimeout> {
        let end = Instant::now() + limit;
        let mut members = self.members();
        self.closed.store(true, Ordering::SeqCst);
        loop {
            let late: Vec<_> = members.all.values().filter(|entry| !entry.waits).collect();
            if late.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                let names = late.iter().map(|entry| entry.name.clone()).collect();
                drop(members);
                self.open();
                return Err(PauseTimeout { names, limit });
            }
            late.iter().for_each(|entry| (entry.kick)());
            let waited = self.changed.wait_timeout(members, AGAIN);
            members = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Opens the gate.
    pub fn open(&self) {
        let _members = self.members();
        self.closed.store(false, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Makes waiting members check again whether they must end.
    pub fn wake(&self) {
        let _members = self.members();
        self.changed.notify_all();
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that works for the guest.
pub struct Member {
    gate: Arc<PauseGate>,
    id: u64,
}

impl Member {
    /// Waits while the gate is closed, unless `ended` returns true because this thread must end. The thread
    /// that makes it true calls [`PauseGate::wake`]. Returns whether it waited.
    pub fn pass(&self, ended: impl Fn() -> bool) -> bool {
        if !self.gate.closed.load(Ordering::SeqCst) {
            return false;
        }
        let mut waited = false;
        let mut members = self.gate.members();
        while self.gate.closed.load(Ordering::SeqCst) && !ended() {
            waited = true;
            self.set_waits(&mut members, true);
            self.gate.changed.notify_all();
            members = self.gate.changed.wait(members).unwrap_or_else(PoisonError::into_inner);
        }
        self.set_waits(&mut members, false);
        waited
    }

    fn set_waits(&self, members: &mut Members, waits: bool) {
        if let Some(entry) = members.all.get_mut(&self.id) {
            entry.waits = waits;
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.gate.members().all.remove(&self.id);
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    /// Counts as long as the gate is open, with short sleeps only.
    fn counting(
        gate: &Arc<PauseGate>,
        count: &Arc<AtomicU64>,
        end: &Arc<AtomicBool>,
    ) -> thread::JoinHandle<()> {
        let (gate, count, end) = (gate.clone(), count.clone(), end.clone());
        let member = gate.join("counter", || {});
        thread::spawn(move || {
            while !end.load(Ordering::SeqCst) {
                member.pass(|| end.load(Ordering::SeqCst));
                count.fetch_add(1, Ordering::SeqCst);
            }
        })
    }

    #[test]
    fn nobody_works_while_it_is_closed() {
        let (gate, count, end) = (Arc::<PauseGate>::default(), Arc::default(), Arc::default());
        let threads = [(); 3].map(|()| counting(&gate, &count, &end));
        for _ in 0..20 {
            gate.close(LIMIT).unwrap();
            gate.close(LIMIT).unwrap();
            let before = count.load(Ordering::SeqCst);
            thread::sleep(Duration::from_millis(2));
            assert_eq!(count.load(Ordering::SeqCst), before);
            gate.open();
            while count.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
        }
        gate.close(LIMIT).unwrap();
        // A thread also ends at a closed gate.
        end.store(true, Ordering::SeqCst);
        gate.wake();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        gate.close(LIMIT).unwrap();
    }

    #[test]
    fn a_member_that_does_not_come_is_named_and_nobody_stays_closed_out() {
        let gate = Arc::<PauseGate>::default();
        let busy = gate.join("busy", || {});
        let late = gate.close(Duration::from_millis(20)).unwrap_err();
        assert_eq!(late.names, ["busy"]);
        assert!(!busy.pass(|| false));
    }
}
