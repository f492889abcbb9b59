//! The sandbox of each thread of volt-vmm.
//!
//! The main thread is confined after the machine is built, right before its vCPUs start. Earlier threads
//! confine themselves when they begin. Later threads inherit the limits of their creators, and enter their
//! own list.
//!
//! | threads | role |
//! |---|---|
//! | the main thread; `api...`; `net-port`; `maker`, `device`, `net-change`: changes of devices | [`MAIN`] |
//! | `vcpuN` | [`VCPU`](lists::VCPU) |
//! | `pairN` | [`FRAMES`] |
//! | `disk`, `rng`, `net-control` | [`WORKER`](lists::WORKER) |
//! | `net`, `net-timer`: a vhost-user back-end | [`BACK_END`](lists::BACK_END) |
//! | `serial`, `signals`, `log` | their own |
//!
//! Later operations that need a path or a privilege belong to the [opener](crate::opener), a separate
//! process.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle, Scope, ScopedJoinHandle};

use volt_net::thread::{on_start, prepare_signal};
use volt_program::check::log_landlock;
use volt_program::logging;
use volt_program::opener::CAPABILITIES;
use volt_sandbox::enter::{Keep, Sandbox, SandboxError};
use volt_sandbox::role::Role;
use volt_sandbox::violation;
use volt_virtio::error_chain;

pub mod lists;

pub use lists::TABLE;
use lists::{FRAMES, LOG, MAIN, OPENER};

/// Filters of all roles, compiled by the build script.
static SANDBOX: Sandbox = include!(concat!(env!("OUT_DIR"), "/sandbox.rs"));
/// Whether threads of this process are to be confined.
static PREPARED: AtomicBool = AtomicBool::new(false);
/// Whether the main thread is confined, and all threads that it creates.
static CONFINED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread is confined.
    static THIS_IS: Cell<bool> = const { Cell::new(false) };
}

/// Makes all threads that begin from now on confine themselves. `at_end` runs in a signal handler before the
/// end of a thread that violates its list. Called by the main thread while no other thread exists but the
/// log's.
///
/// # Errors
///
/// See [`SandboxError`].
pub fn prepare(at_end: fn()) -> Result<(), SandboxError> {
    let handling = |error| SandboxError::System("handling a signal", error);
    prepare_signal().map_err(handling)?;
    violation::handle().map_err(handling)?;
    violation::at_end(at_end);
    // Finds the clock's vDSO, with system calls that no list has.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    PREPARED.store(true, Ordering::Release);
    // Created by threads that start devices, which are all confined.
    on_start(|_| begin(&FRAMES, true));
    if !logging::in_its_thread(|| begin(&LOG, false)) {
        return Err(SandboxError::Log);
    }
    Ok(())
}

/// Confines the main thread, and the threads that it creates from here on. Does nothing without [`prepare`].
///
/// # Errors
///
/// See [`SandboxError`]. No vCPU may run after one.
pub fn confine() -> Result<(), SandboxError> {
    if !PREPARED.load(Ordering::Acquire) {
        return Ok(());
    }
    log_landlock(SANDBOX.confine(&MAIN, Keep::NOTHING)?);
    CONFINED.store(true, Ordering::Release);
    Ok(())
}

/// Confines the opener, whose only thread is this one.
///
/// # Errors
///
/// See [`SandboxError`].
pub fn confine_opener() -> Result<(), SandboxError> {
    let keep = Keep { outside: true, capabilities: CAPABILITIES, user: None };
    SANDBOX.confine(&OPENER, keep).map(drop)
}

/// Starts a thread of `role`.
///
/// # Errors
///
/// Fails if the process may have no more threads.
pub fn spawn<T: Send + 'static>(
    role: &'static Role,
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    let inherits = inherits();
    Builder::new().name(name.to_owned()).spawn(move || {
        begin(role, inherits);
        body()
    })
}

/// Like [`spawn`], but the thread ends with `scope`.
///
/// # Errors
///
/// See [`spawn`].
pub fn spawn_scoped<'s, T: Send + 's>(
    scope: &'s Scope<'s, '_>,
    role: &'static Role,
    name: &str,
    body: impl FnOnce() -> T + Send + 's,
) -> io::Result<ScopedJoinHandle<'s, T>> {
    let inherits = inherits();
    Builder::new().name(name.to_owned()).spawn_scoped(scope, move || {
        begin(role, inherits);
        body()
    })
}

/// Returns whether threads created by this thread are confined.
fn inherits() -> bool {
    THIS_IS.get() || CONFINED.load(Ordering::Acquire)
}

/// Begins a thread. A thread that cannot be confined must not run.
fn begin(role: &'static Role, inherits: bool) {
    if !PREPARED.load(Ordering::Acquire) {
        return;
    }
    let begun = match inherits {
        true => SANDBOX.enter(role),
        false => SANDBOX.confine(role, Keep::NOTHING).map(drop),
    };
    if let Err(error) = begun {
        let why = format_args!("volt-vmm: a thread cannot be confined: {}", error_chain(&error));
        logging::say("thread_not_confined", &why);
        std::process::abort();
    }
    THIS_IS.set(true);
}
