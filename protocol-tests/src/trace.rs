//! Another process, traced from system call to system call or by single instructions (`ptrace(2)`).
#![expect(unsafe_code, reason = "ptrace exists in libc only")]

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

/// Time limit for a thread to reach its next stop.
const LIMIT: Duration = Duration::from_secs(60);
/// The signal of a stop at the beginning or the end of a system call (`PTRACE_O_TRACESYSGOOD`).
const CALL: libc::c_int = libc::SIGTRAP | 0x80;

/// Results of an interrupted call inside the kernel: ERESTARTSYS to ERESTART_RESTARTBLOCK.
const INTERRUPTED: std::ops::RangeInclusive<i64> = -516..=-512;

/// A process that this thread traces. Drop it without [`Traced::detach`] only after the process has ended.
#[derive(Debug)]
pub struct Traced(Pid);

impl Traced {
    /// Stops `process` at its current position.
    ///
    /// # Errors
    ///
    /// If it cannot be traced or has ended. The other functions here fail likewise.
    pub fn seize(process: Pid) -> io::Result<Traced> {
        let traced = Traced(process);
        traced.ask(libc::PTRACE_SEIZE, libc::PTRACE_O_TRACESYSGOOD)?;
        traced.stop()?;
        Ok(traced)
    }

    /// Stops it, and waits until it has stopped.
    ///
    /// # Errors
    ///
    /// If it has ended.
    pub fn stop(&self) -> io::Result<()> {
        self.ask(libc::PTRACE_INTERRUPT, 0)?;
        waitpid(Some(self.0), WaitOptions::empty())?;
        Ok(())
    }

    /// Lets it run to the beginning or the end of a system call.
    ///
    /// # Errors
    ///
    /// If it has not stopped.
    pub fn go_on(&self) -> io::Result<()> {
        self.ask(libc::PTRACE_SYSCALL, 0)
    }

    /// Lets it execute one instruction, with the system call if it is one.
    ///
    /// # Errors
    ///
    /// If it has not stopped.
    pub fn step(&self) -> io::Result<()> {
        self.ask(libc::PTRACE_SINGLESTEP, 0)
    }

    /// Returns how it has stopped or ended; `None` while it runs.
    ///
    /// # Errors
    ///
    /// If there is no such process.
    pub fn status(&self) -> io::Result<Option<WaitStatus>> {
        Ok(waitpid(Some(self.0), WaitOptions::NOHANG)?.map(|(_, status)| status))
    }

    /// Lets it run without tracing.
    ///
    /// # Errors
    ///
    /// If it has not stopped.
    pub fn detach(self) -> io::Result<()> {
        self.ask(libc::PTRACE_DETACH, 0)
    }

    /// Waits for its death. Until then the kernel keeps the process for its tracer.
    ///
    /// # Errors
    ///
    /// If it does not die in time.
    pub fn reap(self) -> io::Result<()> {
        let dead = |status: WaitStatus| status.signaled() || status.exited();
        crate::daemon::poll_until(LIMIT, || match self.status() {
            Ok(status) => status.filter(|status| dead(*status)).map(drop),
            Err(_) => Some(()),
        })
        .ok_or_else(|| io::ErrorKind::TimedOut.into())
    }

