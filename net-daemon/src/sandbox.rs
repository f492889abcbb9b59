//! What each thread of volt-netd may do.
//!
//! The process is confined when it has opened everything and imported its state, right before it serves. The
//! threads that it makes then enter their own list first; the log's, which is there already, is told to.
//!
//! | thread | role |
//! |---|---|
//! | the main one | [`MAIN`] |
//! | of a queue pair, `pairN` | [`FRAMES`] |
//! | of the control queue's descriptors, `vringN` | [`CONTROL`] |
//! | that looks at a front-end's descriptors | [`DESCRIPTORS`] |
//! | that serves metrics, here or in the supervisor, and its clients' | [`METRICS`] |
//! | of the log | [`LOG`] |
//!
//! The supervisor, which maps nothing of a guest's, keeps what starting a worker takes; the opener what
//! opening takes.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::CapabilitySet;
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

/// Filters of all roles. The build script has compiled them.
static SANDBOX: Sandbox = include!(concat!(env!("OUT_DIR"), "/sandbox.rs"));
/// Threads that begin in this process are confined.
static CONFINED: AtomicBool = AtomicBool::new(false);
/// Signals that have handlers.
static TOLD_BY: OnceLock<SignalSet> = OnceLock::new();
static LEFT_OFF: AtomicBool = AtomicBool::new(false);
/// Who serves, if not the user who started it.
static USER: OnceLock<User> = OnceLock::new();

/// Why nobody else can serve.
#[derive(Debug, Error)]
pub(crate) enum UserError {
    #[error("there is no user '{0}': create one, as 'useradd --system --no-create-home {0}' does")]
    Unknown(String),
    #[error("--user {0} takes root: start volt-netd as root, or as {0} without --user")]
    NotRoot(String),
}

/// Has processes that serve be `name`'s when they are confined.
pub(crate) fn serve_as(name: &str) -> Result<(), UserError> {
    let user = accounts::user(name).ok_or_else(|| UserError::Unknown(name.to_owned()))?;
    if !rustix::process::geteuid().is_root() {
        return Err(UserError::NotRoot(name.to_owned()));
    }
    let _ = USER.set(user);
    Ok(())
}

/// Who serves, if not the user who started it.
pub(crate) fn user() -> Option<u32> {
    USER.get().map(|user| user.user)
}

fn keep(outside: bool) -> Keep {
    Keep { outside, user: USER.get().map(|user| (user.user, user.group)), ..Keep::NOTHING }
}

/// Whether processes are confined.
pub(crate) fn is_on() -> bool {
    !LEFT_OFF.load(Ordering::Relaxed)
}

/// Confines no process from here on.
pub(crate) fn leave_off() {
    LEFT_OFF.store(true, Ordering::Relaxed);
}

/// Confines this process, which serves a guest and is told to end by `signals`. Called by the main thread,
/// which has made no other but the log's.
///
/// # Errors
///
/// See [`SandboxError`]; it must not serve then.
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

/// Confines the supervisor, whose workers inherit that.
///
/// # Errors
///
/// See [`SandboxError`].
pub(crate) fn confine_supervisor() -> Result<(), SandboxError> {
    // The next worker's and systemd's sockets are outside.
    process(&SUPERVISOR, true)
}

/// Confines the opener, which has no thread but this one.
///
/// # Errors
///
/// See [`SandboxError`].
pub(crate) fn confine_opener() -> Result<(), SandboxError> {
    if !is_on() {
        return Ok(());
    }
    let keep = Keep { outside: true, capabilities: CAPABILITIES | CapabilitySet::KILL, user: None };
    SANDBOX.confine(&OPENER, keep)?;
    memory::give_back();
    Ok(())
}

/// Confines this process to what the main thread's `role` has, with or without what is `outside`.
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

/// Confines the thread that serves metrics, and with it those that it makes.
pub(crate) fn enter_metrics() {
    enter(&METRICS);
}

/// For a thread beside the main one, which alone takes the signals that tell this process something: what
/// their handlers do is not in this one's list.
fn enter(role: &'static Role) {
    // An error is no reason not to serve, as the kernel prefers the main thread anyhow.
    let _ = TOLD_BY.get().map(SignalSet::block);
    if CONFINED.load(Ordering::Relaxed) {
        or_end(SANDBOX.enter(role));
    }
}

/// A thread that cannot be confined must not go on.
fn or_end(confined: Result<(), SandboxError>) {
    if let Err(error) = confined {
        let why = format_args!("volt-netd: a thread cannot be confined: {}", error_chain(&error));
        logging::say("thread_not_confined", &why);
        std::process::abort();
    }
}
