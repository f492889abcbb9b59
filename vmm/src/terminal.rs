//! The user's terminal in raw mode, and back again whatever happens.
//!
//! [`RawMode`] restores it when dropped; the panic hook, the signal thread and the handler of fatal signals
//! call [`restore`].
#![expect(unsafe_code, reason = "termios and signal handlers exist in libc only")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use libc::{STDIN_FILENO, TCSANOW, c_int, termios};

/// The terminal's settings as we found them; written before they are changed.
static FOUND: OnceLock<termios> = OnceLock::new();
/// Whether they are changed now.
static RAW: AtomicBool = AtomicBool::new(false);

/// Standard input's terminal in raw mode, until dropped.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Passes each key to the guest, Ctrl-C included; `None` when standard input is no terminal.
    ///
    /// Output processing stays on, so that a log line's end brings the cursor back to the left.
    ///
    /// # Errors
    ///
    /// From the terminal.
    pub fn enter() -> io::Result<Option<RawMode>> {
        let mut settings = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the struct or fails.
        if unsafe { libc::tcgetattr(STDIN_FILENO, settings.as_mut_ptr()) } != 0 {
            return Ok(None);
        }
        // SAFETY: tcgetattr succeeded.
        let settings = unsafe { settings.assume_init() };
        let mut raw = *FOUND.get_or_init(|| settings);
        let output = raw.c_oflag;
        // SAFETY: changes only the struct.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        raw.c_oflag = output;
        RAW.store(true, Ordering::SeqCst);
        // SAFETY: reads only the struct.
        if unsafe { libc::tcsetattr(STDIN_FILENO, TCSANOW, &raw const raw) } != 0 {
            let error = io::Error::last_os_error();
            restore();
            return Err(error);
        }
        Ok(Some(RawMode(())))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal's settings back if they were changed. Safe in a signal handler, and any number of times.
pub fn restore() {
    if let Some(found) = FOUND.get()
        && RAW.swap(false, Ordering::SeqCst)
    {
        // SAFETY: reads only the struct; tcsetattr is async-signal-safe.
        unsafe { libc::tcsetattr(STDIN_FILENO, TCSANOW, ptr::from_ref(found)) };
    }
}

/// Restores the terminal before a fatal signal ends the process.
///
/// # Errors
///
/// From the system.
pub fn restore_on_fatal_signals() -> io::Result<()> {
    const FATAL: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT];
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
