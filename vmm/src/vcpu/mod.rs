//! A virtual processor: one thread that runs the guest and serves its port and memory-mapped I/O.
//!
//! Life cycle: the builder creates a [`Vcpu`], and the machine turns it into a thread with [`Vcpu::start`]. A
//! signal brings that thread out of the guest: [`VcpuThread::kick`] to end, the
//! [`PauseGate`](crate::board::pause_gate::PauseGate) to wait, [`VcpuThread::look`] to check its progress.
#![expect(unsafe_code, reason = "the signal handler that kicks a vCPU, and fields of kvm_run's union")]

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use libc::{c_int, c_void, siginfo_t};
use log::{debug, warn};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::board::Board;
use crate::board::exit::ExitReason;
use crate::board::pause_gate::Member;
use crate::board::vcpu_error::{VcpuError, host_limit};
use crate::sandbox::{self, lists::VCPU};
use crate::vcpu::stall::StallDetector;

mod stall;

thread_local! {
    /// `immediate_exit` in this thread's `kvm_run`, or null outside of a vCPU's thread.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Keeps the vCPU from entering the guest again, even if the signal comes just before `KVM_RUN`.
extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: set by this thread to a byte of its vCPU's mapped kvm_run, and cleared before the vCPU is
        // dropped. Volatile because KVM reads it.
        unsafe { flag.write_volatile(1) };
    }
}

/// Makes the kick signal harmless for every thread. Called before the first vCPU starts.
///
/// # Errors
///
/// An error of the system.
pub fn register_kick_signal() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(Into::into)
}

/// A processor that is ready to run.
pub struct Vcpu {
    id: u8,
    fd: VcpuFd,
    board: Board,
    /// Whether a check of its progress was requested.
    look: Arc<AtomicBool>,
    stall: StallDetector,
}

impl Vcpu {
    /// Creates processor `id`, whose state is set.
    pub fn new(id: u8, fd: VcpuFd, board: Board) -> Vcpu {
        Vcpu { id, fd, board, look: Arc::default(), stall: StallDetector::default() }
    }

    /// Starts the thread that runs the guest until the machine's end is requested.
    ///
    /// # Errors
    ///
    /// Fails if no thread can be created.
    pub fn start(self) -> io::Result<VcpuThread> {
        let name = format!("vcpu{}", self.id);
        let look = self.look.clone();
        sandbox::spawn(&VCPU, &name, move || self.run()).map(|handle| VcpuThread { handle, look })
    }

    fn run(mut self) {
        IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
        let member = self.join();
        while !self.board.exit.is_requested() {
            if member.pass(|| self.board.exit.is_requested()) {
                self.tell_of_pause();
                continue;
            }
            if let Some(reason) = self.step() {
                self.board.exit.request(reason);
            }
        }
        drop(member);
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }

    /// Makes this thread stop for pauses.
    fn join(&self) -> Member {
        // SAFETY: has no preconditions.
        let thread = unsafe { libc::pthread_self() };
        self.board.gate.join(&format!("vcpu{}", self.id), move || {
            // SAFETY: a member exists only while its thread, this one, runs, and the signal has a handler.
            unsafe { libc::pthread_kill(thread, SIGRTMIN()) };
        })
    }

    /// Tells the guest's watchdogs that it was not running (`KVM_KVMCLOCK_CTRL`), so that they report no
    /// lock-up. Its clocks continue during a pause, as for a process that was stopped: connections and timers
    /// see the real time.
    fn tell_of_pause(&self) {
        if let Err(error) = self.fd.kvmclock_ctrl() {
            debug!(
                "vcpu{}: the guest does not use KVM's clock and cannot be told about the pause: {error}",
                self.id
            );
        }
    }

