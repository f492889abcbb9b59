//! SIGTERM, SIGINT, SIGHUP and SIGQUIT end the machine in order.
//!
//! They are blocked in every thread and taken by one thread of their own, so that no code is interrupted in
//! the middle of anything.
#![expect(unsafe_code, reason = "signal masks exist in libc only")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::thread;

use libc::{c_int, sigset_t};
use log::info;

use crate::exit::{ExitEvent, ExitReason, signal_status};
use crate::terminal;

const ENDING: [c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// Starts the thread that waits for signals. Call before any other thread is started.
///
/// The first signal asks `exit` for the end. A second one, or a first while nobody waits for the event yet
/// (the builder waits for a back-end), ends the process at once.
///
/// # Errors
///
/// From the system.
pub fn watch(exit: Arc<ExitEvent>) -> io::Result<()> {
    let set = ending_signals();
    // SAFETY: `set` is initialised; the old mask is not asked for.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
    if result != 0 {
        return Err(io::Error::from_raw_os_error(result));
    }
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: both point to initialised variables of this frame.
            if unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
                take(signal, &exit);
            }
        }
    })?;
    Ok(())
}

fn take(signal: c_int, exit: &ExitEvent) {
    if !exit.request(ExitReason::Signal(signal)) || !exit.is_watched() {
        terminal::restore();
        info!("ended at once by signal {signal}");
        std::process::exit(i32::from(signal_status(signal)));
    }
}

/// The signals that end the process, without those that whoever started it wants ignored (nohup).
fn ending_signals() -> sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; the other calls get initialised data and valid numbers.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for signal in ENDING {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            libc::sigaction(signal, ptr::null(), &raw mut action);
            if action.sa_sigaction != libc::SIG_IGN {
                libc::sigaddset(&raw mut set, signal);
            }
        }
        set
    }
}
