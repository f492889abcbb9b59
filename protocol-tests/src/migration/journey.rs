//! Random sessions under the oracle: traffic both ways, control commands, logging on and off, logs replaced,
//! rings stopped and started, hand-overs and deaths of the worker, in any order.
//!
//! [`Journey::new`] starts volt-netd and a session of random shape, [`Journey::step`] takes one step and then
//! asks the oracle. A session can be repeated by its seed.

use std::collections::HashMap;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::conform::random::Random;
use crate::dirty_log::DirtyLog;
use crate::memory::RegionSpec;
use crate::migration::oracle::Oracle;
use crate::rig::{LIMIT, Rig};
use crate::ring::Part;
use crate::session::{Session, Setup};
use crate::succession::SUPERVISED;
use crate::wire::{feature, protocol};

mod changes;
mod traffic;

/// First guest address.
const START: u64 = 0x10_0000;
/// Length of guest memory.
const MEMORY: u64 = 2 << 20;
/// Room for one receive chain, and for its indirect table behind that.
const SLOT: u64 = 0x3000;
/// Receive chains that a queue can have outstanding.
const SLOTS: usize = 24;

/// What the sessions of a journey did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Steps.
    pub steps: u64,
    /// Frames to the guest.
    pub received: u64,
    /// Frames that filled several buffers.
    pub merged: u64,
    /// Frames from the guest.
    pub sent: u64,
    /// Commands of the control queue.
    pub commands: u64,
    /// Times that logging was switched on.
    pub migrations: u64,
    /// Marked pages that a pass took.
    pub marked: u64,
    /// Marked pages in which nothing had changed.
    pub idle: u64,
    /// Hand-overs.
    pub take_overs: u64,
    /// Killed workers.
    pub kills: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, more: Tally) {
        self.steps += more.steps;
        self.received += more.received;
        self.merged += more.merged;
        self.sent += more.sent;
        self.commands += more.commands;
        self.migrations += more.migrations;
        self.marked += more.marked;
        self.idle += more.idle;
        self.take_overs += more.take_overs;
        self.kills += more.kills;
    }
}

/// Logging in force.
#[derive(Debug)]
struct Logging {
    log: DirtyLog,
    oracle: Oracle,
    /// Distance of the used rings' addresses in the log from their own.
    shift: u64,
}

/// A chain of receive buffers.
#[derive(Clone, Debug)]
struct Posted {
    slot: u64,
    parts: Vec<Part>,
}

/// The receive buffers of one queue.
#[derive(Debug, Default)]
struct Buffers {
    free: Vec<u64>,
    posted: HashMap<u16, Posted>,
}

/// A daemon with one session.
#[derive(Debug)]
pub struct Journey {
    rig: Rig,
    session: Session,
    random: Random,
    buffers: Vec<Buffers>,
    logging: Option<Logging>,
    /// Ranges that were published since the last check.
    published: Vec<(u64, u64)>,
    tally: Tally,
}

impl Journey {
    /// Starts a daemon and the session of `seed`. Returns `None`, and prints that `test` is skipped, if the
    /// machine allows no namespace.
    ///
    /// # Panics
    /// If the daemon refuses.
    pub fn new(test: &str, seed: u64) -> Option<Journey> {
        let arguments = [&SUPERVISED[..], &["--queues", "2"]].concat();
        let rig = Rig::new(test, &arguments)?;
        // Neighbouring seeds give unlike sessions.
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let setup = setup(&mut random);
        let session = Session::start(rig.connect(), &setup).expect("volt-netd serves the session");
        let mut journey = Journey {
            rig,
            session,
            random,
            buffers: vec![],
            logging: None,
            published: vec![],
            tally: Tally::default(),
        };
        for pair in 0..setup.pairs as usize {
            let start = journey.session.rx(pair).alloc(SLOTS * SLOT as usize);
            let free = (0..SLOTS as u64).map(|slot| start + slot * SLOT).collect();
            journey.buffers.push(Buffers { free, posted: HashMap::new() });
            journey.post(pair);
        }
        Some(journey)
    }

