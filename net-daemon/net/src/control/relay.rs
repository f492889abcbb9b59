//! A separate thread for a vring's descriptors, for a ring whose own thread must never block.
//!
//! Whether a descriptor blocks is a property of the open file, which the front-end shares. The front-end can
//! change it at any time, also between a check and the following read or write. A blocked worker of a queue
//! pair can be interrupted. But a daemon's main thread serves the control queue, and nothing interrupts that
//! thread. So the thread in this module reads the kick and writes call and err. Private notifiers connect it
//! with the ring.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use log::{error, warn};
use volt_virtio::notify::Notifier;
use volt_virtio::poller::{EventFlags, Poller};

use crate::thread::{ThreadKind, WorkerError, join, prepare_signal, started};
use crate::vring::{NO_KICK, Vring};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Stop,
    Kick,
    Call,
    Err,
}

/// The thread of one vring's descriptors. It ends when this value is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    thread: Option<JoinHandle<()>>,
    stop: Arc<Notifier>,
    kicked: Arc<Notifier>,
    call: Arc<Notifier>,
    err: Arc<Notifier>,
}

impl Relay {
    /// Starts a thread for the descriptors of `vring`.
    ///
    /// # Errors
    ///
    /// Fails if no thread can be started, or if the kick descriptor does not support waiting.
    pub(crate) fn start(vring: &Vring) -> Result<Relay, WorkerError> {
        prepare_signal().map_err(WorkerError::Start)?;
        let mut poller = Poller::new().map_err(WorkerError::Start)?;
        let mut own = |token| -> io::Result<_> {
            let notifier = Arc::new(Notifier::eventfd()?);
            poller.add(&*notifier, EventFlags::IN, token)?;
            Ok(notifier)
        };
        let ours = (|| -> io::Result<_> { Ok((own(Token::Stop)?, own(Token::Call)?, own(Token::Err)?)) })();
        let (stop, call, err) = ours.map_err(WorkerError::Start)?;
        let kicked = Arc::new(Notifier::eventfd().map_err(WorkerError::Start)?);
        poller
            .add(&*vring.kick, EventFlags::IN | EventFlags::ET, Token::Kick)
            .map_err(|source| WorkerError::Kick(vring.index, source))?;
        let mut running = Running {
            poller,
            index: vring.index,
            theirs: Ends { kick: vring.kick.clone(), call: vring.call.clone(), err: vring.err.clone() },
            kicked: kicked.clone(),
            asked: [call.clone(), err.clone()],
        };
        let thread = thread::Builder::new()
            .name(format!("vring{}", vring.index))
            .spawn(move || {
                started(ThreadKind::Vring);
                running.run();
            })
            .map_err(WorkerError::Start)?;
        Ok(Relay { thread: Some(thread), stop, kicked, call, err })
    }

    /// Becomes readable when the driver has kicked. This notifier is private, so that reading it never
    /// blocks.
    pub(crate) fn kicked(&self) -> &Arc<Notifier> {
        &self.kicked
    }

    /// Makes the thread notify the driver.
    pub(crate) fn call(&self) {
        self.call.notify();
    }

    /// Makes the thread tell the front-end that the ring is broken.
    pub(crate) fn err(&self) {
        self.err.notify();
    }
}

impl Drop for Relay {
    /// Completes earlier requests. Interrupts a thread that a descriptor blocks.
    fn drop(&mut self) {
        self.stop.notify();
        if let Some(Err(error)) = self.thread.take().map(join) {
            error!(
                event = "descriptor_thread_left_behind";
                "the thread for a vring's descriptors does not end: {error}"
            );
        }
    }
}

/// The front-end's descriptors.
struct Ends {
    kick: Arc<Notifier>,
    call: Option<Arc<Notifier>>,
    err: Option<Arc<Notifier>>,
}

struct Running {
    poller: Poller<Token>,
    index: usize,
    theirs: Ends,
    kicked: Arc<Notifier>,
    /// Requests for call and err.
    asked: [Arc<Notifier>; 2],
}

