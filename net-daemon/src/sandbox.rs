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

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use log::warn;
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
use volt_sandbox::table::Table;
use volt_virtio::error_chain;

mod beside;
mod lists;

use beside::{OPENER, SUPERVISOR};
use lists::{CONTROL, DESCRIPTORS, FRAMES, LOG, MAIN, METRICS};

/// Of this process; none before it is confined.
static SANDBOX: RwLock<Option<Arc<Sandbox>>> = RwLock::new(None);
/// Signals that have handlers.
static TOLD_BY: OnceLock<SignalSet> = OnceLock::new();
static LEFT_OFF: AtomicBool = AtomicBool::new(false);
/// Who serves, if not the user who started it.
static USER: OnceLock<User> = OnceLock::new();

/// All roles, for `--print-sandbox`.
pub(crate) const TABLE: Table =
    Table(&[&MAIN, &FRAMES, &CONTROL, &DESCRIPTORS, &METRICS, &LOG, &SUPERVISOR, &OPENER]);

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
    warn!(
        event = "sandbox_off";
        "--sandbox=off: whoever takes this daemon over can do all that its user can"
    );
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
    process(&MAIN, &[&FRAMES, &CONTROL, &DESCRIPTORS, &METRICS], false)
}

/// Confines the supervisor, whose workers inherit that.
///
/// # Errors
///
/// See [`SandboxError`].
pub(crate) fn confine_supervisor() -> Result<(), SandboxError> {
    // The next worker's and systemd's sockets are outside.
    process(&SUPERVISOR, &[&METRICS], true)
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
    Sandbox::new(&[&OPENER])?.confine(&OPENER, keep)?;
    memory::give_back();
    Ok(())
}

/// Confines this process to what the main thread's `role` has, with or without what is `outside`; `others`
/// are those of threads to come.
fn process(role: &'static Role, others: &[&'static Role], outside: bool) -> Result<(), SandboxError> {
    if !is_on() {
        return Ok(());
    }
    let set = |sandbox| *SANDBOX.write().unwrap_or_else(PoisonError::into_inner) = Some(sandbox);
    let sandbox = Arc::new(Sandbox::new(&[&[role, &LOG], others].concat())?);
    set(sandbox.clone());
    let confine_log = || or_end(&LOG, |sandbox, role| sandbox.confine(role, keep(false)).map(drop));
    if !logging::in_its_thread(confine_log) {
        return Err(SandboxError::Log);
    }
    log_landlock(sandbox.confine(role, keep(outside))?);
    set(Arc::new(sandbox.only(others)));
    drop(sandbox);
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
    or_end(role, Sandbox::enter);
}

/// A thread that cannot be confined must not go on.
fn or_end(role: &'static Role, act: fn(&Sandbox, &'static Role) -> Result<(), SandboxError>) {
    let sandbox = SANDBOX.read().unwrap_or_else(PoisonError::into_inner).clone();
    if let Some(sandbox) = sandbox
        && let Err(error) = act(&sandbox, role)
    {
        let why = format_args!("volt-netd: a thread cannot be confined: {}", error_chain(&error));
        logging::say("thread_not_confined", &why);
        std::process::abort();
    }
}
