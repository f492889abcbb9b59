//! Chains of the transmit queue to a socket port: each valid one is a frame with exactly its bytes, in order;
//! each bad one is returned unsent; all used lengths are 0.

use arbitrary::Arbitrary;
use volt_net::batch::{BATCH, Turn};
use volt_net::tx::Tx;
use volt_virtio::features::Features;

use super::STEPS;
use super::guest::{BUFFERS, Borders, Driver, DriverStep, Guest, Part, chain};
use super::rig::{Rig, vring};

/// Lengths of the shortest and longest frame with its header of 12 bytes: an Ethernet header alone, and the
/// largest IP packet after one with two VLAN tags.
const FRAME: std::ops::RangeInclusive<usize> = 26..=12 + 14 + 8 + 65535;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    borders: Borders,
    log: u8,
    event_idx: bool,
    indirect: bool,
    discard: bool,
    fill: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Driver(DriverStep),
    /// Very many chains at once.
    Flood(u8, u16),
    Run,
}

pub(super) fn run(input: Input) {
    let guest = Guest::new(input.borders);
    let mut features = Features::VERSION_1;
    for (wanted, feature) in
        [(input.event_idx, Features::EVENT_IDX), (input.indirect, Features::INDIRECT_DESC)]
    {
        features = if wanted { features.union(feature) } else { features };
    }
    let mut driver = Driver::new(input.log, features);
    let Some(vring) = vring(&guest, &driver) else { return };
    for at in (BUFFERS..BUFFERS + 0x2000).step_by(64) {
        guest.write(at, &[input.fill ^ (at / 64) as u8; 64]);
    }
    let mut rig = Rig::new();
    let mut tx = Tx::new(vring, input.discard);
    for step in input.steps.iter().take(STEPS) {
        match step {
            Step::Driver(step) => driver.step(&guest, step),
            Step::Flood(count, len) => {
                (0..*count).for_each(|_| driver.offer(&guest, &[(*len, false)], false));
            }
            Step::Run => {
                if !drain(&guest, &driver, &mut tx, &mut rig) {
                    return;
                }
            }
        }
    }
    drain(&guest, &driver, &mut tx, &mut rig);
}

/// Runs the device until it is idle. Returns `false` if the driver broke the ring.
fn drain(guest: &Guest, driver: &Driver, tx: &mut Tx, rig: &mut Rig) -> bool {
    // A ring holds at most 256 chains; the socket holds at least 2 frames.
    for _ in 0..256 {
        let before = tx.base();
        let turn = tx.run(&rig.queue, &mut rig.health, &rig.counters);
        let done = tx.base().wrapping_sub(before);
        assert!(done <= driver.layout.size.min(BATCH as u16));
        check(guest, driver, tx, rig, before, done);
        match turn {
            Ok(Turn::Idle) => return true,
            // The wire has been emptied, so there is room again after a turn that filled it.
            Ok(_) => assert!(done > 0, "more to do, but nothing done"),
            Err(_) => return false,
        }
    }
    panic!("no end to it");
}

fn check(guest: &Guest, driver: &Driver, tx: &Tx, rig: &mut Rig, before: u16, done: u16) {
    let layout = driver.layout;
    let indirect = driver.features.contains(Features::INDIRECT_DESC);
    for n in 0..done {
        let slot = u64::from(before.wrapping_add(n) % layout.size);
        let head = guest.u16(layout.avail + 4 + slot * 2).unwrap();
        let used = layout.used + 4 + slot * 8;
        assert_eq!((guest.u32(used), guest.u32(used + 4)), (Some(head.into()), Some(0)));
        let parts = chain(|at, len| guest.read(at, len), (layout.desc, layout.size), indirect, head);
        let Some(frame) = parts.and_then(|parts| expected(guest, &parts)) else { continue };
        if tx.discard {
            continue;
        }
        let sent = rig.receive().expect("a frame for each good chain");
        assert_eq!(sent.len(), frame.bytes.len());
        // The device's writes to the used ring may change a frame.
        assert!(!frame.stable || sent == frame.bytes, "other bytes than the chain's");
    }
    assert_eq!(rig.receive(), None, "a frame of no chain");
}

struct Frame {
    bytes: Vec<u8>,
    stable: bool,
}

/// Returns the frame of a chain; `None` if it must not be sent.
fn expected(guest: &Guest, parts: &[Part]) -> Option<Frame> {
    let len: usize = parts.iter().map(|(_, len, _)| *len as usize).sum();
    if parts.iter().any(|(_, _, write)| *write) || !FRAME.contains(&len) {
        return None;
    }
    let bytes = parts.iter().filter_map(|(at, len, _)| guest.read(*at, *len as usize)).flatten().collect();
    Some(Frame { bytes, stable: parts.iter().all(|(at, _, _)| *at >= BUFFERS) })
}
