//! The thread that serves one ring: sleeps until a kick, serves chains until there are none. While the machine is paused it
//! waits at the [`Gate`].

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use log::error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::gate::{Gate, Member};
use crate::virtio::chain::{Chain, ChainError};
use crate::virtio::faults;
use crate::virtio::ring::Ring;

/// A running thread; dropping it ends the thread behind the request in hand, and waits for that.
pub struct Worker {
    stop: Arc<Stop>,
    gate: Arc<Gate>,
    thread: Option<JoinHandle<()>>,
}

/// How a worker is told to end, or to come to the gate: the flag is read between requests, the eventfd ends its sleep.
struct Stop {
    asked: AtomicBool,
    wake: EventFd,
}

impl Worker {
    /// Starts a thread that serves `ring` by `request` (see [`Ring::serve`]) while `gate` is open. `label` names the device in
    /// the log, `thread` the thread in process listings.
    ///
    /// # Errors
    ///
    /// When the process may have no more threads or files.
    pub fn spawn(
        label: &str,
        thread: &str,
        gate: &Arc<Gate>,
        ring: Ring,
        request: impl FnMut(Result<&Chain<'_>, ChainError>) -> u32 + Send + 'static,
    ) -> io::Result<Worker> {
        let stop = Arc::new(Stop { asked: AtomicBool::new(false), wake: EventFd::new(EFD_NONBLOCK)? });
        let epoll = Epoll::new()?;
        for fd in [ring.kick().as_raw_fd(), stop.wake.as_raw_fd()] {
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        let (label, its_stop, to_fetch) = (label.to_owned(), stop.clone(), stop.clone());
        let member = gate.join(&label, move || {
            let _ = to_fetch.wake.write(1);
        });
        let thread = thread::Builder::new().name(thread.to_owned()).spawn(move || {
            run(&label, &epoll, ring, request, &its_stop, &member);
        })?;
        Ok(Worker { stop, gate: gate.clone(), thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.asked.store(true, Ordering::Release);
        let _ = self.stop.wake.write(1);
        self.gate.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("a device's thread ended in a panic");
        }
    }
}

fn run(
    label: &str,
    epoll: &Epoll,
    mut ring: Ring,
    mut request: impl FnMut(Result<&Chain<'_>, ChainError>) -> u32,
    stop: &Stop,
    member: &Member,
) {
    let asked = || stop.asked.load(Ordering::Acquire);
    loop {
        match epoll.wait(-1, &mut [EpollEvent::default(); 2]) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return error!("{label}: stopped, as waiting for the guest failed: {error}");
            }
            _ => {}
        }
        // Empty where the other eventfd woke us.
        let _ = (ring.kick().read(), stop.wake.read());
        loop {
            // Between two requests, as a guest could keep this loop busy for ever.
            member.pass(asked);
            if asked() {
                return;
            }
            match ring.serve(&mut request) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    if faults::may_log() {
                        error!("{label}: stopped until the guest resets it: {}", faults::chain(&error));
                    }
                    return ring.give_up();
                }
            }
        }
    }
}
