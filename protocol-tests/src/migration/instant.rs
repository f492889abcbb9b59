//! A worker's thread under the oracle, instruction by instruction: whenever it dies, no published page is
//! without a mark, except those of used rings, which the next worker marks when it starts.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rustix::process::Pid;

use crate::daemon::poll_until;
use crate::dirty_log::DirtyLog;
use crate::migration::oracle::Oracle;
use crate::nic::Nic;
use crate::rig::LIMIT;
use crate::trace::Traced;

/// Time in a system call after which a thread that has nothing to do counts as asleep.
const ASLEEP: Duration = Duration::from_millis(100);

/// Returns the thread of the first queue pair of process `worker`.
///
/// # Panics
/// If there is none.
pub fn pair_thread(worker: Pid) -> Pid {
    let tasks = format!("/proc/{}/task", worker.as_raw_nonzero());
    let is_pair = |path: &std::path::Path| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim() == "pair0")
    };
    // A thread names itself when it starts.
    let found = poll_until(LIMIT, || {
        std::fs::read_dir(&tasks).ok()?.flatten().map(|task| task.path()).find(|path| is_pair(path))
    });
    let number = found.and_then(|path| path.file_name()?.to_str()?.parse().ok());
    number.and_then(Pid::from_raw).expect("its pair's thread")
}

/// What a thread did.
#[derive(Debug)]
pub struct Walk {
    /// Instructions that it executed.
    pub instructions: u64,
    /// The thread, stopped.
    pub thread: Traced,
}

/// Lets a stopped thread execute up to `most` instructions, until it sleeps while `done`. Calls `look` after
/// each.
///
/// # Panics
/// If it ends, or does nothing for a long time before it is done.
pub fn walk(thread: Traced, most: u64, mut look: impl FnMut(), done: impl Fn() -> bool) -> Walk {
    let mut instructions = 0;
    while instructions < most {
        thread.step().expect("it has stopped");
        let start = Instant::now();
        let stopped = loop {
            match thread.status().expect("it lives") {
                Some(status) if status.stopped() => break true,
                Some(status) => panic!("the thread ended: {status:?}"),
                None if start.elapsed() > ASLEEP && done() => break false,
                None => assert!(start.elapsed() < LIMIT, "the thread sleeps, and nothing is done"),
            }
        };
        look();
        if !stopped {
            thread.stop().expect("it stops");
            break;
        }
        instructions += 1;
    }
    Walk { instructions, thread }
}

/// Returns the ranges that the device has published in the rings of `nic` and that the driver has not taken:
/// of receive queues, as far as they were written.
pub fn published(nic: &Nic) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    for queue in nic.queues.iter().step_by(2) {
        let (ring, mut index) = (&queue.ring, queue.ring.last_used());
        while index != ring.used_idx() {
            let (head, mut left) = ring.used_entry(index);
            for part in queue.parts_of(head as u16) {
                let len = part.len.min(left);
                ranges.push((part.addr, u64::from(len)));
                left -= len;
            }
            index = index.wrapping_add(1);
        }
    }
    ranges
}

/// Returns the pages without a mark that a death at this instant would lose: not those of used rings.
pub fn lost(nic: &Nic, oracle: &Oracle, log: &DirtyLog) -> BTreeSet<u64> {
    oracle.missing(log, &published(nic)).into_iter().filter(|page| !oracle.is_ring(*page)).collect()
}
