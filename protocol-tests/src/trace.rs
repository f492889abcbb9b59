//! Another process, run from system call to system call (`ptrace(2)`).
#![expect(unsafe_code, reason = "ptrace exists in libc only")]

use std::io;

use rustix::process::{Pid, WaitOptions, WaitStatus, waitpid};

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
