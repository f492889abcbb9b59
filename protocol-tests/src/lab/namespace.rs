//! A network namespace that lasts as long as its threads and children do: nothing to name, nothing to remove.

use std::process::Command;
use std::thread;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `body` on a thread in a new network namespace with its loopback up. What the body spawns, threads and
/// processes, is born into the same namespace; this thread stays where it is.
///
/// # Errors
/// The body's panic.
///
/// # Panics
/// When the kernel makes no namespace.
pub(super) fn run(body: impl FnOnce() + Send) -> thread::Result<()> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: only the network namespace changes, and only this new thread's; no file descriptor
            // table, memory or file system view that other threads rely on is taken apart.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace of the test's own");
            let status = Command::new("ip").args(["link", "set", "lo", "up"]).status();
            assert!(status.is_ok_and(|status| status.success()), "ip link set lo up");
            body();
        });
        inside.join()
    })
}
