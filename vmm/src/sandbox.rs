//! What each thread of volt-vmm may do.
//!
//! The main thread is confined when the machine is built, right before its vCPUs start. Threads that are
//! there already have been confined by then: each confines itself when it begins. Those that come later have
//! what their makers have, and enter their own list.
//!
//! | threads | role |
//! |---|---|
//! | the main one; `maker`, `device`, `net-change`: devices that start, change and stop; `api...`; `net-port` | [`MAIN`] |
//! | `vcpuN` | [`VCPU`](lists::VCPU) |
//! | `pairN` | [`FRAMES`] |
//! | `disk`, `rng`, `net-control` | [`WORKER`](lists::WORKER) |
//! | `net`, `net-timer`: a vhost-user back-end | [`BACK_END`](lists::BACK_END) |
//! | `serial`, `signals`, `log` | their own |
//!
//! What takes a path or a privilege later on is the [opener](crate::opener)'s, a process of its own.

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

/// Filters of all roles. The build script has compiled them.
static SANDBOX: Sandbox = include!(concat!(env!("OUT_DIR"), "/sandbox.rs"));
/// Threads of this process are to be confined.
static PREPARED: AtomicBool = AtomicBool::new(false);
/// The main thread is confined, and so is whatever it makes.
static CONFINED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread is.
    static THIS_IS: Cell<bool> = const { Cell::new(false) };
}

/// Has all threads that begin from now on be confined; `at_end` is done before the end of one that violates
/// its list, in a signal's handler. Called by the main thread, beside which there is the log's alone.
///
/// # Errors
///
/// See [`SandboxError`].
pub fn prepare(at_end: fn()) -> Result<(), SandboxError> {
    let handling = |error| SandboxError::System("handling a signal", error);
    prepare_signal().map_err(handling)?;
    violation::handle().map_err(handling)?;
    violation::at_end(at_end);
    // Finds the clock's vDSO by what no list has.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    PREPARED.store(true, Ordering::Release);
    // Made by threads that start devices, all of which are confined.
    on_start(|_| begin(&FRAMES, true));
    if !logging::in_its_thread(|| begin(&LOG, false)) {
        return Err(SandboxError::Log);
    }
    Ok(())
}

/// Confines the main thread, and what it makes from here on. Does nothing where nothing was
/// [prepared](prepare).
///
/// # Errors
///
/// See [`SandboxError`]; no vCPU may run then.
pub fn confine() -> Result<(), SandboxError> {
    if !PREPARED.load(Ordering::Acquire) {
        return Ok(());
    }
    log_landlock(SANDBOX.confine(&MAIN, Keep::NOTHING)?);
    CONFINED.store(true, Ordering::Release);
    Ok(())
}

/// Confines the opener, which has no thread but this one.
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
/// When the process may have no more.
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

/// The same for a thread that ends with `scope`.
///
/// # Errors
///
/// As above.
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

/// Whether what this thread makes is confined.
fn inherits() -> bool {
    THIS_IS.get() || CONFINED.load(Ordering::Acquire)
}

/// Begins a thread. One that cannot be confined must not go on.
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
