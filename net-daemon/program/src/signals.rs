//! Signals that end a program by default, sorted by their meaning.
//!
//! [`ENDING`] tell a program to end, and it does so in order. Each program handles them in its own way.
//! [`prepare`] ignores signals that are no reason to end. The others are faults of the program, or cannot be
//! caught.
#![expect(unsafe_code, reason = "only libc has signal actions")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use libc::c_int;

mod set;

pub use set::{SignalFd, SignalSet};

/// Termination signals: from a user, from the terminal, from a limit of CPU time (RLIMIT_CPU), from a power
/// failure, or from a timer. Timers survive `exec`, so some programs start another one for a limited time
/// with them.
pub const ENDING: [c_int; 9] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGXCPU,
    libc::SIGPWR,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
];

/// Signals that are no reason to end or stop: a write beyond a file-size limit fails with EFBIG, one to a
/// closed pipe with EPIPE, and a terminal gives no input to a background program. Real-time signals are
/// ignored, too.
const IGNORED: [c_int; 8] = [
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGIO,
    libc::SIGSTKFLT,
    libc::SIGXFSZ,
    libc::SIGTTIN,
    libc::SIGTTOU,
];

/// Ignores signals that should not end or stop the program, and lets faults end it at once. Call it before
/// anything else, because it does not change handlers that are set later.
///
/// # Errors
///
/// From the system.
pub fn prepare() -> io::Result<()> {
    for signal in IGNORED.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()) {
        if is_default(signal)? {
            set(signal, libc::SIG_IGN)?;
        }
    }
    // The standard library's handler reports a stack overflow, and blocks until standard error is read.
    set(libc::SIGSEGV, libc::SIG_DFL)?;
    set(libc::SIGBUS, libc::SIG_DFL)
}

fn set(signal: c_int, action: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: the callers' two actions are valid for every signal, and run no code.
    match unsafe { libc::signal(signal, action) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Returns whether a signal has its default action: neither the program's parent (`nohup`) nor a loaded
/// library has changed it.
///
/// # Errors
///
/// The number is not a signal.
pub fn is_default(signal: c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: only reads the action: fills the struct or fails.
    if unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: sigaction succeeded.
    Ok(unsafe { action.assume_init() }.sa_sigaction == libc::SIG_DFL)
}

macro_rules! named {
    ($($name:ident)*) => {
        /// Signals with a name.
        const NAMES: &[(c_int, &str)] = &[$((libc::$name, stringify!($name)),)*];
    };
}

named! {
    SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM
    SIGTERM SIGSTKFLT SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF
    SIGWINCH SIGIO SIGPWR SIGSYS
}

/// Returns a signal's name, such as "SIGTERM"; for a real-time signal, its number.
pub fn name(signal: c_int) -> String {
    let named = NAMES.iter().find(|(number, _)| *number == signal);
    named.map_or_else(|| format!("signal {signal}"), |(_, name)| (*name).to_owned())
}
