//! The control queue: each chain is executed at most once and answered if it has room for an answer. Executed
//! commands are within the driver's permissions.

use arbitrary::Arbitrary;
use volt_net::control::command::{Command, GUEST_OFFLOADS, Limits, MAX_MAC_TABLE};
use volt_net::control::queue::ControlQueue;
use volt_virtio::features::Features;

use super::STEPS;
use super::guest::{BUFFERS, Borders, Driver, DriverStep, Guest, chain};
use super::rig::vring;

#[derive(Arbitrary, Debug)]
pub(super) struct Input {
    borders: Borders,
    log: u8,
    features: u64,
    max_pairs: u16,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Driver(DriverStep),
    /// A command in a well-formed chain, in two pieces.
    Command {
        class: u8,
        command: u8,
        data: Vec<u8>,
        cut: u8,
        ack: u8,
    },
    Run,
}

pub(super) fn run(input: Input) {
    let guest = Guest::new(input.borders);
    let acked =
        Features::from_bits_retain(input.features).union(Features::VERSION_1).union(Features::NET_CTRL_VQ);
    let limits = Limits { acked, max_pairs: input.max_pairs };
    let mut driver = Driver::new(input.log, acked);
    let Some(vring) = vring(&guest, &driver) else { return };
    let mut control = ControlQueue::new(vring).expect("a thread");
    for step in input.steps.iter().take(STEPS) {
        match step {
            Step::Driver(step) => driver.step(&guest, step),
            Step::Command { class, command, data, cut, ack } => {
                // Commands longer than the largest MAC table test another error.
                let bytes: Vec<u8> =
                    [*class % 8, *command % 8].into_iter().chain(data.iter().copied()).collect();
                let cut = usize::from(*cut).min(bytes.len());
                for (n, part) in [&bytes[..cut], &bytes[cut..]].into_iter().enumerate() {
                    guest.write(BUFFERS + 0x1000 * n as u64, part);
                }
                place(&guest, &mut driver, [cut, bytes.len() - cut], u32::from(*ack % 4));
            }
            Step::Run => {
                if !drain(&guest, &driver, &mut control, limits) {
                    return;
                }
            }
        }
    }
}

/// Offers a chain of two readable parts at known addresses and `ack` writable bytes after them.
fn place(guest: &Guest, driver: &mut Driver, lens: [usize; 2], ack: u32) {
    let parts = [
        (BUFFERS, lens[0] as u32, false),
        (BUFFERS + 0x1000, lens[1] as u32, false),
        (BUFFERS + 0x4000, ack, true),
    ];
    driver.offer_at(guest, &parts);
}

fn drain(guest: &Guest, driver: &Driver, control: &mut ControlQueue, limits: Limits) -> bool {
    let layout = driver.layout;
    let indirect = driver.features.contains(Features::INDIRECT_DESC);
    for _ in 0..64 {
        let before = control.vring.ring.base();
        let mut commands = Vec::new();
        let more = control.run(limits, |command| commands.push(command));
        assert_eq!(control.vring.ring.base(), before, "an answer before the change was recorded");
        let more = more.and_then(|more| control.answer().map(|come| more || come));
        let done = control.vring.ring.base().wrapping_sub(before);
        assert!(done <= 16 && commands.len() <= usize::from(done));
        let mut answered = 0;
        for n in 0..done {
            let slot = u64::from(before.wrapping_add(n) % layout.size);
            let head = guest.u16(layout.avail + 4 + slot * 2).unwrap();
            let used = layout.used + 4 + slot * 8;
            let len = guest.u32(used + 4).unwrap();
            assert!(guest.u32(used) == Some(head.into()) && len <= 1);
            answered += len as usize;
            // The device's later writes may have changed a wild chain, but cannot have added room to it.
            let parts = chain(|at, len| guest.read(at, len), (layout.desc, layout.size), indirect, head);
            let room = parts.is_some_and(|parts| parts.iter().any(|(_, _, write)| *write));
            assert!(len == 0 || room || indirect, "an answer without room for it");
        }
        assert!(commands.len() <= answered, "executed but not answered");
        commands.iter().for_each(|command| allowed(command, limits));
        match more {
            Ok(false) => return true,
            Ok(true) => assert!(done > 0, "more to do, but nothing done"),
            Err(_) => return false,
        }
    }
    panic!("no end to it");
}

/// Checks a command against virtio 1.2, 5.1.6.5.
fn allowed(command: &Command, limits: Limits) {
    let needed = match command {
        Command::SetRxMode(..) => Features::NET_CTRL_RX,
        Command::SetMacTable { unicast, multicast } => {
            assert!(unicast.len() <= MAX_MAC_TABLE && multicast.len() <= MAX_MAC_TABLE);
            Features::NET_CTRL_RX
        }
        Command::SetMac(mac) => {
            assert!(!mac.is_multicast() && mac.0 != [0; 6]);
            Features::NET_CTRL_MAC_ADDR
        }
        Command::AddVlan(id) | Command::DeleteVlan(id) => {
            assert!(*id < 4096);
            Features::NET_CTRL_VLAN
        }
        Command::AckAnnounce => Features::NET_GUEST_ANNOUNCE,
        Command::SetPairs(pairs) => {
            assert!((1..=limits.max_pairs).contains(pairs));
            Features::NET_MQ
        }
        Command::SetGuestOffloads(offloads) => {
            assert!(GUEST_OFFLOADS.intersection(limits.acked).contains(*offloads));
            Features::NET_CTRL_GUEST_OFFLOADS
        }
    };
    assert!(limits.acked.contains(needed), "{command:?} without its feature");
}