    /// Returns the number of steps so far.
    pub fn steps(&self) -> u64 {
        self.tally.steps
    }

    /// Takes one random step, and checks the marks after it. Returns the step's name.
    ///
    /// # Panics
    /// If a mark is missing, or the daemon misbehaves.
    pub fn step(&mut self) -> &'static str {
        let name = match self.random.below(10_000) {
            0..4800 => self.receive(),
            4800..8000 => self.transmit(),
            8000..9000 => self.pass(),
            9000..9300 => self.command(),
            9300..9400 => self.restart_rings(),
            9400..9420 => self.restart_before_the_log(),
            9420..9500 => self.addresses(),
            9500..9600 => self.memory(),
            9600..9700 => self.replace_log(),
            9700..9985 => self.toggle(),
            9985..9990 => self.take_over(),
            _ => self.kill(),
        };
        self.check(name);
        self.tally.steps += 1;
        name
    }

    /// Ends the session, and returns its counts.
    ///
    /// # Panics
    /// As [`Journey::step`].
    pub fn finish(mut self) -> Tally {
        self.end_logging();
        self.tally
    }

    /// Asks the oracle about everything that was published since the last check.
    #[track_caller]
    fn check(&mut self, name: &str) {
        if let Some(Logging { log, oracle, .. }) = &self.logging
            && let Err(missing) = oracle.check(log, &self.published, LIMIT / 6)
        {
            panic!("step {}, {name}: {missing}; published {:x?}", self.tally.steps, self.published);
        }
        self.published.clear();
    }

    /// Copies the marked pages, like a pass of a migration.
    fn pass(&mut self) -> &'static str {
        if let Some(Logging { log, oracle, .. }) = &mut self.logging {
            oracle.pass(log);
        }
        "pass"
    }

    /// Waits for calls of receive queues, or a moment.
    fn wait(&mut self) {
        let queues = self.session.nic.queues.iter().step_by(2);
        let mut calls: Vec<_> = queues.map(|queue| PollFd::new(&queue.call, PollFlags::IN)).collect();
        let moment = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        poll(&mut calls, Some(&moment)).expect("poll");
        self.session.nic.queues.iter_mut().for_each(|queue| _ = queue.drain_call());
    }

    fn is_mergeable(&self) -> bool {
        self.session.nic.features & feature::MRG_RXBUF != 0
    }
}

/// Returns a random set-up: ring sizes, features, and borders of regions in memory and in rings.
fn setup(random: &mut Random) -> Setup {
    let base = Setup::default();
    let mut features = base.features;
    for optional in [feature::EVENT_IDX, feature::INDIRECT_DESC, feature::MRG_RXBUF] {
        if random.chance(3) {
            features &= !optional;
        }
    }
    let (pairs, control) = if random.chance(2) { (2, Some(4)) } else { (1, None) };
    if control.is_some() {
        features |= feature::MQ | feature::CTRL_VQ;
    }
    let size = 32 << random.below(5);
    // In the first queue's ring, or anywhere.
    let ring = u64::from(crate::ring::Layout::at(START, size).end() as u32 - START as u32);
    let within = if random.chance(2) { ring } else { MEMORY - 0x1000 };
    let border = (16 + random.below(within / 16 - 1) * 16).min(MEMORY - 16);
    let regions = match random.chance(3) {
        true => vec![RegionSpec::linear(START, MEMORY, 0)],
        false => RegionSpec::adjoining(START, &[(border, 0x30), (MEMORY - border, 0x1010)]),
    };
    let start = if random.chance(2) { 0_u16.wrapping_sub(random.below(600) as u16) } else { 0 };
    let wanted = protocol::MQ | protocol::REPLY_ACK | protocol::LOG_SHMFD | protocol::RARP;
    Setup { features, pairs, control, size, start, regions, enabled: pairs, protocol: wanted }
}
