//! Frames both ways through a filter: each verdict, each rebuilt header and each cleared byte is what a slow
//! model says, through changes of the policy and of the process.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use arbitrary::Arbitrary;
use volt_filter::Way;
use volt_filter::setup::{Learn, Setup};
use volt_filter::summary::Summary;
use volt_filter::verdict::{Filter, JUDGED, Memory, Verdict};

use super::STEPS;
use build::{Changes, Spec};
use ends::GUEST;
use model::Model;
use policies::POLICIES;
use talk::Talk;

mod build;
mod check;
mod ends;
mod load;
mod model;
mod policies;
mod read;
mod rules;
mod talk;
mod tcp;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    learn: u8,
    policy: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Frame(Spec),
    Talk(Talk),
    /// Hosts show their MAC addresses.
    Show(u8),
    /// Several new flows.
    Flood(Spec, u8),
    /// The last frame that passed, again or answered, with changes.
    Again {
        answer: bool,
        changes: Changes,
    },
    Later(u8),
    Policy(u8),
    /// Another process goes on.
    Next(u8),
}

struct Words(Vec<AtomicU64>);

impl AsRef<[AtomicU64]> for Words {
    fn as_ref(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// A filter and its model.
struct Pair {
    filter: Filter,
    memory: Memory,
    model: Model,
    /// The last frame that passed, header first, and whether it went out.
    last: (bool, Vec<u8>),
}

pub(super) fn run(input: Input) {
    let learn = match input.learn % 4 {
        0 => Some(Learn { dhcp: None, prefixes: vec!["2001:db8:1::/64".parse().expect("a prefix")] }),
        1 => {
            let dhcp = Some([192, 0, 2, 1].into());
            Some(Learn { dhcp, prefixes: vec!["2001:db8:1::/64".parse().expect("a prefix")] })
        }
        _ => None,
    };
    let policy = POLICIES.get(usize::from(input.policy % 5));
    let model = Model::new(learn.as_ref().map(|learn| learn.dhcp), policy);
    let setup = Setup {
        mac: GUEST,
        addresses: model.given.clone(),
        learn,
        flows: model::FLOWS as u32,
        policy: policy.map(rules::Policy::text),
    };
    let words = Words((0..Filter::words(&setup)).map(|_| AtomicU64::new(0)).collect());
    let memory: Memory = Arc::new(words);
    let filter = Filter::new(setup, memory.clone(), [5, 7]).expect("a filter");
    let mut pair = Pair { filter, memory, model, last: (true, Vec::new()) };
    if input.learn >= 64 {
        pair.show(7);
    }
    for step in input.steps.iter().take(STEPS) {
        pair.step(step);
    }
}

impl Pair {
    fn step(&mut self, step: &Step) {
        match step {
            Step::Frame(spec) => self.judge(spec.out, &spec.make(&self.quotable())),
            Step::Talk(talk) => {
                talk.frames().for_each(|spec| self.judge(spec.out, &spec.make(&self.quotable())));
            }
            Step::Show(who) => self.show(*who),
            Step::Flood(spec, count) => {
                let frame = spec.make(&self.quotable());
                for number in 0..*count {
                    let mut frame = frame.clone();
                    // The guest's port, in packets without options.
                    let at = 26 + if spec.v6 { 40 } else { 20 } + if spec.out { 1 } else { 3 };
                    frame.iter_mut().skip(at).take(1).for_each(|byte| *byte = number);
                    self.judge(spec.out, &frame);
                }
            }
            Step::Again { answer, changes } => {
                let (out, mut frame) = self.last.clone();
                if *answer {
                    turn_around(&mut frame);
                }
                changes.apply(&mut frame);
                self.judge(out != *answer, &frame);
            }
            Step::Later(seconds) => {
                let times = [0, 1, 31, 61, 101, 181, 301, 601, 3601, 7441, 20_000];
                self.model.now += times[usize::from(*seconds) % times.len()];
            }
            Step::Policy(policy) => self.change_policy(POLICIES.get(usize::from(*policy % 6))),
            Step::Next(key) => {
                let setup = self.filter.setup().clone();
                let key = [u64::from(*key), 1];
                self.filter = Filter::new(setup, self.memory.clone(), key).expect("a filter");
            }
        }
    }

    fn change_policy(&mut self, policy: Option<&'static rules::Policy>) {
        let is_same = self.model.policy.map(rules::Policy::text) == policy.map(rules::Policy::text);
        self.model.number += u32::from(!is_same);
        self.model.policy = policy;
        self.filter = self.filter.with_policy(policy.map(rules::Policy::text)).expect("a policy");
    }

    /// Returns the IP packet of the last frame, and its way.
    fn quotable(&self) -> (bool, Vec<u8>) {
        (self.last.0, self.last.1.get(26..).unwrap_or_default().to_vec())
    }

    /// ARP and neighbour advertisements of the gateway and both neighbours, or of those that are chosen.
    fn show(&mut self, who: u8) {
        for (bit, mac, v4, v6) in [
            (1, ends::GATEWAY, "192.0.2.1", "fe80::fe"),
            (2, ends::NEIGHBOUR, "192.0.2.7", "2001:db8:1::7"),
            (4, ends::NEIGHBOUR, "192.0.2.8", "2001:db8:1::8"),
            (8, ends::NEIGHBOUR, "192.0.2.1", "fe80::fe"),
            (16, ends::GATEWAY, "198.51.100.7", "2001:db8:5::7"),
        ] {
            let [v4, v6, guest] = [v4, v6, "2001:db8:1::10"].map(|text| text.parse::<IpAddr>().expect("one"));
            let (IpAddr::V4(sender), IpAddr::V6(target)) = (v4, v6) else { continue };
            if who & bit == 0 {
                continue;
            }
            let link = [&[0; 12], &GUEST[..], &mac].concat();
            let arp = [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &mac[..], &sender.octets(), &GUEST, &[192, 0, 2, 10]];
            self.judge(false, &[&link[..], &arp.concat()].concat());
            let message = [&[136, 0, 0, 0, 0x60, 0, 0, 0], &target.octets()[..], &[2, 1], &mac].concat();
            let (_, packet, _) = build::ip((v6, guest), (58, 255), &message, 0xff);
            self.judge(false, &[&link[..], &[0x86, 0xdd], &packet].concat());
        }
    }

    /// Judges a frame with both, and compares.
    fn judge(&mut self, out: bool, frame: &[u8]) {
        let way = if out { Way::Out } else { Way::In };
        let (len, now) = (frame.len(), self.model.now);
        let first = &frame[..len.min(JUDGED)];
        let mut judged = first.to_vec();
        let verdict = self.filter.judge(way, &mut judged, len, now);
        let own = self.filter.addresses(now);
        let expected = self.model.judge(out, first, len, verdict);
        let _ =
            (Summary::of(way, frame), self.filter.reply(frame, volt_filter::reason::Reason::NotAllowed, now));
        assert_eq!(verdict, expected.verdict, "{}", Told { out, frame, model: &self.model });
        if matches!(verdict, Verdict::Refuse(_)) {
            return;
        }
        let mut passed = first.to_vec();
        passed[..12].copy_from_slice(&expected.header);
        passed.iter_mut().skip(expected.padding).for_each(|byte| *byte = 0);
        assert!(judged == passed, "{judged:02x?} passed instead of {passed:02x?}, out: {out}");
        if out {
            check::outgoing(&judged, self.model.policy, &own);
        }
        self.last = (out, frame.to_vec());
    }
}

/// Exchanges source and destination, and makes a request an answer.
fn turn_around(frame: &mut [u8]) {
    let v6 = frame.get(24) == Some(&0x86);
    let (at, len, load) = if v6 { (34, 16, 66) } else { (38, 4, 46) };
    if frame.len() < load + 4 {
        return;
    }
    let mut swap = |at: usize, len: usize| {
        let (one, other) = frame[at..at + 2 * len].split_at_mut(len);
        one.swap_with_slice(other);
    };
    swap(12, 6);
    swap(at, len);
    match frame[if v6 { 32 } else { 35 }] {
        6 => {
            swap_numbers(frame, load);
        }
        17 => frame[load..load + 4].rotate_left(2),
        1 | 58 => frame[load] ^= if v6 { 1 } else { 8 },
        _ => {}
    }
}

/// Makes the segment at `at` an acknowledgement of itself.
fn swap_numbers(frame: &mut [u8], at: usize) {
    let Some(header) = frame.get_mut(at..at + 14) else { return };
    header[..4].rotate_left(2);
    let bytes = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (sequence, acknowledged, flags) = (bytes(4), bytes(8), header[13]);
    let marks = u32::from(flags & 2 > 0) + u32::from(flags & 1 > 0);
    header[4..8].copy_from_slice(&(if flags & 16 > 0 { acknowledged } else { 500_000 }).to_be_bytes());
    header[8..12].copy_from_slice(&sequence.wrapping_add(marks).to_be_bytes());
    header[13] |= 16;
}

/// A frame for people.
struct Told<'a> {
    out: bool,
    frame: &'a [u8],
    model: &'a Model,
}

impl std::fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let way = if self.out { Way::Out } else { Way::In };
        let Model { now, number, policy, .. } = self.model;
        let rules = policy.map(rules::Policy::text).unwrap_or_default();
        let bytes = &self.frame[..self.frame.len().min(200)];
        write!(f, "{:?}\n{bytes:02x?}\nat {now}, policy {number}:\n{rules}", Summary::of(way, self.frame))
    }
}
