//! The supervisor of `--supervise`: a minimal parent process that holds the state committed by its worker,
//! and starts a new worker if it dies.
//!
//! The supervisor interprets no data of a guest or front-end, maps none of their memory, and waits for its
//! worker and for signals only. A worker is a fork of the supervisor, so the next one has the descriptors at
//! once.
//!
//! Two workers never serve one ring: the supervisor reaps a worker before it starts the next one.
#![expect(unsafe_code, reason = "fork")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use log::{info, warn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde_json::value::RawValue;
use volt_net::crash_note::CrashNotes;
use volt_net::state::transfer;
use volt_program::logging;
use volt_program::opener::Opener;
use volt_program::signals::{SignalFd, SignalSet, name};
use volt_virtio::error_chain;

use crate::cli::Cli;
use crate::handover::{Predecessor, send_go};
use crate::launch::{self, AnyError, GoSignal, Inheritance, Origin, Supervision, Unusable};
use crate::sandbox;
use crate::server::End;
use crate::signals;
use crate::state::FinalState;
use crate::supervision::{Line, Order, Report};
use crate::supervisor::deaths::Deaths;
use crate::supervisor::held::{Held, copy};
use crate::supervisor::observers::Observers;
use crate::supervisor::outcome::Outcome;
use crate::supervisor::worker::Worker;
use crate::systemd::Store;

mod deaths;
mod held;
mod observers;
mod outcome;
mod worker;

/// Exit status of a worker that could not use the state.
const UNUSABLE: i32 = 3;

/// Runs workers until one ends by itself.
pub(crate) fn run(cli: &Cli, origin: Origin, opener: Arc<Opener>) -> Result<ExitCode, AnyError> {
    let mut signals = signals::ending();
    signals.push(libc::SIGCHLD);
    let signals = SignalSet::of(&signals);
    signals.block()?;
    // The worker unblocks these once it handles them.
    SignalSet::of(&signals::OF_A_WORKER).block()?;
    let signal_fd = signals.descriptor()?;
    let mut supervisor = Supervisor {
        cli,
        opener,
        signals,
        signal_fd,
        notes: CrashNotes::new()?,
        store: Store::from_environment()?,
        held: Held::default(),
        deaths: Deaths::default(),
        observers: Observers::from_environment(),
        told: false,
        confined: false,
        predecessor: None,
        last: None,
    };
    supervisor.run(origin)
}

struct Supervisor<'a> {
    cli: &'a Cli,
    /// Used by the workers.
    opener: Arc<Opener>,
    signals: SignalSet,
    signal_fd: SignalFd,
    notes: CrashNotes,
    store: Option<Store>,
    held: Held,
    deaths: Deaths,
    observers: Observers,
    /// A signal has told this process to end.
    told: bool,
    confined: bool,
    /// The daemon that the worker replaces, until it has stopped.
    predecessor: Option<Predecessor>,
    /// The predecessor's last state, until the worker has committed a state with it.
    last: Option<FinalState>,
}

