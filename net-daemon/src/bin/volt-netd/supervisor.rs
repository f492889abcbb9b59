//! The minimal parent of `--supervise`: holds what its worker commits, and starts another one when that dies.
//!
//! It reads nothing that a guest or a front-end has written, maps no memory of theirs, and waits for two things: its worker
//! and signals. A worker is a fork of it, so that the next one has the descriptors at once.
//!
//! Two workers never serve one ring: the next one is started when the last one has been reaped.
#![expect(unsafe_code, reason = "fork")]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Instant;

use log::{error, info, warn};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::value::RawValue;
use volt_net::error_chain;
use volt_net::net::journal::Journal;
use volt_net::state::{FdId, frame};
use volt_net::vhost_user::channel::{self, Piece};
use volt_program::logging;

use crate::cli::Cli;
use crate::handover::{Successor, send_go};
use crate::holder::{Answer, Bytes, Commit, Holder, Order, Report};
use crate::launch::{self, AnyError, Gate, Inheritance, Origin, Supervision, Unusable};
use crate::server::End;
use crate::signals;
use crate::state::Last;
use crate::supervisor::deaths::Deaths;
use crate::supervisor::worker::Worker;
use crate::systemd::Store;

mod deaths;
mod worker;

/// Most bytes read at once; a message is shorter.
const MAX_READ: usize = 1 << 16;
/// Status of a worker that could not go on with the state.
const UNUSABLE: i32 = 3;

/// How a worker's time is over.
#[derive(Debug)]
enum Outcome {
    /// It ended by itself, with this status.
    Ended(u8),
    /// It could not go on with the state.
    Unusable,
    /// It died.
    Died(String),
    /// Another daemon has everything now.
    GivenAway,
}

/// Runs workers until one ends by itself.
pub(crate) fn run(cli: &Cli, origin: Origin) -> Result<ExitCode, AnyError> {
    let mut signals = signals::set(&signals::ending());
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    // For the worker, which takes them when it can.
    signals::set(&signals::OF_A_WORKER).thread_block()?;
    let signal_fd = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut supervisor = Supervisor {
        cli,
        signals,
        signal_fd,
        journal: Journal::new()?,
        store: Store::from_environment()?,
        held: Held::default(),
        deaths: Deaths::default(),
        told: false,
        predecessor: None,
        last: None,
    };
    supervisor.run(origin)
}

/// What the last worker has left.
#[derive(Debug, Default)]
struct Held {
    state: Option<Box<RawValue>>,
    fds: BTreeMap<FdId, OwnedFd>,
    /// What the front-end has not taken of replies.
    unsent: Vec<u8>,
    /// What was read of the connection since the state was given.
    read: Vec<Piece>,
}

struct Supervisor<'a> {
    cli: &'a Cli,
    signals: SigSet,
    signal_fd: SignalFd,
    journal: Journal,
    store: Option<Store>,
    held: Held,
    deaths: Deaths,
    /// Told to end.
    told: bool,
    /// The daemon whose place the worker takes, until that has stopped.
    predecessor: Option<Successor>,
    /// What that daemon said last, until the worker's state has it.
    last: Option<Last>,
}

