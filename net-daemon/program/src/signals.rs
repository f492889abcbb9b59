//! Signals whose default is to end a program, sorted by what is in them.
//!
//! [`ENDING`] tell a program to end, and it does so in order; each program has its own way to take them.
//! [`prepare`] ignores those that say nothing of the kind. What is left is a fault of the program, or cannot
//! be caught.
#![expect(unsafe_code, reason = "signal actions exist in libc only")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use libc::c_int;

mod set;

pub use set::{SignalFd, SignalSet};

/// Signals that tell to end: by somebody, by the terminal, by a limit of processor time (RLIMIT_CPU), by a
/// power failure, or by a timer, which outlives `exec` and so is how some start a program for a limited time.
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

/// Signals in which there is nothing to end or stop for: a write beyond a file-size limit fails with EFBIG,
/// one to a closed pipe with EPIPE, and a terminal in whose background a program runs gives it no input.
/// Real-time signals belong to it too.
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

/// Ignores what would end or stop the program and should not, and lets faults end it at once. Call it before
/// anything else: handlers that are set later stay.
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
    // The standard library's handler tells a stack overflow, and waits for somebody to read that.
    set(libc::SIGSEGV, libc::SIG_DFL)?;
    set(libc::SIGBUS, libc::SIG_DFL)
}

fn set(signal: c_int, action: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: both actions that this is called with are valid ones for every signal, and run no code.
    match unsafe { libc::signal(signal, action) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether nobody has said what is to become of a signal: neither whoever started the program (`nohup`), nor
/// a library that was loaded into it.
///
/// # Errors
///
/// For a number that is no signal.
pub fn is_default(signal: c_int) -> io::Result<bool> {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: only asks; fills the struct or fails.
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

/// A signal as it is called, such as "SIGTERM"; a real-time signal by its number.
pub fn name(signal: c_int) -> String {
    let named = NAMES.iter().find(|(number, _)| *number == signal);
    named.map_or_else(|| format!("signal {signal}"), |(_, name)| (*name).to_owned())
}
