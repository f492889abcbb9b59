//! The sandbox of volt-netd's threads.
//!
//! The process is confined right before it serves, after it has opened everything and imported its state.
//! Threads created later enter the list of their role first. The log thread already exists and is told to
//! enter its list.
//!
//! | thread | role |
//! |---|---|
//! | main thread | [`MAIN`] |
//! | `pairN`: a queue pair | [`FRAMES`] |
//! | `vringN`: the control queue's descriptors | [`CONTROL`] |
//! | inspection of a front-end's descriptors | [`DESCRIPTORS`] |
//! | metrics server and its clients, here or in the supervisor | [`METRICS`] |
//! | log | [`LOG`] |
//!
//! The supervisor maps no guest memory, and keeps the calls to start a worker. The opener keeps the calls to
//! open interfaces and sockets.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use thiserror::Error;
use volt_net::thread::{ThreadKind, on_start, prepare_signal};
use volt_program::accounts::{self, User};
use volt_program::check::log_landlock;
use volt_program::opener::CAPABILITIES;
use volt_program::signals::SignalSet;
use volt_program::{logging, memory};
use volt_sandbox::enter::{Keep, Sandbox, SandboxError};
use volt_sandbox::role::Role;
use volt_virtio::error_chain;

mod beside;
mod lists;
mod roles;

use beside::{OPENER, SUPERVISOR};
use lists::{CONTROL, DESCRIPTORS, FRAMES, LOG, MAIN, METRICS};
pub(crate) use roles::TABLE;

/// Filters of all roles, compiled by the build script.
static SANDBOX: Sandbox = include!(concat!(env!("OUT_DIR"), "/sandbox.rs"));
/// New threads of this process are confined.
static CONFINED: AtomicBool = AtomicBool::new(false);
/// Signals that have handlers.
static TOLD_BY: OnceLock<SignalSet> = OnceLock::new();
static LEFT_OFF: AtomicBool = AtomicBool::new(false);
/// The user of `--user`.
static USER: OnceLock<User> = OnceLock::new();

/// Capabilities to open an interface by AF_XDP, besides those for any interface: for the socket, for the
/// program, and to exceed the limit for locked memory.
const FOR_XDP: CapabilitySet =
    CapabilitySet::NET_RAW.union(CapabilitySet::BPF).union(CapabilitySet::IPC_LOCK);

/// Why the daemon cannot serve as another user.
#[derive(Debug, Error)]
pub(crate) enum UserError {
    #[error("there is no user '{0}': create one, for example with 'useradd --system --no-create-home {0}'")]
    Unknown(String),
    #[error("--user {0} requires root: start volt-netd as root, or as {0} without --user")]
    NotRoot(String),
}

/// Makes serving processes switch to user `name` when they are confined.
pub(crate) fn serve_as(name: &str) -> Result<(), UserError> {
    let user = accounts::user(name).ok_or_else(|| UserError::Unknown(name.to_owned()))?;
    if !rustix::process::geteuid().is_root() {
        return Err(UserError::NotRoot(name.to_owned()));
    }
    let _ = USER.set(user);
    Ok(())
}

/// Returns the user of `--user`.
pub(crate) fn user() -> Option<u32> {
    USER.get().map(|user| user.user)
}

fn keep(outside: bool) -> Keep {
    Keep { outside, user: USER.get().map(|user| (user.user, user.group)), ..Keep::NOTHING }
}

/// Returns whether processes are confined.
pub(crate) fn is_on() -> bool {
    !LEFT_OFF.load(Ordering::Relaxed)
}

/// Turns the sandbox off for all processes from now on.
pub(crate) fn leave_off() {
    LEFT_OFF.store(true, Ordering::Relaxed);
}

/// Confines this process, which serves a guest and is told to end by `signals`. Called by the main thread
/// when the log's is the only other thread.
///
/// # Errors
///
/// See [`SandboxError`]. The process must not serve after an error.
pub(crate) fn confine(signals: &[libc::c_int]) -> Result<(), SandboxError> {
    let _ = TOLD_BY.set(SignalSet::of(signals));
    prepare_signal().map_err(|error| SandboxError::System("handling a signal", error))?;
    on_start(|kind| {
        enter(match kind {
            ThreadKind::Pair => &FRAMES,
            ThreadKind::Vring => &CONTROL,
            ThreadKind::Descriptors => &DESCRIPTORS,
        });
    });
    process(&MAIN, false)
}

/// Confines the supervisor. Its workers inherit the sandbox.
///
/// # Errors
///
/// See [`SandboxError`].
pub(crate) fn confine_supervisor() -> Result<(), SandboxError> {
    // The supervisor reaches sockets outside the sandbox: the next worker's and systemd's.
    process(&SUPERVISOR, true)
}

/// Confines the opener, which has a single thread.
///
/// # Errors
///
/// See [`SandboxError`].
pub(crate) fn confine_opener() -> Result<(), SandboxError> {
    if !is_on() {
        return Ok(());
    }
    let keep = Keep { outside: true, capabilities: CAPABILITIES | CapabilitySet::KILL | FOR_XDP, user: None };
    SANDBOX.confine(&OPENER, keep)?;
    memory::give_back();
    Ok(())
}

/// Takes the capabilities from the opener that only AF_XDP needs.
///
/// # Errors
///
/// Returns the system's error.
pub(crate) fn opener_without_xdp() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    sets.effective -= FOR_XDP;
    sets.permitted -= FOR_XDP;
    sets.inheritable -= FOR_XDP;
    Ok(set_capabilities(None, sets)?)
}

/// Confines this process to the main thread's `role`, with or without access to processes `outside`.
fn process(role: &'static Role, outside: bool) -> Result<(), SandboxError> {
    if !is_on() {
        return Ok(());
    }
    CONFINED.store(true, Ordering::Relaxed);
    let confine_log = || or_end(SANDBOX.confine(&LOG, keep(false)).map(drop));
    if !logging::in_its_thread(confine_log) {
        return Err(SandboxError::Log);
    }
    log_landlock(SANDBOX.confine(role, keep(outside))?);
    memory::give_back();
    Ok(())
}

/// Confines the metrics server's thread, and the threads that it creates.
pub(crate) fn enter_metrics() {
    enter(&METRICS);
}

/// Confines a thread other than the main one. Blocks the signals with handlers, which the main thread takes:
/// this thread's list lacks the handlers' system calls.
fn enter(role: &'static Role) {
    // An error is ignored, as the kernel prefers the main thread anyway.
    let _ = TOLD_BY.get().map(SignalSet::block);
    if CONFINED.load(Ordering::Relaxed) {
        or_end(SANDBOX.enter(role));
    }
}

/// Ends the process if a thread could not be confined.
fn or_end(confined: Result<(), SandboxError>) {
    if let Err(error) = confined {
        let why = format_args!("volt-netd: a thread cannot be confined: {}", error_chain(&error));
        logging::say("thread_not_confined", &why);
        std::process::abort();
    }
}
