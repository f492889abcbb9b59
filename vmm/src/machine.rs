//! A machine that is built, and the loop that runs it to its end.
//!
//! The main thread stays in [`Machine::run`]: it feeds the console and waits for the exit event. The API has a thread of
//! its own.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::VmFd;
use log::{error, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::GuestMemoryMmap;
use volt_program::logging::END;

use crate::api::Api;
use crate::console::{Command, Console, Wants};
use crate::exit::{ExitEvent, ExitReason};
use crate::terminal::Terminal;
use crate::vcpu::{Board, Vcpu, VcpuThread};
use crate::virtio::faults::chain;

/// How often is looked whether the terminal's foreground is this process's, while it is not.
const BACKGROUND: Duration = Duration::from_millis(250);

/// Everything that makes up a machine. Dropping it ends its devices.
pub struct Machine {
    /// The processors, ready to run.
    pub vcpus: Vec<Vcpu>,
    /// Input for the serial port.
    pub console: Option<Console>,
    /// The devices, the end, the pause.
    pub board: Board,
    /// Shows the machine to others.
    pub api: Option<Api>,
    /// Keeps eventfds and interrupts registered.
    pub vm: Arc<VmFd>,
    /// What the VM's slots point to; dropped after the VM.
    pub memory: GuestMemoryMmap,
}

impl Machine {
    /// Runs the guest until somebody asks for the end, stops all vCPUs and returns the exit status.
    /// Whatever ends it is logged.
    pub fn run(self) -> u8 {
        let Machine { vcpus, mut console, board, api, vm, memory } = self;
        let exit = board.exit.clone();
        let mut terminal = console.as_ref().and_then(|_| Terminal::find());
        if let Some(terminal) = &mut terminal {
            terminal.follow();
        }
        exit.watch();
        let threads = start(vcpus, &exit);
        if let Err(error) = wait_for_exit(&exit, console.as_mut(), terminal.as_mut()) {
            exit.request(ExitReason::Console(error));
        }
        // Those of a paused machine wait there.
        board.gate.wake();
        stop(threads);
        drop(terminal);
        // In this order: devices stop before what they stand on goes.
        drop((api, console, board, vm, memory));
        exit.reason().map_or(crate::exit::status::ERROR, report)
    }
}

/// Starts the vCPUs' threads; when one does not start, that is a reason to end.
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
fn stop(threads: Vec<VcpuThread>) {
    for (id, thread) in threads.into_iter().enumerate() {
        if !thread.stop() {
            warn!("vCPU {id} does not stop; the process ends without it");
        }
    }
}

/// Tells why the machine ended, and returns the status for it.
fn report(reason: &ExitReason) -> u8 {
    match reason {
        ExitReason::Vcpu(error) => error!(target: END, "{reason}: {}", chain(error)),
        ExitReason::Thread(error) | ExitReason::Console(error) => {
            error!(target: END, "{reason}: {}", chain(error));
        }
        ExitReason::TripleFault => warn!(target: END, "{reason}"),
        _ => info!(target: END, "{reason}"),
    }
    reason.status()
}

/// Feeds the console until the exit event.
fn wait_for_exit(
    exit: &ExitEvent,
    mut console: Option<&mut Console>,
    mut terminal: Option<&mut Terminal>,
) -> io::Result<()> {
    while !exit.is_requested() {
        let Some(console) = console.as_deref_mut() else {
            wait_readable(&mut [PollFd::new(exit, PollFlags::IN)], None)?;
            exit.clear_nudge();
            continue;
        };
        let foreground = terminal.as_mut().is_none_or(|terminal| terminal.follow());
        let ready = wait_for_console(exit, console, foreground)?;
        exit.clear_nudge();
        if !exit.is_requested() && console.serve(ready) == Some(Command::Quit) {
            exit.request(ExitReason::UserQuit);
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "EventFd gives its descriptor only as a number")]
fn wait_for_console(exit: &ExitEvent, console: &Console, foreground: bool) -> io::Result<Wants> {
    let mut wants = console.wants();
    // What is typed is for whoever has the terminal.
    wants.input &= foreground;
    let limit = (!foreground).then_some(BACKGROUND);
    // SAFETY: the console keeps its eventfd open, and outlives this function.
    let room = unsafe { BorrowedFd::borrow_raw(console.room().event().as_raw_fd()) };
    let events = |wanted| if wanted { PollFlags::IN } else { PollFlags::empty() };
    let mut fds = vec![PollFd::new(exit, PollFlags::IN), PollFd::from_borrowed_fd(room, events(wants.room))];
    // Not even listed when it is not wanted: a hang-up is reported always.
    if wants.input {
        fds.push(PollFd::new(console.input(), PollFlags::IN));
    }
    wait_readable(&mut fds, limit)?;
    let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
    Ok(Wants { input: is_ready(2), room: is_ready(1) })
}

/// Waits until one of `fds` is ready, or for `limit`. A signal (there is none for this thread but a debugger's) ends the wait
/// with nothing ready.
fn wait_readable(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(fds, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
