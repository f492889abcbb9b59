//! Replacements of volt-netd under one front-end: hand-overs, and workers that die under their supervisor.
//!
//! [`Rig::take_over`] and [`Rig::kill_worker`] change the serving process. Meanwhile a [`Flow`] moves
//! numbered frames both ways and counts arrived, lost and repeated ones.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::{Daemon, child, next_netd, poll_until, program};
use crate::far_end::FarEnd;
use crate::frame::{ETHERTYPE, NetHeader, number_of, numbered};
use crate::rig::{LIMIT, QUIET, Rig};
use crate::session::Session;

/// Bytes of the frames of a [`Flow`].
const LEN: usize = 200;

/// Arguments of a [`Rig`] whose daemon has a control socket and restarts after a crash.
pub const SUPERVISED: [&str; 3] = ["--control", "{control}", "--supervise"];

impl Rig {
    /// Starts a successor, which has not taken over yet when this returns.
    ///
    /// # Panics
    /// If it does not start.
    pub fn successor(&self, arguments: &[&str]) -> Daemon {
        let mut command = self.netns.command(next_netd());
        command.args(["--log-level", "debug", "--take-over"]).arg(self.control()).args(arguments);
        Daemon::start(command).expect("volt-netd")
    }

    /// Makes a successor take over; the previous daemon has ended successfully when this returns.
    ///
    /// # Panics
    /// If one of these fails.
    pub fn take_over(&mut self, arguments: &[&str]) {
        let successor = self.successor(arguments);
        self.succeed(successor);
    }

    /// Makes a started successor take over.
    ///
    /// # Panics
    /// If it does not take over, or the previous daemon fails.
    pub fn succeed(&mut self, successor: Daemon) {
        let took = successor.logged(0, &["took over"], LIMIT);
        assert!(
            took.is_some(),
            "log of the successor:\n{}\nof the daemon:\n{}",
            successor.log(),
            self.daemon.log()
        );
        let status = self.daemon.wait(LIMIT).expect("the daemon ends");
        assert!(status.success(), "{status}:\n{}", self.daemon.log());
        self.logged(&["handed over to volt-netd"]);
        self.daemon = successor;
    }

    /// Returns the worker of the daemon, which is its supervisor.
    ///
    /// # Panics
    /// If there is none.
    pub fn worker(&self) -> Pid {
        poll_until(LIMIT, || child(self.daemon.pid())).expect("a worker")
    }

    /// Kills the worker, and waits until the next one has taken its place. Returns the time that took.
    ///
    /// # Panics
    /// If no new worker starts.
    pub fn kill_worker(&self) -> Duration {
        let dead = self.worker();
        let from = self.daemon.log().len();
        let start = Instant::now();
        kill_process(dead, Signal::KILL).expect("the worker lives");
        self.next_worker(dead, from);
        start.elapsed()
    }

    /// Waits until another worker has taken the place of `dead`, whose death the log reports after its byte
    /// `from`.
    ///
    /// # Panics
    /// If no new worker starts.
    pub fn next_worker(&self, dead: Pid, from: usize) {
        let next = poll_until(LIMIT, || child(self.daemon.pid()).filter(|pid| *pid != dead));
        assert!(next.is_some(), "no new worker started:\n{}", self.daemon.log());
        let told = self.daemon.logged(from, &["worker was ended by"], LIMIT);
        assert!(told.is_some(), "the log does not report it:\n{}", self.daemon.log());
    }

    /// Returns the output of `volt-netd ctl status`.
    ///
    /// # Panics
    /// If it prints no JSON.
    pub fn status(&self) -> serde_json::Value {
        let mut command = Command::new(program("volt-netd"));
        command.args(["ctl", "status", "--json", "--control"]).arg(self.control()).stderr(Stdio::inherit());
        let output = command.output().expect("volt-netd ctl");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }
}

/// Numbered frames both ways on pair 0.
#[derive(Debug, Default)]
pub struct Flow {
    first: u32,
    /// Frames that the guest has made available, and those returned to it.
    offered: u32,
    used: u32,
    /// Numbers seen on the wire, in order.
    out: Vec<u32>,
    /// Frames sent to the interface.
    sent: u32,
    /// Numbers that the guest received, in order.
    got: Vec<u32>,
    /// Time of the last frame, and the longest time without one, each way.
    gaps: [(Option<Instant>, Duration); 2],
}

/// The results of a [`Flow`], one way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Frames that should have arrived.
    pub frames: u32,
    /// Frames that did not arrive.
    pub lost: u32,
    /// Extra arrivals.
    pub repeated: u32,
    /// Frames that arrived before an earlier one, without repetitions.
    pub reordered: u32,
}

impl Flow {
    /// Makes a flow whose numbers begin at `first`.
    pub fn new(first: u32) -> Flow {
        Flow { first, ..Flow::default() }
    }

    /// Sends a few more frames each way, and takes all arrived ones.
    ///
    /// # Panics
    /// If a ring breaks, or a frame does not belong to this flow.
    pub fn pump(&mut self, session: &mut Session, wire: &dyn FarEnd) {
        let tx = session.tx(0);
        for _ in 0..4 {
            if self.offered - self.used < 100 {
                let frame = numbered(self.first + self.offered, LEN);
                tx.offer(&NetHeader::default(), &frame, &[]).expect("room");
                self.offered += 1;
            }
        }
        tx.kick().expect("a kick");
        if (self.sent as usize) < self.got.len() + 20 {
            wire.send(&numbered(self.first + self.sent, LEN)).expect("sent");
            self.sent += 1;
        }
        self.collect(session, wire);
    }

