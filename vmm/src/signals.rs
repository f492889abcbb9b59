//! Signals that end the machine in order, and those that stop this process and let it go on.
//!
//! They are blocked in every thread and taken by one thread of their own, so that no code is interrupted in
//! the middle of anything.
#![expect(unsafe_code, reason = "libc alone raises a signal in this thread")]

use std::io;
use std::mem;
use std::sync::Arc;

use libc::c_int;
use log::info;
use volt_program::logging;
use volt_program::signals::{ENDING, SignalSet, is_default, name};

use crate::board::exit::{ExitEvent, ExitReason, signal_status};
use crate::console::terminal;
use crate::sandbox::{self, lists::SIGNALS};

/// Starts the thread that waits for signals. Call before any other thread is started, except for those that
/// block all signals.
///
/// The first signal asks `exit` for the end, and leaves one that has begun alone. A second one, or a first
/// while nobody waits for the event yet (the builder waits for a back-end), ends the process at once.
///
/// # Errors
///
/// From the system.
pub fn watch(exit: Arc<ExitEvent>) -> io::Result<()> {
    let mut taken = vec![libc::SIGCONT];
    // Without those that whoever started the process wants ignored (nohup).
    for signal in ENDING.into_iter().chain([libc::SIGTSTP]) {
        if is_default(signal)? {
            taken.push(signal);
        }
    }
    let set = SignalSet::of(&taken);
    set.block()?;
    sandbox::spawn(&SIGNALS, "signals", move || {
        let mut asked = false;
        loop {
            if let Ok(signal) = set.wait() {
                take(signal, &exit, &mut asked);
            }
        }
    })?;
    Ok(())
}

/// Does what `signal` is for; `asked`: an earlier one has asked for the end.
fn take(signal: c_int, exit: &ExitEvent, asked: &mut bool) {
    match signal {
        libc::SIGTSTP => {
            stop();
            // No SIGCONT comes where the kernel has stopped nothing.
            go_on(exit);
        }
        libc::SIGCONT => go_on(exit),
        _ => {
            exit.request(ExitReason::Signal(signal));
            if mem::replace(asked, true) || !exit.is_watched() {
                terminal::give_up();
                info!(target: logging::END, event = "ended_at_once"; "ended at once by {}", name(signal));
                logging::exit(i32::from(signal_status(signal)));
            }
        }
    }
}

/// This process may have been stopped, and is not any more.
fn go_on(exit: &ExitEvent) {
    terminal::continued();
    exit.wake();
}

/// Does what SIGTSTP does by default, and leaves the terminal as a shell wants it. Returns when the process
/// goes on, which is at once in a process group that no shell could continue (`setsid`, `ssh -t`): the kernel
/// leaves it running.
fn stop() {
    terminal::give_up();
    let set = SignalSet::of(&[libc::SIGTSTP]);
    // SAFETY: a valid signal, for this thread. It is blocked here and has its default action.
    unsafe { libc::raise(libc::SIGTSTP) };
    // Fails for no valid set.
    let _ = set.unblock();
    let _ = set.block();
}