impl Supervisor<'_> {
    fn run(&mut self, mut origin: Origin) -> Result<ExitCode, AnyError> {
        loop {
            let stored = self.adopt(&mut origin);
            let worker = self.start(origin)?;
            if stored {
                info!("went on with what systemd kept");
            }
            match self.watch(&worker)? {
                Outcome::Ended(status) => {
                    if let Some(store) = self.store.as_mut().filter(|_| !self.told) {
                        store.clear();
                    }
                    return Ok(ExitCode::from(status));
                }
                Outcome::GivenAway => return Ok(ExitCode::SUCCESS),
                Outcome::Unusable => {
                    // The next start of the unit is a fresh one.
                    self.store.iter_mut().for_each(Store::clear);
                    return Ok(ExitCode::FAILURE);
                }
                Outcome::Died(how) => origin = self.mourn(&worker, &how),
            }
        }
    }

    /// Takes what is to be held of where the next worker comes from. Whether it came from systemd.
    fn adopt(&mut self, origin: &mut Origin) -> bool {
        if let Origin::Fresh(given) = origin
            && let Some(store) = &mut self.store
            && let Some(inheritance) = store.take(self.cli, &mut given.socket)
        {
            *origin = Origin::Dead(inheritance);
            self.hold(origin);
            return true;
        }
        if let Origin::Running(_, gate) = origin
            && let Gate::Direct(successor) = std::mem::replace(gate, Gate::Supervisor)
        {
            self.predecessor = Some(successor);
            self.store.iter_mut().for_each(Store::forget_all);
            self.hold(origin);
        }
        false
    }

    /// Keeps copies of what the worker gets: a fork has its own of each descriptor, so they are one and the same here.
    fn hold(&mut self, origin: &Origin) {
        if let Origin::Dead(from) | Origin::Running(from, _) = origin {
            self.held.state = RawValue::from_string(from.state.clone()).ok();
            self.held.unsent = from.unsent.clone().unwrap_or_default();
            let copies = from.fds.iter().filter_map(|(id, fd)| Some((*id, fd.try_clone().ok()?)));
            self.held.fds = copies.collect();
        }
    }

    fn start(&mut self, origin: Origin) -> Result<Worker, AnyError> {
        // A worker that stops in the middle of a report, or does not read its answer, is ended, and so is a supervisor.
        let (line, theirs) = Holder::pair()?;
        let known = self.held.fds.keys().copied().collect();
        let killers = self.deaths.killers.clone();
        self.deaths.worked = false;
        let restarts = self.deaths.restarts;
        // SAFETY: beside this thread there are the log's, and those that a silent file system holds in a system call. None
        // holds a lock but the allocator's, and that one is free in a child of the C library's.
        match logging::across_fork(|| unsafe { fork() })? {
            ForkResult::Parent { child } => {
                // The worker's own from here on.
                drop(origin);
                let worker = Worker { pid: child, line, started: Instant::now() };
                if self.told {
                    worker.tell_to_end();
                }
                Ok(worker)
            }
            ForkResult::Child => {
                drop(line);
                let leave = self.store.is_some();
                if leave {
                    worker::die_with_parent();
                }
                // Copies that would keep open what the supervisor closes.
                (self.held, self.predecessor, self.store) = (Held::default(), None, None);
                let until_flushed = theirs.try_clone();
                let supervision = Supervision {
                    holder: Holder::new(theirs, known),
                    journal: self.journal.clone(),
                    killers,
                    restarts,
                    leave,
                    blocked: self.signals,
                };
                let ran = logging::init_again().map_err(Into::into);
                let ran = ran.and_then(|()| launch::run(self.cli, origin, Some(supervision)));
                let status = match ran {
                    Ok(End::Over | End::GivenAway) => 0,
                    Err(error) => {
                        logging::say(&format_args!("volt-netd: {}", error_chain(&*error)));
                        if error.is::<Unusable>() { UNUSABLE } else { 1 }
                    }
                };
                // Before the line closes: this process is ended soon after.
                logging::flush();
                drop(until_flushed);
                std::process::exit(status)
            }
        }
    }

    /// Serves a worker until it is gone.
    fn watch(&mut self, worker: &Worker) -> Result<Outcome, AnyError> {
        loop {
            let mut waiting =
                [PollFd::new(&worker.line, PollFlags::IN), PollFd::new(&self.signal_fd, PollFlags::IN)];
            match poll(&mut waiting, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let (said, signalled) = (!waiting[0].revents().is_empty(), !waiting[1].revents().is_empty());
            if said && let Some(outcome) = self.listen(worker)? {
                return Ok(outcome);
            }
            if signalled && let Some(outcome) = self.signalled(worker)? {
                return Ok(outcome);
            }
        }
    }

    /// Takes one report.
    fn listen(&mut self, worker: &Worker) -> Result<Option<Outcome>, AnyError> {
        match frame::receive::<Report>(&worker.line) {
            Ok((Report::Commit(commit), fds)) => {
                let unsent = self.commit(commit, fds);
                // A worker that is dead needs no answer.
                let _ = frame::send(&worker.line, &Order::Held { unsent }, &[]);
                Ok(None)
            }
            Ok((Report::Read { connection, count }, _)) => {
                self.read(worker, connection, count);
                Ok(None)
            }
            Ok((Report::Ready, _)) => {
                let Some(successor) = self.predecessor.take() else { return Ok(None) };
                match successor.wait_for_go() {
                    Ok(last) => {
                        self.last = Some(last.clone());
                        let _ = frame::send(&worker.line, &Order::Start(last), &[]);
                        Ok(None)
                    }
                    Err(error) => {
                        worker.reap();
                        Err(error.into())
                    }
                }
            }
            Ok((Report::HandOver { program }, fds)) => Ok(self.hand_over(worker, fds, &program)),
            // Its end is at hand: the line closes with the process.
            Err(_) => Ok(Some(self.over(worker.reap()))),
        }
    }

    fn signalled(&mut self, worker: &Worker) -> Result<Option<Outcome>, AnyError> {
        if self.take_signals() {
            worker.tell_to_end();
        }
        match waitpid(worker.pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(_) => Ok(None),
            Ok(status) => {
                // What it said last counts: nobody but the dead worker could write there.
                while let Ok((Report::Commit(commit), fds)) = frame::receive::<Report>(&worker.line) {
                    self.commit(commit, fds);
                }
                Ok(Some(self.over(status)))
            }
        }
    }

    fn over(&self, status: WaitStatus) -> Outcome {
        match status {
            // One that has never served would not do better the next time.
            WaitStatus::Exited(_, UNUSABLE) => Outcome::Unusable,
            WaitStatus::Exited(_, status) if status == 0 || self.is_over() => {
                Outcome::Ended(u8::try_from(status).unwrap_or(1))
            }
            WaitStatus::Signaled(_, signal, _) if self.is_over() => {
                error!("the worker was ended by {signal}");
                Outcome::Ended(1)
            }
            WaitStatus::Exited(_, status) => Outcome::Died(format!("ended with status {status}")),
            WaitStatus::Signaled(_, signal, _) => Outcome::Died(format!("was ended by {signal}")),
            other => Outcome::Died(format!("{other:?}")),
        }
    }

    /// Whether a worker that dies now is the last one.
    fn is_over(&self) -> bool {
        self.told || self.held.state.is_none() || self.predecessor.is_some()
    }

    /// Holds a state, and ends the request that has led to it. Returns the bytes that the front-end has not taken.
    fn commit(&mut self, commit: Commit, fds: Vec<OwnedFd>) -> usize {
        let held = &mut self.held;
        held.fds.extend(commit.new.iter().copied().zip(fds));
        held.fds.retain(|id, _| commit.all.contains(id));
        held.read.clear();
        held.unsent = commit.unsent;
        held.state = Some(commit.state);
        // Every worker commits when it starts: it knows what to leave out.
        self.deaths.killers.clear();
        self.deaths.bad_request = false;
        self.last = None;
        if let Some(answer) = &commit.answer {
            self.deaths.worked = true;
            self.answer(answer);
        }
        self.store();
        self.held.unsent.len()
    }

    /// Reads the connection for the worker, and keeps what comes for the next one.
    fn read(&mut self, worker: &Worker, connection: FdId, count: usize) {
        let piece = match self.held.fds.get(&connection) {
            Some(socket) => channel::read(socket, count.min(MAX_READ)),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        };
        // A unit that is killed from here on has taken something that is in no state.
        if piece.as_ref().is_ok_and(|piece| piece.as_ref().is_some_and(|piece| !piece.bytes.is_empty())) {
            self.store.iter_mut().for_each(Store::begin_request);
        }
        let order = match &piece {
            Ok(piece) => Order::Piece(
                piece.as_ref().map(|piece| Bytes { bytes: piece.bytes.clone(), too_many: piece.too_many }),
            ),
            Err(error) => Order::Failed(error.raw_os_error().unwrap_or(0)),
        };
        let piece = piece.ok().flatten().unwrap_or_default();
        let fds: Vec<_> = piece.fds.iter().map(AsFd::as_fd).collect();
        // A worker that is dead needs no answer.
        let _ = frame::send(&worker.line, &order, &fds);
        if !piece.bytes.is_empty() {
            self.held.read.push(piece);
        }
    }

    fn answer(&mut self, answer: &Answer) {
        self.held.unsent.extend_from_slice(&answer.reply);
        if self.held.unsent.is_empty() {
            return;
        }
        // What of it was sent, a next start could not know before that is stored.
        self.store.iter_mut().for_each(Store::begin_request);
        let Some(connection) = self.held.fds.get(&answer.connection) else { return };
        if channel::send_all(connection, &mut self.held.unsent).is_err() {
            // The worker sees the end of the connection itself.
            self.held.unsent.clear();
        }
    }

    /// After a death: what the next worker has to know, and when it comes.
    fn mourn(&mut self, worker: &Worker, how: &str) -> Origin {
        let lived = worker.started.elapsed();
        self.deaths.add(self.journal.take(), lived);
        let soon = match self.deaths.backoff.as_millis() {
            0 => String::new(),
            wait => format!(" in {wait} ms"),
        };
        warn!(
            "the worker {how} after {:.1} s: another one goes on with its state{soon}",
            lived.as_secs_f32()
        );
        self.deaths.tell();
        self.pause();
        let fds = self.held.fds.iter().filter_map(|(id, fd)| Some((*id, fd.try_clone().ok()?)));
        Origin::Dead(Inheritance {
            state: self.held.state.as_ref().map(|state| state.get().to_owned()).unwrap_or_default(),
            fds: fds.collect(),
            unsent: Some(self.held.unsent.clone()),
            read: self.held.read.iter().filter_map(copy).collect(),
            drop_connection: self.deaths.bad_request,
            last: self.last.clone(),
        })
    }

    /// Lets another daemon go, if it is still there, and ends the worker, which has stopped.
    fn hand_over(&mut self, worker: &Worker, fds: Vec<OwnedFd>, program: &str) -> Option<Outcome> {
        // Before: nobody may find there what another daemon serves.
        self.store.iter_mut().for_each(Store::clear);
        let successor = fds.first().map(AsFd::as_fd);
        if successor.is_some_and(|socket| send_go(&socket).is_ok()) {
            worker.end();
            info!(target: logging::END, "handed over to {program}");
            return Some(Outcome::GivenAway);
        }
        self.store();
        let _ = frame::send(&worker.line, &Order::GoOn, &[]);
        None
    }

    /// Leaves what is held with systemd, if that is there.
    fn store(&mut self) {
        if let Some(store) = &mut self.store {
            store.keep(&self.held.fds, self.held.state.as_deref(), &self.held.unsent);
        }
    }

    /// Waits before the next worker, which is then told to end if this process is.
    fn pause(&mut self) {
        let end = Instant::now() + self.deaths.backoff;
        while !self.told {
            let left = end.saturating_duration_since(Instant::now());
            let limit = Timespec::try_from(left).ok();
            if !matches!(poll(&mut [PollFd::new(&self.signal_fd, PollFlags::IN)], limit.as_ref()), Ok(1)) {
                return;
            }
            self.take_signals();
        }
    }

    /// Whether one came that tells to end.
    fn take_signals(&mut self) -> bool {
        let mut told = false;
        while let Ok(Some(signal)) = self.signal_fd.read_signal() {
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                if !self.told && !told {
                    let signal = i32::try_from(signal.ssi_signo).unwrap_or_default();
                    info!(target: logging::END, "told to end by {}", volt_program::signals::name(signal));
                }
                told = true;
            }
        }
        self.told |= told;
        told
    }
}

fn copy(piece: &Piece) -> Option<Piece> {
    let fds = piece.fds.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>().ok()?;
    Some(Piece { bytes: piece.bytes.clone(), fds, too_many: piece.too_many })
}
