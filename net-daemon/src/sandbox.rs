//! What each thread of volt-netd may do.
//!
//! The process is confined when it has opened everything and imported its state, right before it serves. The
//! threads that it makes then enter their own list first; the log's, which is there already, is told to.
//!
//! | thread | role |
//! |---|---|
//! | the main one | [`MAIN`](lists::MAIN) |
//! | of a queue pair, `pairN` | [`FRAMES`](lists::FRAMES) |
//! | of the control queue's descriptors, `vringN` | [`CONTROL`](lists::CONTROL) |
//! | that looks at a front-end's descriptors | [`DESCRIPTORS`](lists::DESCRIPTORS) |
//! | of the log | [`LOG`](lists::LOG) |

use std::sync::{Arc, PoisonError, RwLock};

use log::warn;
use volt_net::thread::{ThreadKind, on_start, prepare_signal};
use volt_program::logging;
use volt_sandbox::enter::{Landlock, Sandbox, SandboxError};
use volt_sandbox::role::Role;
use volt_virtio::error_chain;

pub(crate) mod lists;

use lists::{CONTROL, DESCRIPTORS, FRAMES, LOG, MAIN};

/// Of this process; none before it is confined.
static SANDBOX: RwLock<Option<Arc<Sandbox>>> = RwLock::new(None);

fn sandbox() -> Option<Arc<Sandbox>> {
    SANDBOX.read().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Confines this process. Called by the main thread, which has made no other but the log's.
///
/// # Errors
///
/// See [`SandboxError`]; it must not serve then.
pub(crate) fn confine() -> Result<(), SandboxError> {
    let sandbox = Arc::new(Sandbox::new(&[&MAIN, &FRAMES, &CONTROL, &DESCRIPTORS, &LOG])?);
    *SANDBOX.write().unwrap_or_else(PoisonError::into_inner) = Some(sandbox.clone());
    prepare_signal().map_err(|error| SandboxError::System("handling a signal", error))?;
    on_start(|kind| {
        enter(match kind {
            ThreadKind::Pair => &FRAMES,
            ThreadKind::Vring => &CONTROL,
            ThreadKind::Descriptors => &DESCRIPTORS,
        });
    });
    logging::in_its_thread(|| or_end(&LOG, Sandbox::confine));
    match sandbox.confine(&MAIN)? {
        Landlock::Whole => {}
        Landlock::Partly => log::debug!("this kernel's Landlock is older than what it is asked for"),
        Landlock::Missing => warn!("this kernel is without Landlock: system calls alone are filtered"),
    }
    Ok(())
}

fn enter(role: &'static Role) {
    or_end(role, |sandbox, role| sandbox.enter(role).map(|()| Landlock::Whole));
}

/// A thread that cannot be confined must not go on.
fn or_end(role: &'static Role, act: fn(&Sandbox, &'static Role) -> Result<Landlock, SandboxError>) {
    if let Some(sandbox) = sandbox()
        && let Err(error) = act(&sandbox, role)
    {
        logging::say(&format_args!("volt-netd: a thread cannot be confined: {}", error_chain(&error)));
        std::process::abort();
    }
}
