//! The user's terminal in raw mode, and its restoration in all cases.
//!
//! This process uses the terminal while it is in the foreground, which a shell's `&`, `bg` and `fg` change.
//! The main thread calls [`Terminal::follow`] before it waits, and takes input in the foreground only.
//! Dropping the [`Terminal`] restores the settings. The signal thread calls [`give_up`]. The panic hook and
//! the handler of fatal signals call [`restore`].
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

/// The terminal's original settings, stored before they are changed.
static FOUND: OnceLock<Termios> = OnceLock::new();
/// Whether the settings are changed, as far as this process knows.
static RAW: AtomicBool = AtomicBool::new(false);
/// Whether this process was stopped since then, so that another process may have changed the settings.
static STALE: AtomicBool = AtomicBool::new(false);
/// Whether this process is about to stop or to end, and leaves the terminal alone. A thread that takes or
/// gives up the terminal holds the lock to the end. Otherwise the terminal could be taken again between
/// giving it up and the stop.
static LEFT: Mutex<bool> = Mutex::new(false);

/// Standard input's terminal. In raw mode in the foreground, until dropped.
#[derive(Debug)]
pub struct Terminal {
    told: Option<bool>,
}

impl Terminal {
    /// Returns `None` if standard input is not a terminal. Changes nothing before [`Terminal::follow`].
    pub fn find() -> Option<Terminal> {
        tcgetattr(stdin()).ok().map(|_| Terminal { told: None })
    }

    /// Takes the terminal if this process is in the foreground. Returns whether it is.
    ///
    /// Each key then goes to the guest, Ctrl-C included. Output processing stays on, so that a log line's end
    /// moves the cursor back to the left.
    pub fn follow(&mut self) -> bool {
        let Some((foreground, taken)) = take() else { return false };
        let news = self.told.replace(foreground) != Some(foreground);
        match taken {
            _ if !news => {}
            Err(error) => {
                warn!(event = "terminal_by_lines"; "the terminal sends lines, not keys: {error}");
            }
            Ok(()) if foreground => info!(
                event = "terminal_keys";
                "Ctrl-A x ends the machine, Ctrl-A a sends a Ctrl-A"
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

/// Returns whether this process is in the foreground, and the result of taking the terminal. Returns `None`
/// while the terminal is left alone.
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

/// Returns whether this process may read and set the terminal on standard input. A terminal that does not
/// control this process has no background.
pub fn is_foreground() -> bool {
    // Not with rustix, whose process groups are never 0. The kernel's group is 0 if its leader is outside of
    // this PID namespace.
    // SAFETY: plain calls with plain values.
    let (theirs, ours) = unsafe { (libc::tcgetpgrp(STDIN_FILENO), libc::getpgrp()) };
    theirs == -1 || theirs == ours
}

/// Restores the terminal's settings if they were changed. Safe in a signal handler, and can be repeated.
pub fn restore() {
    // In the background, the settings belong to the process in the foreground.
    if let Some(found) = FOUND.get()
        && RAW.swap(false, Ordering::SeqCst)
        && is_foreground()
    {
        // Async-signal-safe, like the test for the foreground: rustix makes its ioctl as a bare system call,
        // which takes no lock and allocates nothing.
        let _ = tcsetattr(stdin(), OptionalActions::Now, found);
    }
}

/// Restores the terminal for a process that ends, or stops until [`continued`].
pub fn give_up() {
    let mut left = left();
    *left = true;
    restore();
}

/// Notes that this process continues after a stop. [`Terminal::follow`] then takes the terminal again,
/// whatever its settings are.
pub fn continued() {
    STALE.store(true, Ordering::SeqCst);
    *left() = false;
}

/// Restores the terminal before a fatal signal ends the process.
///
/// # Errors
///
/// An error of the system.
pub fn restore_on_fatal_signals() -> io::Result<()> {
    const FATAL: [c_int; 7] =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];
    for signal in FATAL {
        // SAFETY: an all-zero sigaction is a valid one.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = on_fatal as *const () as usize;
        // Once only: the handler returns, the fault repeats, and the default action follows. On the alternate
        // stack, because the ordinary one may have overflowed.
        action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK;
        // SAFETY: the handler calls only async-signal-safe functions.
        if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_fatal(signal: c_int) {
    restore();
    // For a signal that was sent, which no fault repeats. A fault gets its default action before this or
    // here, with the same result.
    // SAFETY: raise is async-signal-safe.
    unsafe { libc::raise(signal) };
}
