//! Signals that end the machine in order, and signals that stop this process and continue it.
//!
//! Every thread blocks them, and one thread takes them. So no code is interrupted halfway.
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

/// Starts the thread that waits for signals. Call it before any other thread starts, except for threads that
/// block all signals.
///
/// The first signal requests the end from `exit`, unless the end has begun. A second signal ends the process
/// at once, and so does a first one while nothing waits for the event yet (while the builder waits for a
/// back-end).
///
/// # Errors
///
/// An error of the system.
pub fn watch(exit: Arc<ExitEvent>) -> io::Result<()> {
    let mut taken = vec![libc::SIGCONT];
    // Signals that were ignored at the start (nohup) stay ignored.
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

/// Acts on `signal`. `asked` tells whether an earlier signal has requested the end.
fn take(signal: c_int, exit: &ExitEvent, asked: &mut bool) {
    match signal {
        libc::SIGTSTP => {
            stop();
            // No SIGCONT comes if the kernel did not stop the process.
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

/// Continues after a possible stop of this process.
fn go_on(exit: &ExitEvent) {
    terminal::continued();
    exit.wake();
}

/// Does the default action of SIGTSTP, and restores the terminal for the shell first. Returns when the
/// process continues. In a process group that no shell could continue (`setsid`, `ssh -t`), that is at once,
/// because the kernel leaves it running.
fn stop() {
    terminal::give_up();
    let set = SignalSet::of(&[libc::SIGTSTP]);
    // SAFETY: a valid signal, for this thread. It is blocked here and has its default action.
    unsafe { libc::raise(libc::SIGTSTP) };
    // Only an invalid set fails.
    let _ = set.unblock();
    let _ = set.block();
}
