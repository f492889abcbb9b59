//! Sandbox violations: if a thread makes a call that is not in its role, the process ends with status
//! [`STATUS`], after a line that names the role and the call.
#![expect(unsafe_code, reason = "a signal handler")]

use std::cell::Cell;
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit status after a violation.
pub const STATUS: i32 = 5;

thread_local! {
    /// The role of this thread. It has a constant initial value and no destructor, so a signal handler may
    /// read it.
    static ROLE: Cell<&'static str> = const { Cell::new("main") };
}

/// Sets this thread's role. Unblocks SIGSYS: otherwise a violation would end the process without a line.
pub(crate) fn this_thread_is(role: &'static str) {
    ROLE.with(|name| name.set(role));
    // SAFETY: an all-zero set is valid, and sigemptyset initialises it anyway.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGSYS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// The function to call before the end. Must be async-signal-safe.
static AT_END: OnceLock<fn()> = OnceLock::new();

/// Makes the signal handler call `act` before the end. `act` must take no lock and allocate nothing. Only the
/// first call counts.
pub fn at_end(act: fn()) {
    let _ = AT_END.set(act);
}

/// Whether the line is JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// Makes the line a JSON object with `level`, `event` and `message`, like the other lines of the log. It has
/// no `time`, because the signal handler may make no system call to read the clock.
pub fn say_in_json() {
    JSON.store(true, Ordering::Relaxed);
}

/// Installs the signal handler for violations.
///
/// # Errors
///
/// From the system.
pub fn handle() -> io::Result<()> {
    // SAFETY: all-zero bytes are a valid sigaction; the handler takes three arguments, as SA_SIGINFO
    // requires.
    let set = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = violated;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut())
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The `si_code` of a violation, which the libc crate lacks.
const SYS_SECCOMP: libc::c_int = 1;

/// `_sifields._sigsys` of `siginfo_t`, which the libc crate lacks.
#[repr(C)]
struct SigSys {
    signo: libc::c_int,
    errno: libc::c_int,
    code: libc::c_int,
    pad: libc::c_int,
    address: *mut libc::c_void,
    call: libc::c_int,
    arch: libc::c_uint,
}

/// The start of the JSON line. The message needs no escapes.
const BEFORE_MESSAGE: &[u8] = br#"{"level":"error","event":"sandbox_violation","message":""#;

/// The signal handler. Takes no lock, and allocates nothing.
extern "C" fn violated(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t of SIGSYS, which has this layout.
    let SigSys { code, call, .. } = unsafe { info.cast::<SigSys>().read() };
    if let Some(act) = AT_END.get() {
        act();
    }
    if code != SYS_SECCOMP {
        // SAFETY: another process has sent the signal, so this process dies of it when the handler returns.
        unsafe {
            libc::signal(libc::SIGSYS, libc::SIG_DFL);
            libc::raise(libc::SIGSYS);
        }
        return;
    }
    let mut line = Line::default();
    let json = JSON.load(Ordering::Relaxed);
    if json {
        line.push(BEFORE_MESSAGE);
    }
    line.push(b"sandbox: thread role '");
    line.push(ROLE.with(Cell::get).as_bytes());
    line.push(b"' made system call ");
    line.push_number(call.unsigned_abs(), 10);
    // SAFETY: the kernel passes the context of the interrupted code.
    let registers = unsafe { &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    // Lists check the first arguments, in their lower 32 bits.
    for (register, before) in [(libc::REG_RDI, " (0x"), (libc::REG_RSI, ", 0x"), (libc::REG_RDX, ", 0x")] {
        line.push(before.as_bytes());
        line.push_number(registers[register as usize] as u32, 16);
    }
    line.push(
        b"), which is not in its list: this process ends. This is a bug of the program, or an attacker has \
                taken it over",
    );
    line.push(if json { b"\"}\n" } else { b"\n" });
    let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one pollfd; the line's bytes. A writable pipe accepts such a short line without blocking.
    unsafe {
        if libc::poll(&raw mut stderr, 1, 1000) == 1 {
            libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len);
        }
        libc::_exit(STATUS)
    }
}

struct Line {
    bytes: [u8; 384],
    len: usize,
}

impl Default for Line {
    fn default() -> Line {
        Line { bytes: [0; 384], len: 0 }
    }
}

impl Line {
    fn push(&mut self, more: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(self.len).zip(more) {
            *to = *from;
            self.len += 1;
        }
    }

    fn push_number(&mut self, number: u32, base: u32) {
        let (mut digits, mut left, mut count) = ([0; 10], number, 0);
        while count == 0 || left > 0 {
            digits[count] = b"0123456789abcdef"[(left % base) as usize];
            left /= base;
            count += 1;
        }
        (0..count).rev().for_each(|at| self.push(&[digits[at]]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_made_without_an_allocator() {
        let mut line = Line::default();
        [0, 7, 41, 4_294_967_295].into_iter().for_each(|number| {
            line.push_number(number, 10);
            line.push(b" ");
            line.push_number(number, 16);
            line.push(b" ");
        });
        assert_eq!(&line.bytes[..line.len], b"0 0 7 7 41 29 4294967295 ffffffff ");
        line.push(&[b'x'; 1000]);
        assert_eq!(line.len, line.bytes.len());
    }
}
