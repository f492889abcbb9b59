//! A machine that is built, and the loop that runs it to its end.
//!
//! The main thread stays in [`Machine::run`]: it serves the console and waits for the exit event. The API has a thread of
//! its own.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use log::{error, info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vm_memory::GuestMemoryMmap;
use volt_program::logging::END;

use crate::api::Api;
use crate::console::{Command, Console, Ready};
use crate::devices::Devices;
use crate::exit::{ExitEvent, ExitReason};
use crate::terminal::Terminal;
use crate::vcpu::{Board, Vcpu, VcpuThread};
use crate::virtio::faults::chain;

/// How often to look whether a guest that has written nothing gets on.
const LOOK: Duration = Duration::from_secs(1);
/// How often is looked whether the terminal's foreground is this process's, while it is not.
const BACKGROUND: Duration = Duration::from_millis(250);
/// How long the vCPUs may take to stop at the end, all together.
const STOP: Duration = Duration::from_secs(5);

/// Everything that makes up a machine. Dropping it ends its devices.
pub struct Machine {
    /// The processors, ready to run.
    pub vcpus: Vec<Vcpu>,
    /// The host's side of the serial port.
    pub console: Option<Console>,
    /// The devices, the end, the pause.
    pub board: Board,
    /// Those of its devices that are virtio.
    pub devices: Arc<Devices>,
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
        let Machine { vcpus, mut console, board, devices, api, vm, memory } = self;
        let exit = board.exit.clone();
        let mut terminal =
            console.as_ref().filter(|console| console.has_input()).and_then(|_| Terminal::find());
        if let Some(terminal) = &mut terminal {
            terminal.follow();
        }
        exit.watch();
        let threads = start(vcpus, &exit);
        if let Err(error) = wait_for_exit(&exit, console.as_mut(), terminal.as_mut(), threads.first()) {
            exit.request(ExitReason::Console(error));
        }
        // Nobody reads it any more, while what follows may take seconds.
        drop(terminal);
        // Those of a paused machine wait there.
        board.gate.wake();
        stop(&threads);
        if let Some(console) = &console {
            console.finish();
        }
        drop(api);
        // Requests in hand may hold them longer.
        devices.end();
        // In this order: devices stop before what they stand on goes.
        drop((console, board, vm, memory));
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
fn stop(threads: &[VcpuThread]) {
    for id in VcpuThread::stop(threads, STOP) {
        warn!("vCPU {id} does not stop; the process ends without it");
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

/// Serves the console until the exit event. Before the guest's first output, looks whether the boot processor gets on.
fn wait_for_exit(
    exit: &ExitEvent,
    console: Option<&mut Console>,
    mut terminal: Option<&mut Terminal>,
    boot: Option<&VcpuThread>,
) -> io::Result<()> {
    let Some(console) = console else {
        while !exit.is_requested() {
            wait_readable(&mut [PollFd::new(exit, PollFlags::IN)], None)?;
            exit.clear_nudge();
        }
        return Ok(());
    };
    let mut next_look = boot.map(|_| Instant::now() + LOOK);
    while !exit.is_requested() {
        let foreground = terminal.as_mut().is_none_or(|terminal| terminal.follow());
        let follow = (!foreground).then(|| Instant::now() + BACKGROUND);
        let deadline = console.deadline().into_iter().chain(next_look).chain(follow).min();
        let ready = wait_for_console(exit, console, foreground, deadline)?;
        exit.clear_nudge();
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
    // Not even listed when it is not wanted: a hang-up is reported always.
    // What is typed is for whoever has the terminal.
    let input = console.wanted_input().filter(|_| foreground);
    fds.extend(input.map(|input| PollFd::new(input, PollFlags::IN)));
    wait_readable(&mut fds, deadline)?;
    let is_ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
    Ok(Ready { input: is_ready(2), room: is_ready(1) })
}

/// Waits until one of `fds` is ready, or until `deadline`. A signal (there is none for this thread but a debugger's) ends the
/// wait with nothing ready.
fn wait_readable(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    // Only a time beyond all clocks is none.
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(fds, left.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