    /// Runs the guest up to its next exit, and handles that.
    fn step(&mut self) -> Option<ExitReason> {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => {
                self.fd.set_kvm_immediate_exit(0);
                if self.look.swap(false, Ordering::Relaxed) {
                    self.look_for_stall();
                }
                return None;
            }
            Err(source) => return Some(ExitReason::Vcpu(VcpuError::Run { id: self.id, source })),
        };
        self.stall.moved();
        match exit {
            VcpuExit::IoIn(port, data) => self.board.buses.pio.read(port.into(), data),
            VcpuExit::IoOut(port, data) => self.board.buses.pio.write(port.into(), data),
            VcpuExit::MmioRead(address, data) => self.board.buses.mmio.read(address, data),
            VcpuExit::MmioWrite(address, data) => self.board.buses.mmio.write(address, data),
            VcpuExit::Shutdown => return Some(ExitReason::TripleFault),
            VcpuExit::SystemEvent(kind, _) => return Some(system_event(kind)),
            VcpuExit::Intr | VcpuExit::Hlt => {}
            VcpuExit::InternalError => return Some(self.internal_error()),
            VcpuExit::FailEntry(reason, _) => {
                let exit = format!("KVM_EXIT_FAIL_ENTRY (hardware reason {reason:#x})");
                return Some(ExitReason::Vcpu(VcpuError::HostLimit { id: self.id, exit, rip: self.rip() }));
            }
            other => {
                let exit = format!("{other:?}");
                return Some(ExitReason::Vcpu(VcpuError::Unexpected { id: self.id, exit, rip: self.rip() }));
            }
        }
        None
    }

    fn internal_error(&mut self) -> ExitReason {
        // SAFETY: the exit reason says that KVM filled `internal`, and any bits are a valid u32.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let meaning = match suberror {
            1 => "emulation failure",
            2 => "simultaneous exceptions",
            3 => "an event that cannot be delivered",
            4 => "an exit that KVM does not know",
            _ => "unknown",
        };
        let exit = format!("KVM_EXIT_INTERNAL_ERROR (suberror {suberror}: {meaning})");
        ExitReason::Vcpu(VcpuError::HostLimit { id: self.id, exit, rip: self.rip() })
    }

    /// Warns that the guest makes no progress. The user decides what to do, because a guest may loop.
    fn look_for_stall(&mut self) {
        let Ok(registers) = self.fd.get_regs() else { return };
        if let Some(stood) = self.stall.look(registers, stall::used()) {
            warn!(
                event = "guest_stuck";
                "vCPU {} has been at rip {:#x} for {} s of CPU time without progress, before the guest's \
                 first output: the guest loops there, or this KVM cannot run it (exit status 4 if KVM \
                 reports it). {}",
                self.id,
                registers.rip,
                stood.as_secs(),
                host_limit()
            );
        }
    }

    fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }
}

/// Handles the types of `KVM_EXIT_SYSTEM_EVENT` (Linux, virt/kvm/api.rst).
fn system_event(kind: u32) -> ExitReason {
    match kind {
        kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => ExitReason::PowerOff,
        kvm_bindings::KVM_SYSTEM_EVENT_RESET => ExitReason::Reset("a system event"),
        _ => ExitReason::Reset("a crash event"),
    }
}

/// A vCPU's thread.
pub struct VcpuThread {
    handle: JoinHandle<()>,
    look: Arc<AtomicBool>,
}

impl VcpuThread {
    /// Brings the thread out of the guest, or out of a system call in a device, to check the exit event.
    pub fn kick(&self) {
        // Fails only if the thread has ended.
        let _ = self.handle.kill(SIGRTMIN());
    }

    /// Makes the thread check whether the guest makes progress, and warn once if it does not.
    pub fn look(&self) {
        self.look.store(true, Ordering::Relaxed);
        self.kick();
    }

    /// Waits for the ends of all `threads`, which the exit event has requested. Returns the numbers of those
    /// that have not ended within `limit`, which applies to all together.
    ///
    /// Kicks repeatedly: a signal between a device's check of the exit event and its system call is lost.
    pub fn stop(threads: &[VcpuThread], limit: Duration) -> Vec<usize> {
        const INTERVAL: Duration = Duration::from_millis(2);
        let end = Instant::now() + limit;
        loop {
            let late = threads.iter().enumerate().filter(|(_, thread)| !thread.handle.is_finished());
            let late: Vec<_> = late.collect();
            if late.is_empty() || Instant::now() >= end {
                return late.into_iter().map(|(id, _)| id).collect();
            }
            late.iter().for_each(|(_, thread)| thread.kick());
            thread::sleep(INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Many threads behind one slow device, together with one that ends.
    #[test]
    fn many_that_do_not_stop_take_no_longer_than_one() {
        const COUNT: usize = 100;
        const LIMIT: Duration = Duration::from_millis(100);
        register_kick_signal().unwrap();
        let spawn =
            |run: Box<dyn FnOnce() + Send>| VcpuThread { handle: thread::spawn(run), look: Arc::default() };
        let mut threads = vec![spawn(Box::new(|| {}))];
        let mut devices = Vec::new();
        for _ in 0..COUNT {
            let (device, answer) = mpsc::channel::<()>();
            devices.push(device);
            threads.push(spawn(Box::new(move || answer.recv().unwrap_or(()))));
        }
        while !threads[0].handle.is_finished() {
            thread::yield_now();
        }
        let start = Instant::now();
        assert_eq!(VcpuThread::stop(&threads, LIMIT), Vec::from_iter(1..=COUNT));
        assert!(start.elapsed() < LIMIT * 50, "{:?}", start.elapsed());
        drop(devices);
        assert!(VcpuThread::stop(&threads, Duration::from_secs(60)).is_empty());
    }
}
