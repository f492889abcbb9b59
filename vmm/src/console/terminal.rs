//! The user's terminal in raw mode, and back again whatever happens.
//!
//! It is this process's while that is in the foreground, which a shell's `&`, `bg` and `fg` change. The main
//! thread asks [`Terminal::follow`] before it waits, and takes input in the foreground only; a terminal is
//! put back when the [`Terminal`] is dropped. The signal thread calls [`give_up`], the panic hook and the
//! handler of fatal signals [`restore`].
#![expect(unsafe_code, reason = "signal handlers exist in libc only")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libc::{STDIN_FILENO, c_int};
use log::{info, warn};
use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// The terminal's settings as we found them; written before they are changed.
static FOUND: OnceLock<Termios> = OnceLock::new();
/// They are changed, as far as we know.
static RAW: AtomicBool = AtomicBool::new(false);
/// This process has been stopped since: whoever had the terminal meanwhile may have changed them.
static STALE: AtomicBool = AtomicBool::new(false);
/// This process is about to stop or to end, and leaves the terminal alone. Whoever takes or gives up the
/// terminal holds the lock to the end: otherwise it could be taken between its giving up and the stop.
static LEFT: Mutex<bool> = Mutex::new(false);

/// Standard input's terminal, in raw mode in the foreground, until dropped.
#[derive(Debug)]
pub struct Terminal {
    told: Option<bool>,
}

impl Terminal {
    /// `None` when standard input is no terminal. Nothing is changed before [`Terminal::follow`].
    pub fn find() -> Option<Terminal> {
        tcgetattr(stdin()).ok().map(|_| Terminal { told: None })
    }

    /// Takes the terminal as soon as this process is in the foreground, or is there again; whether it is.
    ///
    /// Each key then goes to the guest, Ctrl-C included. Output processing stays on, so that a log line's end
    /// brings the cursor back to the left.
    pub fn follow(&mut self) -> bool {
        let Some((foreground, taken)) = take() else { return false };
        let news = self.told.replace(foreground) != Some(foreground);
        match taken {
            _ if !news => {}
            Err(error) => warn!(event = "terminal_by_lines"; "the terminal gives keys line by line: {error}"),
            Ok(()) if foreground => info!(
                event = "terminal_keys";
                "Ctrl-A x leaves the machine, Ctrl-A a sends a Ctrl-A"
            ),
            Ok(()) => info!(
                event = "terminal_in_background";
                "in the background: the guest gets no keys until `fg`"
            ),
        }
        foreground
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether this process is in the foreground, and there, what came of taking the terminal; `None` while that
/// is left alone.
fn take() -> Option<(bool, io::Result<()>)> {
    let left = left();
    if *left {
        return None;
    }
    let foreground = is_foreground();
    let wanted = foreground && (STALE.swap(false, Ordering::SeqCst) || !RAW.load(Ordering::SeqCst));
    Some((foreground, if wanted { enter() } else { Ok(()) }))
}

fn left() -> MutexGuard<'static, bool> {
    LEFT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Puts the terminal into raw mode.
fn enter() -> io::Result<()> {
    let settings = tcgetattr(stdin())?;
    let mut raw = FOUND.get_or_init(|| settings).clone();
    let output = raw.output_modes;
    raw.make_raw();
    raw.output_modes = output;
    RAW.store(true, Ordering::SeqCst);
    if let Err(error) = tcsetattr(stdin(), OptionalActions::Now, &raw) {
        restore();
        return Err(error.into());
    }
    Ok(())
}

/// Whether the terminal on standard input is this process's to read and to set. One that does not control
/// this process knows no background.
pub fn is_foreground() -> bool {
    // Not by rustix, whose process groups are never 0: the kernel's are, where a group's leader is outside of
    // this PID namespace.
    // SAFETY: plain calls with plain values.
    let (theirs, ours) = unsafe { (libc::tcgetpgrp(STDIN_FILENO), libc::getpgrp()) };
    theirs == -1 || theirs == ours
}

/// Puts the terminal's settings back if they were changed. Safe in a signal handler, and any number of times.
pub fn restore() {
    // In the background they are those of whoever has the terminal now.
    if let Some(found) = FOUND.get()
        && RAW.swap(false, Ordering::SeqCst)
        && is_foreground()
    {
        // Async-signal-safe, as is what finds out the foreground: rustix makes its ioctl by a bare system
        // call, which takes no lock and allocates nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Now, found);
    }
}

/// Puts it back for a process that ends, or stops until [`continued`].
pub fn give_up() {
    let mut left = left();
    *left = true;
    restore();
}

/// This process goes on after a stop: [`Terminal::follow`] takes the terminal again, whatever its settings
/// are now.
pub fn continued() {
    STALE.store(true, Ordering::SeqCst);
    *left() = false;
}

/// Restores the terminal before a fatal signal ends the process.
///
/// # Errors
///
/// From the system.
pub fn restore_on_fatal_signals() -> io::Result<()> {
    const FATAL: [c_int; 7] =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];
    for signal in FATAL {
        // SAFETY: an all-zero sigaction is a valid one.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_fatal as *const () as usize;
        // Once only: the handler returns, the fault comes again and does what it does by default. On the
        // alternate stack, because the ordinary one may be what overflowed.
        action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
        // SAFETY: the handler only calls what is async-signal-safe.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_fatal(signal: c_int) {
    restore();
    // For a signal that somebody sent, which no fault repeats; a fault gets its default action first or
    // now, which is the same.
    // SAFETY: raise is async-signal-safe.
    unsafe { libc::raise(signal) };
}
