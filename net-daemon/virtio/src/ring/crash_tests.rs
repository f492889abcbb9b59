//! The restart rule, for every interleaving: a device that dies after any of its stores leaves a ring in
//! which the next device finds every chain that the driver waits for, once.

use super::*;
use crate::testing::{BUFFERS, Driver};

/// Number of entries of the ring: small, so that the interleavings include wrap-around and a full ring.
const SIZE: u16 = 2;
/// Number of steps of each interleaving.
const STEPS: u32 = 9;

/// One step of the driver or of the device. Each step of the device is one store to the ring, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Offer,
    Reap,
    Pop,
    Push,
    Publish,
    EnableKicks,
    Crash,
}

const ALL: [Step; 7] =
    [Step::Offer, Step::Reap, Step::Pop, Step::Push, Step::Publish, Step::EnableKicks, Step::Crash];

/// Driver, device, and the invariants between them.
struct Model {
    driver: Driver,
    ring: Ring,
    /// Popped and not pushed, in order.
    popped: Vec<Head>,
    /// Offered and not returned, in order.
    outstanding: Vec<u16>,
}

impl Model {
    fn new(features: Features) -> Model {
        let driver = Driver::new(SIZE, features);
        let ring = driver.ring();
        Model { driver, ring, popped: Vec::new(), outstanding: Vec::new() }
    }

    /// Takes the step, unless it is impossible now.
    fn take(&mut self, step: Step) -> bool {
        match step {
            Step::Offer if self.outstanding.len() < usize::from(SIZE) => {
                // Like a driver, reuse a descriptor only after its return.
                let head = (0..SIZE).find(|head| !self.outstanding.contains(head)).expect("one is free");
                self.driver.table(self.driver.layout.desc, head, SIZE, &[(BUFFERS, 1, false)]);
                self.driver.offer(head);
                self.outstanding.push(head);
                true
            }
            Step::Reap => {
                let used = self.driver.take_used();
                for (head, _) in &used {
                    assert!(!self.outstanding.is_empty(), "descriptor {head} returned twice");
                    assert_eq!(self.outstanding.remove(0), *head as u16, "not in order, or not offered");
                }
                !used.is_empty()
            }
            Step::Pop => {
                let head = self.ring.pop().expect("the driver keeps to the rules");
                self.popped.extend(head);
                head.is_some()
            }
            Step::Push if !self.popped.is_empty() => {
                self.ring.push_used(self.popped.remove(0), 0);
                true
            }
            Step::Publish => {
                let before = self.driver.used_idx();
                self.ring.publish();
                self.driver.used_idx() != before
            }
            Step::EnableKicks => {
                self.ring.enable_kicks().expect("the driver keeps to the rules");
                true
            }
            Step::Crash => {
                self.ring = self.driver.ring();
                self.popped.clear();
                true
            }
            Step::Offer | Step::Push => false,
        }
    }

    /// Restarts a last time and serves everything. Nothing may be missing then.
    fn finish(mut self, path: &[Step]) {
        self.take(Step::Crash);
        while self.take(Step::Pop) {
            self.take(Step::Push);
        }
        self.take(Step::Publish);
        self.take(Step::Reap);
        assert!(self.outstanding.is_empty(), "{:?} never came back after {path:?}", self.outstanding);
    }
}

/// Runs the steps that the digits of `number` in base [`ALL`] denote.
fn run(number: u64, features: Features) {
    let mut rest = number;
    let mut model = Model::new(features);
    let mut path = Vec::new();
    for _ in 0..STEPS {
        let step = ALL[(rest % ALL.len() as u64) as usize];
        rest /= ALL.len() as u64;
        if model.take(step) {
            path.push(step);
        }
    }
    model.finish(&path);
}

/// All interleavings of a shorter length, and every 997th of the full length. 997 is a prime, so that every
/// step occurs at every position.
#[test]
fn no_crash_loses_or_repeats_a_chain() {
    let all = (ALL.len() as u64).pow(STEPS);
    let short = (ALL.len() as u64).pow(5);
    for features in [Features::empty(), Features::EVENT_IDX] {
        for number in (0..short).chain((0..all).step_by(997)) {
            run(number, features);
        }
    }
}

/// The model detects a device that restarts from the index that it had popped.
#[test]
#[should_panic(expected = "never came back")]
fn a_wrong_base_is_seen() {
    let mut model = Model::new(Features::empty());
    for step in [Step::Offer, Step::Pop] {
        assert!(model.take(step));
    }
    let popped = model.ring.next_avail;
    model.ring = model.driver.ring();
    (model.ring.next_avail, model.ring.next_used, model.ring.published) = (popped, popped, popped);
    model.popped.clear();
    while model.take(Step::Pop) {
        model.take(Step::Push);
    }
    model.take(Step::Publish);
    model.take(Step::Reap);
    assert!(model.outstanding.is_empty(), "{:?} never came back", model.outstanding);
}
