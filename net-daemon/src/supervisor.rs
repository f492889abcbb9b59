//! The minimal parent of `--supervise`: holds what its worker commits, and starts another one when that dies.
//!
//! It reads nothing that a guest or a front-end has written, maps no memory of theirs, and waits for two
//! things: its worker and signals. A worker is a fork of it, so that the next one has the descriptors at
//! once.
//!
//! Two workers never serve one ring: the next one is started when the last one has been reaped.
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

/// Status of a worker that could not go on with the state.
const UNUSABLE: i32 = 3;

/// Runs workers until one ends by itself.
pub(crate) fn run(cli: &Cli, origin: Origin, opener: Arc<Opener>) -> Result<ExitCode, AnyError> {
    let mut signals = signals::ending();
    signals.push(libc::SIGCHLD);
    let signals = SignalSet::of(&signals);
    signals.block()?;
    // For the worker, which takes them when it can.
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
    /// For its workers.
    opener: Arc<Opener>,
    signals: SignalSet,
    signal_fd: SignalFd,
    notes: CrashNotes,
    store: Option<Store>,
    held: Held,
    deaths: Deaths,
    observers: Observers,
    /// Told to end.
    told: bool,
    confined: bool,
    /// The daemon whose place the worker takes, until that has stopped.
    predecessor: Option<Predecessor>,
    /// What that daemon said last, until the worker's state has it.
    last: Option<FinalState>,
}

impl Supervisor<'_> {
    fn run(&mut self, mut origin: Origin) -> Result<ExitCode, AnyError> {
        loop {
            let stored = self.adopt(&mut origin);
            let worker = self.start(origin)?;
            if stored {
                info!(event = "went_on_from_store"; "went on with what systemd kept");
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
                Outcome::Died(how) => origin = self.after_death(&worker, &how),
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
        if let Origin::Running(_, go_signal) = origin
            && let GoSignal::Direct(predecessor) = std::mem::replace(go_signal, GoSignal::Supervisor)
        {
            self.predecessor = Some(predecessor);
            self.store.iter_mut().for_each(Store::forget_all);
            self.hold(origin);
        }
        false
    }

    /// Keeps copies of what the worker gets: a fork has its own of each descriptor, so they are one and the
    /// same here.
    fn hold(&mut self, origin: &Origin) {
        if let Origin::Dead(from) | Origin::Running(from, _) = origin {
            self.held.state = RawValue::from_string(from.state.clone()).ok();
            self.held.unsent = from.unsent.clone().unwrap_or_default();
            let copies = from.fds.iter().filter_map(|(id, fd)| Some((*id, fd.try_clone().ok()?)));
            self.held.fds = copies.collect();
        }
    }

    fn start(&mut self, origin: Origin) -> Result<Worker, AnyError> {
        // A worker that stops in the middle of a report, or does not read its answer, is ended, and so is a
        // supervisor.
        let (line, theirs) = Line::pair()?;
        let (lines, inquiries) = self.observers.lines()?;
        let known = self.held.fds.keys().copied().collect();
        let deadly = self.deaths.deadly.clone();
        self.deaths.worked = false;
        let restarts = self.deaths.restarts;
        // SAFETY: beside this thread there are the log's, and those that a silent file system holds in a
        // system call. None holds a lock but the allocator's, and that one is free in a child of the C
        // library's.
        let forked = logging::across_fork(|| unsafe { libc::fork() });
        match Pid::from_raw(forked) {
            _ if forked < 0 => Err(io::Error::last_os_error().into()),
            Some(pid) => {
                // The worker's own from here on.
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
                // Copies that would keep open what the supervisor closes.
                (self.held, self.predecessor, self.store) = (Held::default(), None, None);
                // Its thread is the supervisor's, and nobody is there to wait for.
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

    /// Takes one report.
    fn listen(&mut self, worker: &Worker) -> Result<Option<Outcome>, AnyError> {
        match transfer::receive::<Report>(&worker.line) {
            Ok((Report::Commit(commit), fds)) => {
                self.confine(worker)?;
                let unsent = self.commit(commit, fds);
                // A worker that is dead needs no answer.
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
            // Its end is at hand: the line closes with the process.
            Err(_) => Ok(Some(self.over(worker.reap()))),
        }
    }

    /// Gives up what it takes to open an interface, as soon as a worker has done so: those that come after it
    /// go on with what is open.
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
                // What it said last counts: nobody but the dead worker could write there.
                while let Ok((Report::Commit(commit), fds)) = transfer::receive::<Report>(&worker.line) {
                    self.commit(commit, fds);
                }
                Ok(Some(self.over(Some(status))))
            }
        }
    }

    /// After a death: what the next worker has to know, and when it comes.
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
            info!(target: logging::END, event = "handed_over", program; "handed over to {program}");
            return Some(Outcome::GivenAway);
        }
        self.store();
        let _ = transfer::send(&worker.line, &Order::GoOn, &[]);
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
