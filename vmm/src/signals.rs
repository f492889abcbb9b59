//! Signals that end the machine in order, and those that stop this process and let it go on.
//!
//! They are blocked in every thread and taken by one thread of their own, so that no code is interrupted in
//! the middle of anything.
#![expect(unsafe_code, reason = "signal masks exist in libc only")]

use std::io;
use std::mem::{self, MaybeUninit};
use std::ptr;
use std::sync::Arc;
use std::thread;

use libc::{SIG_BLOCK, SIG_UNBLOCK, c_int, sigset_t};
use log::info;
use volt_program::logging;
use volt_program::signals::{ENDING, is_default, name};

use crate::board::exit::{ExitEvent, ExitReason, signal_status};
use crate::console::terminal;

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
    let set = set_of(&taken);
    mask(SIG_BLOCK, &set)?;
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut asked = false;
        loop {
            let mut signal = 0;
            // SAFETY: both point to initialised variables of this frame.
            if unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
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
                info!(target: logging::END, "ended at once by {}", name(signal));
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
    let set = set_of(&[libc::SIGTSTP]);
    // SAFETY: a valid signal, for this thread. It is blocked here and has its default action.
    unsafe { libc::raise(libc::SIGTSTP) };
    // Fails for no valid set.
    let _ = mask(SIG_UNBLOCK, &set);
    let _ = mask(SIG_BLOCK, &set);
}

fn mask(how: c_int, set: &sigset_t) -> io::Result<()> {
    // SAFETY: `set` is initialised; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(how, set, ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn set_of(signals: &[c_int]) -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set.
    let mut set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    };
    for &signal in signals {
        // SAFETY: `set` is initialised. A number that is no signal is refused.
        unsafe { libc::sigaddset(&raw mut set, signal) };
    }
    set
}
