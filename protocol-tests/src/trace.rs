//! Another process, run from system call to system call (`ptrace(2)`).
#![expect(unsafe_code, reason = "ptrace exists in libc only")]

use std::io;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

/// How long a thread may take to its next stop.
const LIMIT: Duration = Duration::from_secs(60);
/// What a stop at the beginning or the end of a system call looks like (`PTRACE_O_TRACESYSGOOD`).
const CALL: libc::c_int = libc::SIGTRAP | 0x80;

/// What a call that was interrupted returns to the kernel itself: ERESTARTSYS to ERESTART_RESTARTBLOCK.
const INTERRUPTED: std::ops::RangeInclusive<i64> = -516..=-512;

/// A process that this thread traces. Whoever drops it without [`Traced::detach`] has ended the process
/// before.
#[derive(Debug)]
pub struct Traced(Pid);

impl Traced {
    /// Stops `process` where it is.
    ///
    /// # Errors
    ///
    /// Where it cannot be traced, or has ended, as all functions here.
    pub fn seize(process: Pid) -> io::Result<Traced> {
        let traced = Traced(process);
        traced.ask(libc::PTRACE_SEIZE, libc::PTRACE_O_TRACESYSGOOD)?;
        traced.stop()?;
        Ok(traced)
    }

    /// Stops it, and waits until it is.
    ///
    /// # Errors
    ///
    /// When it has ended.
    pub fn stop(&self) -> io::Result<()> {
        self.ask(libc::PTRACE_INTERRUPT, 0)?;
        waitpid(Some(self.0), WaitOptions::empty())?;
        Ok(())
    }

    /// Lets it run to the beginning or the end of a system call.
    ///
    /// # Errors
    ///
    /// When it does not stand still.
    pub fn go_on(&self) -> io::Result<()> {
        self.ask(libc::PTRACE_SYSCALL, 0)
    }

    /// How it has stopped or ended; `None` while it runs.
    ///
    /// # Errors
    ///
    /// When there is no such process.
    pub fn status(&self) -> io::Result<Option<WaitStatus>> {
        Ok(waitpid(Some(self.0), WaitOptions::NOHANG)?.map(|(_, status)| status))
    }

    /// Lets it run by itself.
    ///
    /// # Errors
    ///
    /// When it does not stand still.
    pub fn detach(self) -> io::Result<()> {
        self.ask(libc::PTRACE_DETACH, 0)
    }

    fn ask(&self, request: libc::c_uint, data: libc::c_int) -> io::Result<()> {
        // SAFETY: none of these requests touches memory of this process.
        match unsafe { libc::ptrace(request, self.0.as_raw_pid(), 0, libc::c_long::from(data)) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// What became of a system call that was made for another thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// It returned this: an error where it is negative.
    Returned(i64),
    /// It was trapped by a filter.
    Trapped,
}

impl Traced {
    /// The thread's filter number `index`, the newest being 0: code, jumps, constant of each instruction.
    /// `None` where there is none.
    ///
    /// # Errors
    ///
    /// When this process may not see it.
    pub fn filter(&self, index: u32) -> io::Result<Option<Vec<libc::sock_filter>>> {
        const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
        let ask = |to: *mut libc::sock_filter| {
            // SAFETY: without room the number of instructions is answered; otherwise there is room for them.
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

    /// Has the stopped thread make system call `number`, and puts it back where it was. It stands still, and
    /// is to be detached.
    ///
    /// # Errors
    ///
    /// When it is in no system call.
    pub fn make(&self, number: i64, arguments: [u64; 6]) -> io::Result<Made> {
        let before = self.call(number, arguments)?;
        for _ in ["its beginning", "its end"] {
            self.go_on()?;
            self.next_stop()?;
        }
        let returned = self.registers()?.rax as i64;
        let mut again = before;
        again.orig_rax = u64::MAX;
        // What was interrupted begins again; what had ended must not.
        if INTERRUPTED.contains(&(before.rax as i64)) {
            (again.rip, again.rax) = (before.rip - 2, before.orig_rax);
        }
        self.set_registers(&again)?;
        // To the beginning of a call, or to a signal, which goes no further when it is let run.
        self.go_on()?;
        match self.next_stop()? {
            libc::SIGSYS => Ok(Made::Trapped),
            CALL => Ok(Made::Returned(returned)),
            other => Err(io::Error::other(format!("it stopped by signal {other}"))),
        }
    }

    /// Waits until it stops; answers by what.
    fn next_stop(&self) -> io::Result<libc::c_int> {
        let start = Instant::now();
        loop {
            match self.status()?.map(|status| (status.stopping_signal(), status)) {
                Some((Some(signal), _)) => return Ok(signal),
                Some((None, status)) => return Err(io::Error::other(format!("it ended: {status:?}"))),
                None if start.elapsed() > LIMIT => return Err(io::ErrorKind::TimedOut.into()),
                None => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    /// Has the stopped thread make system call `number` as soon as it goes on, and leaves it to what comes of
    /// that. Where it was before.
    ///
    /// # Errors
    ///
    /// When it is in no system call.
    pub fn call(&self, number: i64, arguments: [u64; 6]) -> io::Result<libc::user_regs_struct> {
        let before = self.registers()?;
        if before.orig_rax as i64 == -1 {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it is in no system call"));
        }
        let mut call = before;
        // The instruction that it came by.
        (call.rip, call.rax, call.orig_rax) = (before.rip - 2, number as u64, u64::MAX);
        (call.rdi, call.rsi, call.rdx) = (arguments[0], arguments[1], arguments[2]);
        (call.r10, call.r8, call.r9) = (arguments[3], arguments[4], arguments[5]);
        self.set_registers(&call)?;
        Ok(before)
    }

    /// Has the stopped thread go on in a function of its program that takes nothing and does not return.
    ///
    /// # Errors
    ///
    /// When it does not stand still.
    pub fn go_into(&self, function: u64) -> io::Result<()> {
        let mut registers = self.registers()?;
        (registers.rip, registers.orig_rax) = (function, u64::MAX);
        // Below what it has there, and as a call leaves it, from nowhere.
        registers.rsp = (registers.rsp - 4096) / 16 * 16 - 8;
        // SAFETY: no memory of this process is touched.
        match unsafe { libc::ptrace(libc::PTRACE_POKEDATA, self.0.as_raw_pid(), registers.rsp, 0) } {
            -1 => Err(io::Error::last_os_error()),
            _ => self.set_registers(&registers),
        }
    }

    fn registers(&self) -> io::Result<libc::user_regs_struct> {
        // SAFETY: all-zero bytes are registers; there is room for what is written.
        unsafe {
            let mut registers: libc::user_regs_struct = std::mem::zeroed();
            match libc::ptrace(libc::PTRACE_GETREGS, self.0.as_raw_pid(), 0, &raw mut registers) {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(registers),
            }
        }
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) -> io::Result<()> {
        // SAFETY: registers are read.
        match unsafe {
            libc::ptrace(libc::PTRACE_SETREGS, self.0.as_raw_pid(), 0, std::ptr::from_ref(registers))
        } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}
