//! A network namespace that lasts as long as its threads and children: it has no name and needs no removal.

use std::process::Command;
use std::thread;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `body` on a thread in a new network namespace with its loopback up. Threads and processes that the
/// body starts are in the same namespace; the calling thread stays in its own.
///
/// # Errors
/// Returns the body's panic.
///
/// # Panics
/// If the kernel creates no namespace.
pub(super) fn run(body: impl FnOnce() + Send) -> thread::Result<()> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: only the network namespace of this new thread changes; file descriptor table, memory
            // and file system view stay shared with other threads.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace of the test's own");
            let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(status.is_ok_and(|status| status.success()), "ip link set lo up");
            body();
        });
        inside.join()
    })
}