impl Supervisor<'_> {
    fn run(&mut self, mut origin: Origin) -> Result<ExitCode, AnyError> {
        loop {
            let stored = self.adopt(&mut origin);
            let worker = self.start(origin)?;
            if stored {
                info!(event = "went_on_from_store"; "continued with the state that systemd kept");
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
                    // The unit's next start begins afresh.
                    self.store.iter_mut().for_each(Store::clear);
                    return Ok(ExitCode::FAILURE);
                }
                Outcome::Died(how) => origin = self.after_death(&worker, &how),
            }
        }
    }

    /// Takes over the state in `origin`, or that in systemd's store. Returns whether it came from the store.
    fn adopt(&mut self, origin: &mut Origin) -> bool {
        if let Origin::Fresh(given) = origin
            && let Some(store) = &mut self.store
            && let Some(inheritance) = store.take(self.cli, given)
        {
            *origin = Origin::Dead(inheritance);
            self.hold(origin);
            return true;
        }
        if let Origin::Running(_, go_signal) = origin
            && let GoSignal::Direct(predecessor) = std::mem::replace(go_signal, GoSignal::Supervisor)
        {
            self.predecessor = Some(predecessor);
            self.store.iter_mut().for_each(Store::forget_all);
            self.hold(origin);
        }
        false
    }

    /// Keeps copies of the state that the worker gets. The worker, as a fork, has its own copy of each
    /// descriptor.
    fn hold(&mut self, origin: &Origin) {
        if let Origin::Dead(from) | Origin::Running(from, _) = origin {
            self.held.state = RawValue::from_string(from.state.clone()).ok();
            self.held.unsent = from.unsent.clone().unwrap_or_default();
            self.held.filter.clone_from(&from.filter);
            let copies = from.fds.iter().filter_map(|(id, fd)| Some((*id, fd.try_clone().ok()?)));
            self.held.fds = copies.collect();
        }
    }

    fn start(&mut self, origin: Origin) -> Result<Worker, AnyError> {
        // The line has time limits. Either side kills the other if it stops in the middle of a message, or
        // does not read or answer one.
        let (line, theirs) = Line::pair()?;
        let (lines, inquiries) = self.observers.lines()?;
        let known = self.held.fds.keys().copied().collect();
        let deadly = self.deaths.deadly.clone();
        self.deaths.worked = false;
        let restarts = self.deaths.restarts;
        // SAFETY: the other threads are the log's, those of the metrics server, and those that an
        // unresponsive file system holds in a system call. None of them holds a lock that the child takes: it
        // forgets the metrics server, and the C library's fork leaves the allocator's free. A thread that
        // starts or ends holds a lock of the standard library, without which no thread would start in the
        // child. Only one that a front-end's file system held can end just now, which harms that front-end's
        // guest alone.
        let forked = logging::across_fork(|| unsafe { libc::fork() });
        match Pid::from_raw(forked) {
            _ if forked < 0 => Err(io::Error::last_os_error().into()),
            Some(pid) => {
                // Only the worker uses these from now on.
                drop((origin, theirs, inquiries));
                self.observers.ask_by(lines);
                let worker = Worker { pid, line, started: Instant::now() };
                if self.told {
                    worker.tell_to_end();
                }
                Ok(worker)
            }
            None => {
                drop((line, lines));
                let leave = self.store.is_some();
                if leave {
                    worker::die_with_parent();
                }
                // These copies would keep open the descriptors that the supervisor closes.
                (self.held, self.predecessor, self.store) = (Held::default(), None, None);
                // Not dropped: the metrics server's thread exists in the supervisor only, so it cannot be
                // joined.
                std::mem::forget(std::mem::take(&mut self.observers));
                let until_flushed = theirs.try_clone();
                let supervision = Supervision {
                    supervisor: Line::new(theirs, self.opener.clone(), known),
                    notes: self.notes.clone(),
                    deadly,
                    restarts,
                    leave,
                    blocked: self.signals,
                    inquiries,
                };
                let ran = logging::init_again().map_err(Into::into);
                let ran =
                    ran.and_then(|()| launch::run(self.cli, origin, self.opener.clone(), Some(supervision)));
                let status = match ran {
                    Ok(End::Over | End::GivenAway) => 0,
                    Err(error) => {
                        logging::say("error", &format_args!("volt-netd: {}", error_chain(&*error)));
                        if error.is::<Unusable>() { UNUSABLE } else { 1 }
                    }
                };
                // Before the line closes: the supervisor kills this process soon after.
                logging::flush();
                drop(until_flushed);
                std::process::exit(status)
            }
        }
    }

    /// Serves a worker until it ends.
    fn watch(&mut self, worker: &Worker) -> Result<Outcome, AnyError> {
        loop {
            let watchdog = self.observers.watchdog.as_ref();
            let due = watchdog.and_then(|watchdog| Timespec::try_from(watchdog.due()).ok());
            let mut waiting =
                vec![PollFd::new(&worker.line, PollFlags::IN), PollFd::new(&self.signal_fd, PollFlags::IN)];
            let answers = watchdog.and_then(|watchdog| watchdog.line.as_ref());
            waiting.extend(answers.map(|line| PollFd::new(line, PollFlags::IN)));
            match poll(&mut waiting, due.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            let happened = |which: usize| waiting.get(which).is_some_and(|fd| !fd.revents().is_empty());
            let (said, signalled, answered) = (happened(0), happened(1), happened(2));
            drop(waiting);
            if answered {
                self.feed_watchdog();
            }
            if let Some(watchdog) = &mut self.observers.watchdog {
                watchdog.ask();
            }
            if said && let Some(outcome) = self.listen(worker)? {
                return Ok(outcome);
            }
            if signalled && let Some(outcome) = self.signalled(worker)? {
                return Ok(outcome);
            }
        }
    }

    /// Receives and handles one report of the worker.
    fn listen(&mut self, worker: &Worker) -> Result<Option<Outcome>, AnyError> {
        match transfer::receive::<Report>(&worker.line) {
            Ok((Report::Commit(commit), fds)) => {
                self.confine(worker)?;
                let unsent = self.commit(commit, fds);
                // A dead worker needs no answer.
                let _ = transfer::send(&worker.line, &Order::Held { unsent }, &[]);
                Ok(None)
            }
            Ok((Report::Read { connection, begun }, _)) => {
                self.read(worker, connection, &begun);
                Ok(None)
            }
            Ok((Report::Ready, _)) => {
                let Some(predecessor) = self.predecessor.take() else { return Ok(None) };
                match predecessor.wait_for_go() {
                    Ok(last) => {
                        self.last = Some(last.clone());
                        let _ = transfer::send(&worker.line, &Order::Start(last), &[]);
                        Ok(None)
                    }
                    Err(error) => {
                        worker.end();
                        Err(error.into())
                    }
                }
            }
            Ok((Report::HandOver { program }, fds)) => Ok(self.hand_over(worker, fds, &program)),
            // The line closes when the worker's process ends.
            Err(_) => Ok(Some(self.over(worker.reap()))),
        }
    }

    /// Drops the privileges for opening an interface after the first commit of a worker, which has it open:
    /// later workers inherit the descriptors.
    fn confine(&mut self, worker: &Worker) -> Result<(), AnyError> {
        if std::mem::replace(&mut self.confined, true) {
            return Ok(());
        }
        sandbox::confine_supervisor().map_err(|error| {
            worker.end();
            error.into()
        })
    }

    fn signalled(&mut self, worker: &Worker) -> Result<Option<Outcome>, AnyError> {
        if self.take_signals() {
            worker.tell_to_end();
        }
        match waitpid(Some(worker.pid), WaitOptions::NOHANG) {
            Ok(None) | Err(_) => Ok(None),
            Ok(Some((_, status))) => {
                // The dead worker's last commits are valid: no other process could write to its line.
                while let Ok((Report::Commit(commit), fds)) = transfer::receive::<Report>(&worker.line) {
                    self.commit(commit, fds);
                }
                Ok(Some(self.over(Some(status))))
            }
        }
    }

    /// Records and logs the death of a worker, waits for the backoff time, and returns the next worker's
    /// origin.
    fn after_death(&mut self, worker: &Worker, how: &str) -> Origin {
        let lived = worker.started.elapsed();
        self.deaths.add(self.notes.take(), lived);
        self.observers.worker_died(self.deaths.restarts);
        let soon = match self.deaths.backoff.as_millis() {
            0 => String::new(),
            wait => format!(" in {wait} ms"),
        };
        warn!(
            event = "worker_died", seconds = lived.as_secs_f32();
            "the worker {how} after {:.1} s: a new worker continues with its state{soon}",
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
            filter: self.held.filter.clone(),
            last: self.last.clone(),
        })
    }

    /// Tells the successor to start and kills the worker, which has stopped. If the successor is gone, the
    /// worker continues.
    fn hand_over(&mut self, worker: &Worker, fds: Vec<OwnedFd>, program: &str) -> Option<Outcome> {
        // First clear the store: a restarted unit must not find the state that the successor serves.
        self.store.iter_mut().for_each(Store::clear);
        let successor = fds.first().map(AsFd::as_fd);
        if successor.is_some_and(|socket| send_go(&socket).is_ok()) {
            worker.end();
            info!(target: logging::END, event = "handed_over", program; "handed over to {program}");
            return Some(Outcome::GivenAway);
        }
        self.store();
        let _ = transfer::send(&worker.line, &Order::GoOn, &[]);
        None
    }

    /// Stores the held state with systemd, if systemd started the unit.
    fn store(&mut self) {
        if let Some(store) = &mut self.store {
            store.keep(&self.held.fds, self.held.state.as_deref(), &self.held.unsent);
        }
    }

    /// Waits for the backoff time before the next worker, or until this process is told to end.
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

    /// Takes the pending signals. Returns whether one of them tells this process to end.
    fn take_signals(&mut self) -> bool {
        let mut told = false;
        while let Some(signal) = self.signal_fd.take() {
            if signal != libc::SIGCHLD {
                if !self.told && !told {
                    let by = name(signal);
                    info!(target: logging::END, event = "told_to_end", by:%; "told to end by {by}");
                }
                told = true;
            }
        }
        self.told |= told;
        told
    }
}