    /// Sends `rate` frames a second each way, whether they arrive or not, until `over`. Frames that do not
    /// fit the guest's ring are sent later.
    ///
    /// # Panics
    /// As [`Flow::pump`].
    pub fn run_at(
        &mut self,
        rate: u32,
        session: &mut Session,
        wire: &dyn FarEnd,
        mut over: impl FnMut() -> bool,
    ) {
        let room = u32::from(session.tx(0).ring.layout().size) * 3 / 4;
        let start = Instant::now();
        while !over() {
            let due = (start.elapsed().as_micros() * u128::from(rate) / 1_000_000) as u32;
            while self.offered < due && self.offered - self.used < room {
                let frame = numbered(self.first + self.offered, LEN);
                session.tx(0).offer(&NetHeader::default(), &frame, &[]).expect("room");
                self.offered += 1;
            }
            session.tx(0).kick().expect("a kick");
            while self.sent < due {
                wire.send(&numbered(self.first + self.sent, LEN)).expect("sent");
                self.sent += 1;
            }
            self.collect(session, wire);
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Returns the longest time without a frame from the guest, and without one to it.
    pub fn gaps(&self) -> [Duration; 2] {
        self.gaps.map(|(_, longest)| longest)
    }

    fn collect(&mut self, session: &mut Session, wire: &dyn FarEnd) {
        let before = [self.out.len(), self.got.len()];
        self.take(session, wire);
        let came = [self.out.len() > before[0], self.got.len() > before[1]];
        for ((last, longest), _) in self.gaps.iter_mut().zip(came).filter(|(_, came)| *came) {
            let now = Instant::now();
            *longest = (*longest).max(now - last.replace(now).unwrap_or(now));
        }
    }

    fn take(&mut self, session: &mut Session, wire: &dyn FarEnd) {
        while let Some(used) = session.tx(0).try_used().expect("an intact transmit ring") {
            assert_eq!(used.len, 0, "nothing is written to a transmit chain");
            session.tx(0).parts(used);
            self.used += 1;
        }
        while let Ok(frame) = session.rx(0).recv_only(Duration::ZERO, true) {
            self.got.extend(number(&frame.bytes));
        }
        session.rx(0).kick().expect("a kick");
        while let Some((_, frame)) = wire.recv(Duration::ZERO).expect("the wire") {
            self.out.extend(number(&frame));
        }
    }

    /// Runs for `time`.
    ///
    /// # Panics
    /// As [`Flow::pump`].
    pub fn run(&mut self, session: &mut Session, wire: &dyn FarEnd, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.pump(session, wire);
            // Paced, so that the interface's queue holds the frames during an interruption.
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Runs until the given numbers of frames have been sent each way.
    ///
    /// # Panics
    /// As [`Flow::pump`], or if they do not move.
    pub fn run_to(&mut self, session: &mut Session, wire: &dyn FarEnd, out: u32, into: u32) {
        let end = Instant::now() + LIMIT;
        while self.offered < out || self.sent < into {
            assert!(Instant::now() < end, "stuck after {} frames out and {} in", self.offered, self.sent);
            self.run(session, wire, Duration::from_millis(5));
        }
    }

    /// Waits for frames in flight, and returns the results: from the guest, and to it.
    ///
    /// # Panics
    /// If a chain of the guest is not returned, or an unexpected one is.
    pub fn settle(mut self, session: &mut Session, wire: &dyn FarEnd) -> (Account, Account) {
        let mut quiet = Instant::now() + QUIET;
        let end = Instant::now() + LIMIT;
        let mut seen = 0;
        while (Instant::now() < quiet || self.used < self.offered) && Instant::now() < end {
            self.collect(session, wire);
            let now = self.out.len() + self.got.len() + self.used as usize;
            if now != seen {
                (seen, quiet) = (now, Instant::now() + QUIET);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(self.used, self.offered, "every chain is returned once");
        assert_eq!(session.tx(0).ring.outstanding(), 0, "a transmit chain is missing");
        (account(self.first, self.offered, &self.out), account(self.first, self.sent, &self.got))
    }
}

/// Returns the number of a flow's frame; `None` for another sender's, such as a bridge's.
fn number(frame: &[u8]) -> Option<u32> {
    let ours = frame.get(12..14) == Some(&ETHERTYPE.to_be_bytes()[..]);
    ours.then(|| number_of(frame).unwrap_or_else(|| panic!("damaged frame {frame:02x?}")))
}

fn account(first: u32, frames: u32, seen: &[u32]) -> Account {
    let mut once = Vec::new();
    let mut known = std::collections::HashSet::new();
    for number in seen {
        assert!((first..first + frames).contains(number), "frame {number} does not belong to this flow");
        if known.insert(*number) {
            once.push(*number);
        }
    }
    Account {
        frames,
        lost: frames - once.len() as u32,
        repeated: (seen.len() - once.len()) as u32,
        reordered: once.windows(2).filter(|pair| pair[0] > pair[1]).count() as u32,
    }
}

impl Account {
    /// Returns whether no frame was lost, repeated or reordered.
    pub fn is_perfect(&self) -> bool {
        *self == Account { frames: self.frames, ..Account::default() } && self.frames > 0
    }
}