    fn ask(&self, request: libc::c_uint, data: libc::c_int) -> io::Result<()> {
        // SAFETY: none of these requests touches memory of this process.
        match unsafe { libc::ptrace(request, self.0.as_raw_pid(), 0, libc::c_long::from(data)) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// The result of a system call made for another thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It returned this value; negative values are errors.
    Returned(i64),
    /// A filter trapped it.
    Trapped,
}

impl Traced {
    /// Returns the thread's filter number `index`, the newest being 0: code, jumps and constant of each
    /// instruction. `None` if there is none.
    ///
    /// # Errors
    ///
    /// If this process may not read it.
    pub fn filter(&self, index: u32) -> io::Result<Option<Vec<libc::sock_filter>>> {
        const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
        let ask = |to: *mut libc::sock_filter| {
            // SAFETY: without a buffer it returns their number; else there is room for them.
            let count = unsafe { libc::ptrace(PTRACE_SECCOMP_GET_FILTER, self.0.as_raw_pid(), index, to) };
            if count < 0 { Err(io::Error::last_os_error()) } else { Ok(count as usize) }
        };
        let count = match ask(std::ptr::null_mut()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            count => count?,
        };
        let mut program = vec![libc::sock_filter { code: 0, jt: 0, jf: 0, k: 0 }; count];
        ask(program.as_mut_ptr())?;
        Ok(Some(program))
    }

    /// Makes the stopped thread execute system call `number`, and restores its registers. The thread stays
    /// stopped, to be detached.
    ///
    /// # Errors
    ///
    /// If it is in no system call.
    pub fn make(&self, number: i64, arguments: [u64; 6]) -> io::Result<Made> {
        let before = self.call(number, arguments)?;
        for stop in ["beginning", "end"] {
            // A signal in between is discarded: it is no stop of the call.
            loop {
                self.go_on()?;
                if self.next_stop()? == CALL {
                    break;
                }
            }
            let made = self.registers()?.orig_rax as i64;
            if made != number {
                return Err(io::Error::other(format!("its {stop} is that of call {made}, not {number}")));
            }
        }
        let returned = self.registers()?.rax as i64;
        let mut again = before;
        again.orig_rax = u64::MAX;
        // An interrupted call must restart; a finished one must not.
        if INTERRUPTED.contains(&(before.rax as i64)) {
            (again.rip, again.rax) = (before.rip - 2, before.orig_rax);
        }
        self.set_registers(&again)?;
        // Runs to the beginning of a call, or to a signal, which is discarded when the thread continues.
        self.go_on()?;
        match self.next_stop()? {
            libc::SIGSYS => Ok(Made::Trapped),
            CALL => Ok(Made::Returned(returned)),
            other => Err(io::Error::other(format!("the thread stopped by signal {other}"))),
        }
    }

    /// Waits until it stops; returns the signal.
    fn next_stop(&self) -> io::Result<libc::c_int> {
        let start = Instant::now();
        loop {
            match self.status()?.map(|status| (status.stopping_signal(), status)) {
                Some((Some(signal), _)) => return Ok(signal),
                Some((None, status)) => {
                    return Err(io::Error::other(format!("the thread ended: {status:?}")));
                }
                None if start.elapsed() > LIMIT => return Err(io::ErrorKind::TimedOut.into()),
                None => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// Makes the stopped thread execute system call `number` when it continues, without restoring its state.
    /// Returns its previous registers.
    ///
    /// # Errors
    ///
    /// If it is in no system call.
    pub fn call(&self, number: i64, arguments: [u64; 6]) -> io::Result<libc::user_regs_struct> {
        let before = self.registers()?;
        if before.orig_rax as i64 == -1 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the thread is in no system call"));
        }
        let mut call = before;
        // Back to the instruction that made the call.
        (call.rip, call.rax, call.orig_rax) = (before.rip - 2, number as u64, u64::MAX);
        (call.rdi, call.rsi, call.rdx) = (arguments[0], arguments[1], arguments[2]);
        (call.r10, call.r8, call.r9) = (arguments[3], arguments[4], arguments[5]);
        self.set_registers(&call)?;
        Ok(before)
    }

    /// Makes the stopped thread continue in a function of its program that takes no arguments and does not
    /// return.
    ///
    /// # Errors
    ///
    /// If it has not stopped.
    pub fn go_into(&self, function: u64) -> io::Result<()> {
        let mut registers = self.registers()?;
        (registers.rip, registers.orig_rax) = (function, u64::MAX);
        // Below the current stack, aligned as after a call, with a null return address.
        registers.rsp = (registers.rsp - 4096) / 16 * 16 - 8;
        // SAFETY: no memory of this process is touched.
        match unsafe { libc::ptrace(libc::PTRACE_POKEDATA, self.0.as_raw_pid(), registers.rsp, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => self.set_registers(&registers),
        }
    }

    fn registers(&self) -> io::Result<libc::user_regs_struct> {
        // SAFETY: all-zero bytes are valid registers; the buffer has room for the result.
        unsafe {
            let mut registers: libc::user_regs_struct = std::mem::zeroed();
            match libc::ptrace(libc::PTRACE_GETREGS, self.0.as_raw_pid(), 0, &raw mut registers) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(registers),
            }
        }
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) -> io::Result<()> {
        // SAFETY: the registers are read only.
        match unsafe {
            libc::ptrace(libc::PTRACE_SETREGS, self.0.as_raw_pid(), 0, std::ptr::from_ref(registers))
        } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
