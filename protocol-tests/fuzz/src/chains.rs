//! A ring by its primitives: pop, walk, push, publish, event index, start and restart, in memory that the
//! fuzzer writes, at addresses that it chooses.

use arbitrary::Arbitrary;
use volt_virtio::features::Features;
use volt_virtio::ring::{Head, Ring, RingLayout};

use super::STEPS;
use super::guest::{Borders, Driver, DriverStep, END, Guest, chain};

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    borders: Borders,
    log: u8,
    event_idx: bool,
    indirect: bool,
    /// At another address and with another size.
    place: Option<(u32, u32, u32, u16)>,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Driver(DriverStep),
    Pop,
    Push(u32),
    Publish,
    Wish(bool),
    Restart,
}

/// The device's expected state, from the specification only.
struct Model {
    guest: Guest,
    layout: RingLayout,
    features: Features,
    avail: u16,
    next_avail: u16,
    next_used: u16,
    published: u16,
    popped: Vec<Head>,
}

pub(super) fn run(input: Input) {
    let mut features = Features::VERSION_1;
    if input.event_idx {
        features = features.union(Features::EVENT_IDX);
    }
    if input.indirect {
        features = features.union(Features::INDIRECT_DESC);
    }
    let guest = Guest::new(input.borders);
    let mut driver = Driver::new(input.log, features);
    if let Some((desc, avail, used, size)) = input.place {
        let [desc, avail, used] = [desc, avail, used].map(|at| u64::from(at) % END);
        driver.layout = RingLayout { size, desc, avail, used };
    }
    let layout = driver.layout;
    let Ok(mut ring) = Ring::start(guest.memory.clone(), layout, features) else { return };
    let mut model = Model {
        guest,
        layout,
        features,
        avail: 0,
        next_avail: 0,
        next_used: 0,
        published: 0,
        popped: Vec::new(),
    };
    model.start(&ring);
    for step in input.steps.iter().take(STEPS) {
        let goes_on = match step {
            Step::Driver(step) => {
                driver.step(&model.guest, step);
                true
            }
            Step::Pop => model.pop(&mut ring),
            Step::Push(len) => {
                model.push(&mut ring, *len);
                true
            }
            Step::Publish => {
                model.publish(&mut ring);
                true
            }
            Step::Wish(kicks) => model.wish(&mut ring, *kicks),
            Step::Restart => false,
        };
        if !goes_on {
            // The driver restarts a broken ring, and one that stopped for another reason.
            ring = Ring::start(model.guest.memory.clone(), layout, features).expect("it started before");
            model.start(&ring);
        }
    }
}

impl Model {
    fn u16(&self, at: u64) -> u16 {
        self.guest.u16(at).expect("a part of a ring that has started is memory")
    }

    /// A ring continues at its used index.
    fn start(&mut self, ring: &Ring) {
        let base = self.u16(self.layout.used + 2);
        assert_eq!(ring.base(), base);
        (self.avail, self.next_avail, self.next_used, self.published) = (base, base, base, base);
        self.popped.clear();
    }

    fn size(&self) -> u16 {
        self.layout.size
    }

    /// Reads the available index like the device; `None` if it breaks the ring.
    fn refresh(&mut self) -> Option<bool> {
        let now = self.u16(self.layout.avail + 2);
        if now.wrapping_sub(self.next_used) > self.size() {
            return None;
        }
        self.avail = now;
        Some(now != self.next_avail)
    }

    fn pop(&mut self, ring: &mut Ring) -> bool {
        let expected = match self.next_avail == self.avail {
            true => self.refresh(),
            false => Some(true),
        };
        let slot = u64::from(self.next_avail % self.size());
        let head = self.u16(self.layout.avail + 4 + slot * 2);
        match ring.pop() {
            Err(_) => {
                assert!(expected.is_none() || (expected == Some(true) && head >= self.size()));
                return false;
            }
            Ok(None) => assert_eq!(expected, Some(false)),
            Ok(Some(popped)) => {
                assert_eq!((expected, popped.number()), (Some(true), head));
                assert!(head < self.size());
                self.next_avail = self.next_avail.wrapping_add(1);
                self.popped.push(popped);
                assert_eq!(usize::from(ring.outstanding()), self.popped.len());
                self.walk(ring, popped);
            }
        }
        true
    }

    fn walk(&self, ring: &Ring, head: Head) {
        let mut found = Vec::new();
        let result = ring.walk(head, |part, write| found.push((part.len(), write)));
        let indirect = self.features.contains(Features::INDIRECT_DESC);
        let read = |at, len| self.guest.read(at, len);
        let expected = chain(read, (self.layout.desc, self.size()), indirect, head.number()).map(|parts| {
            let pieces = |(at, len, write): (u64, u32, bool)| {
                let pieces = self.guest.pieces(at, len.into()).expect("the model has read it");
                pieces.into_iter().map(move |(_, _, len)| (len, write))
            };
            parts.into_iter().flat_map(pieces).collect::<Vec<_>>()
        });
        assert_eq!(result.ok().map(|()| found), expected);
    }

    fn push(&mut self, ring: &mut Ring, len: u32) {
        if self.popped.is_empty() {
            return;
        }
        let head = self.popped.remove(0);
        ring.push_used(head, len);
        let at = self.layout.used + 4 + u64::from(self.next_used % self.size()) * 8;
        assert_eq!((self.guest.u32(at), self.guest.u32(at + 4)), (Some(head.number().into()), Some(len)));
        self.next_used = self.next_used.wrapping_add(1);
    }

    fn publish(&mut self, ring: &mut Ring) {
        let (old, new) = (self.published, self.next_used);
        let told = ring.publish();
        self.published = new;
        if old == new {
            return assert!(!told, "nothing to tell");
        }
        assert_eq!(ring.base(), new);
        assert_eq!(self.u16(self.layout.used + 2), new);
        let wanted = if self.features.contains(Features::EVENT_IDX) {
            // The driver is called if the element at its event is among the new ones (virtio 1.2, 2.7.7.2).
            let event = self.u16(self.layout.avail + 4 + u64::from(self.size()) * 2);
            (0..new.wrapping_sub(old)).any(|n| old.wrapping_add(n) == event)
        } else {
            self.u16(self.layout.avail) & 1 == 0
        };
        assert_eq!(told, wanted);
    }

    fn wish(&mut self, ring: &mut Ring, kicks: bool) -> bool {
        let event_idx = self.features.contains(Features::EVENT_IDX);
        if !kicks {
            ring.disable_kicks();
            assert!(event_idx || self.u16(self.layout.used) == 1);
            return true;
        }
        let more = ring.enable_kicks();
        if event_idx {
            let at = self.layout.used + 4 + u64::from(self.size()) * 8;
            assert_eq!(self.u16(at), self.next_avail);
        } else {
            assert_eq!(self.u16(self.layout.used), 0);
        }
        assert_eq!(more.ok(), self.refresh());
        more.is_ok()
    }
}
