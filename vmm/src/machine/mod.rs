//! A machine: building, running, pausing and ending it.
//!
//! [`builder::build`] turns a configuration into a [`Machine`]. The main thread then stays in
//! [`Machine::run`], which serves the console and waits for the exit event. [`Machine::end`] closes the rest.
//! Meanwhile other threads show and change the machine with the [`MachineHandle`].
//!
//! | module | holds |
//! |---|---|
//! | [`builder`] | builds a machine from a configuration |
//! | [`devices`] | the virtio devices by name; plugging and removing them |
//! | [`pause`] | pausing and resuming |
//! | [`power`] | reset, power-off and the power button |
//! | [`handle`] | the interface to a running machine for other threads |

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use log::{error, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::GuestMemoryMmap;
use volt_program::logging::END;
use volt_virtio::error_chain;

use crate::board::Board;
use crate::board::exit::{ExitEvent, ExitReason, status};
use crate::console::terminal::Terminal;
use crate::console::{Command, Console, Ready};
use crate::machine::handle::MachineHandle;
use crate::vcpu::{Vcpu, VcpuThread};

/// Interval of the checks whether a guest without output makes progress.
const LOOK: Duration = Duration::from_secs(1);
/// Interval of the checks whether this process is back in the terminal's foreground.
const BACKGROUND: Duration = Duration::from_millis(250);
/// How long all vCPUs together may take to stop at the end.
const STOP: Duration = Duration::from_secs(5);

pub mod builder;
pub mod devices;
pub mod handle;
pub mod pause;
pub mod power;

/// All parts of a machine. Dropping it ends its devices.
pub struct Machine {
    /// The processors, ready to run.
    pub vcpus: Vec<Vcpu>,
    /// The host's side of the serial port.
    pub console: Option<Console>,
    /// The parts that the processors share: the devices, the end, the pause.
    pub board: Board,
    /// The interface for other threads.
    pub handle: Arc<MachineHandle>,
    /// Keeps eventfds and interrupts registered.
    pub vm: Arc<VmFd>,
    /// The memory behind the VM's slots. Dropped after the VM.
    pub memory: GuestMemoryMmap,
}

impl Machine {
    /// Runs the guest until its end is requested, and stops all vCPUs.
    pub fn run(&mut self) {
        let exit = self.board.exit.clone();
        let mut terminal =
            self.console.as_ref().filter(|console| console.has_input()).and_then(|_| Terminal::find());
        if let Some(terminal) = &mut terminal {
            terminal.follow();
        }
        exit.watch();
        let threads = start(std::mem::take(&mut self.vcpus), &exit);
        let waited = wait_for_exit(&exit, self.console.as_mut(), terminal.as_mut(), threads.first());
        if let Err(error) = waited {
            exit.request(ExitReason::Console(error));
        }
        // Input is no longer read, and the next steps may take seconds.
        drop(terminal);
        // The vCPUs of a paused machine wait there.
        self.board.gate.wake();
        stop(&threads);
        if let Some(console) = &self.console {
            console.finish();
        }
    }

    /// Closes the devices of a machine after [`Machine::run`], logs the reason of the end, and returns the
    /// exit status. Other threads may keep a handle.
    pub fn end(self) -> u8 {
        let Machine { vcpus: _, console, board, handle, vm, memory } = self;
        let exit = board.exit.clone();
        // Requests in progress may hold the devices longer.
        handle.devices.end();
        // In this order: devices stop before the parts that they use disappear.
        drop((console, board, handle, vm, memory));
        exit.reason().map_or(status::ERROR, report)
    }
}

/// Starts the vCPUs' threads. Requests the end if one cannot start.
fn start(vcpus: Vec<Vcpu>, exit: &ExitEvent) -> Vec<VcpuThread> {
    let mut threads = Vec::new();
    for vcpu in vcpus {
        match vcpu.start() {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                exit.request(ExitReason::Thread(error));
                break;
            }
        }
    }
    threads
}

/// Ends all vCPUs' threads.
fn stop(threads: &[VcpuThread]) {
    for id in VcpuThread::stop(threads, STOP) {
        warn!(event = "vcpu_not_stopped", vcpu = id; "vCPU {id} does not stop; the process ends anyway");
    }
}

/// Logs why the machine ended, and returns the exit status.
fn report(reason: &ExitReason) -> u8 {
    match reason {
        ExitReason::Vcpu(error) => error!(
            target: END, event = "vcpu_failed";
            "{reason}: {}", error_chain(error)
        ),
        ExitReason::Thread(error) | ExitReason::Console(error) => {
            error!(target: END, event = "thread_failed"; "{reason}: {}", error_chain(error));
        }
        ExitReason::TripleFault => warn!(target: END, event = "triple_fault"; "{reason}"),
        _ => info!(target: END, event = "ended"; "{reason}"),
    }
    reason.status()
}

/// Serves the console until the exit event. Before the guest's first output, checks whether the boot
/// processor makes progress.
fn wait_for_exit(
    exit: &ExitEvent,
    console: Option<&mut Console>,
    mut terminal: Option<&mut Terminal>,
    boot: Option<&VcpuThread>,
) -> io::Result<()> {
    let Some(console) = console else {
        while !exit.is_requested() {
            wait_readable(&mut [PollFd::new(exit, PollFlags::IN)], None)?;
            exit.clear_wake();
        }
        return Ok(());
    };
    let mut next_look = boot.map(|_| Instant::now() + LOOK);
    while !exit.is_requested() {
        let foreground = terminal.as_mut().is_none_or(|terminal| terminal.follow());
        let follow = (!foreground).then(|| Instant::now() + BACKGROUND);
        let deadline = console.deadline().into_iter().chain(next_look).chain(follow).min();
        let ready = wait_for_console(exit, console, foreground, deadline)?;
        exit.clear_wake();
        if !exit.is_requested() && console.serve(ready) == Some(Command::Quit) {
            exit.request(ExitReason::UserQuit);
        }
        if next_look.is_some_and(|at| at <= Instant::now()) {
            next_look = boot.filter(|_| !console.has_output()).map(|boot| {
                boot.look();
                Instant::now() + LOOK
            });
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "EventFd gives its descriptor only as a number")]
fn wait_for_console(
    exit: &ExitEvent,
    console: &Console,
    foreground: bool,
    deadline: Option<Instant>,
) -> io::Result<Ready> {
    // SAFETY: the console keeps its eventfd open, and outlives this function.
    let room = unsafe { BorrowedFd::borrow_raw(console.room().event().as_raw_fd()) };
    let mut fds = vec![PollFd::new(exit, PollFlags::IN), PollFd::from_borrowed_fd(room, PollFlags::IN)];
    // Not listed unless it is wanted, because poll always reports a hang-up. In the background, input belongs
    // to another process.
    let input = console.wanted_input().filter(|_| foreground);
    fds.extend(input.map(|input| PollFd::new(input, PollFlags::IN)));
    wait_readable(&mut fds, deadline)?;
    let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
    Ok(Ready { input: is_ready(2), room: is_ready(1) })
}

/// Waits until one of `fds` is ready, or until `deadline`. A signal ends the wait with nothing ready; this
/// thread gets signals only from a debugger.
fn wait_readable(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // Only a time beyond all clocks cannot be converted. It means no limit.
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(fds, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