impl Running {
    fn run(&mut self) {
        loop {
            let mut happened = Vec::new();
            if let Err(error) = self.poller.wait(None, |token, _| happened.push(token)) {
                return error!(
                    event = "vring_wait_failed", vring = self.index;
                    "vring {}: waiting for its descriptors failed: {error}", self.index
                );
            }
            for token in &happened {
                self.pass_on(*token);
            }
            if happened.contains(&Token::Stop) {
                return;
            }
        }
    }

    fn pass_on(&mut self, token: Token) {
        let Ends { kick, call, err } = &self.theirs;
        let [asked_call, asked_err] = &self.asked;
        match token {
            Token::Stop => {}
            Token::Kick => {
                let alive = kick.clear();
                self.kicked.notify();
                if !alive {
                    warn!(event = "kick_lost", vring = self.index; "vring {}: {}", self.index, NO_KICK);
                    // Cannot fail: it was added.
                    let _ = self.poller.remove(&**kick);
                }
            }
            Token::Call => {
                asked_call.clear();
                call.iter().for_each(|call| call.notify());
            }
            Token::Err => {
                asked_err.clear();
                err.iter().for_each(|err| err.notify());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{OFlags, fcntl_setfl};
    use rustix::pipe::{PipeFlags, pipe_with};
    use volt_virtio::features::Features;
    use volt_virtio::testing::Driver;

    use super::*;
    use crate::testing::{Rig, until};

    const LIMIT: Duration = Duration::from_secs(20);

    fn ends() -> (File, Arc<Notifier>) {
        let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        (File::from(fd.try_clone().unwrap()), Arc::new(Notifier::new(fd).unwrap()))
    }

    #[test]
    fn what_is_asked_for_is_done_before_the_end() {
        let driver = Driver::new(8, Features::empty());
        let ((mut kick, kick_end), (mut call, call_end), (mut err, err_end)) = (ends(), ends(), ends());
        let vring =
            Vring { kick: kick_end, call: Some(call_end), err: Some(err_end), ..Rig::vring(&driver, 2) };
        let relay = Relay::start(&vring).unwrap();
        kick.write_all(&1u64.to_ne_bytes()).unwrap();
        let mut bytes = [0; 8];
        until("the kick", || relay.kicked().wait(Duration::ZERO));
        relay.call();
        relay.err();
        drop(relay);
        call.read_exact(&mut bytes).unwrap();
        err.read_exact(&mut bytes).unwrap();
    }

    /// A full descriptor that the front-end makes blocking again.
    #[test]
    fn descriptors_that_block_hold_nobody() {
        let driver = Driver::new(8, Features::empty());
        let ((mut call, call_end), (mut err, err_end)) = (ends(), ends());
        for mut end in [&call, &err] {
            end.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
            fcntl_setfl(end, OFlags::RDWR).unwrap();
        }
        let vring = Vring { call: Some(call_end), err: Some(err_end), ..Rig::vring(&driver, 2) };
        let relay = Relay::start(&vring).unwrap();
        let start = Instant::now();
        relay.call();
        relay.err();
        thread::sleep(Duration::from_millis(20));
        drop(relay);
        assert!(start.elapsed() < LIMIT / 10);
        let mut bytes = [0; 8];
        call.read_exact(&mut bytes).unwrap();
        err.read_exact(&mut bytes).unwrap();
    }

    /// A read that takes several kicks together leaves none. Otherwise the pipe would stay full.
    #[test]
    fn a_pipe_of_kicks_is_drained() {
        let driver = Driver::new(8, Features::empty());
        let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let (mut write, mut kicks) = (File::from(write), 0);
        let vring = Vring { kick: Arc::new(Notifier::new(read).unwrap()), ..Rig::vring(&driver, 2) };
        while write.write(&1u64.to_ne_bytes()).is_ok() {
            kicks += 1;
        }
        let relay = Relay::start(&vring).unwrap();
        for _ in 0..2 * kicks {
            until("room in the pipe", || write.write(&1u64.to_ne_bytes()).is_ok());
        }
        until("the kick", || relay.kicked().wait(Duration::ZERO));
        drop(relay);
    }
}
