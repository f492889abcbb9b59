//! Several queue pairs, and the control queue if the front-end leaves it to the back-end.

use super::bench::{Bench, LIMIT};
use super::{Finding, checks, ensure};
use crate::ring::Part;
use crate::session::{Session, Setup};
use crate::wire::{feature, protocol};

type Result = std::result::Result<(), Finding>;

/// Class and command that set the number of pairs (virtio 1.2, 5.1.6.5.5).
const PAIRS_SET: (u8, u8) = (4, 0);

checks! {
    "queues/second-pair", Must, Frames, "virtio 1.2, 5.1.2; vhost-user, Multiple queue support",
        "The second pair sends frames like the first.", second_pair;
    "queues/one-disabled", Must, Frames, "vhost-user, Ring states",
        "Disabling one pair leaves the other running; enabling it starts it again.", one_disabled;
    "queues/control-mq", Must, Control, "virtio 1.2, 5.1.2 and 5.1.6.5.5",
        "With MQ the control queue follows all pairs and sets the number in use.",
        |b| control_mq(b, |most| vec![(most, 0), (1, 0), (most, 0)]);
    "queues/control-mq-range", Robust, Control, "virtio 1.2, 5.1.6.5.5 (the driver MUST NOT ask for it)",
        "Impossible numbers of pairs are refused.",
        |b| control_mq(b, |most| [0, most + 1, 0x8000, u16::MAX].map(|count| (count, 1)).to_vec());
    "queues/control-one-pair", Robust, Control, "virtio 1.2, 5.1.2 and 5.1.6.5",
        "Without MQ the control queue is vring 2; commands not negotiated are refused.", control_one;
    "queues/control-bad", Robust, Control, "virtio 1.2, 5.1.6.5",
        "Incomplete and unknown commands are refused, and the queue keeps running.", control_bad;
}

/// Returns the number of pairs in the configuration space.
fn pairs(bench: &Bench) -> std::result::Result<u32, Finding> {
    let frontend = bench.negotiated(protocol::MQ | protocol::CONFIG)?;
    let lacking = || Finding::NotOffered("several queue pairs (VIRTIO_NET_F_MQ)".to_owned());
    if frontend.get_features()? & feature::MQ == 0 {
        return Err(lacking());
    }
    let count = u32::from(u16::from_le_bytes(
        frontend.get_config(8, 2)?.try_into().map_err(|_| Finding::Fail("no two bytes".to_owned()))?,
    ));
    if count < 2 { Err(lacking()) } else { Ok(count) }
}

fn two(bench: &Bench) -> std::result::Result<Session, Finding> {
    pairs(bench)?;
    let mut session = bench.session(&Setup::pairs(2))?;
    session.rx(1).fill(32, &[2048])?;
    Ok(session)
}

fn sends(bench: &mut Bench, session: &mut Session, pair: usize) -> Result {
    let frame = bench.frame(300);
    session.tx(pair).send(&frame, LIMIT)?;
    bench.expect_on(session, pair, &frame)
}

fn second_pair(bench: &mut Bench) -> Result {
    let mut session = two(bench)?;
    (0..20).try_for_each(|at| sends(bench, &mut session, at % 2))
}

fn one_disabled(bench: &mut Bench) -> Result {
    let mut session = two(bench)?;
    for _ in 0..2 {
        for vring in [2, 3] {
            session.frontend.set_vring_enable(vring, false)?;
        }
        session.frontend.sync()?;
        (0..5).try_for_each(|_| sends(bench, &mut session, 0))?;
        for vring in [2, 3] {
            session.frontend.set_vring_enable(vring, true)?;
        }
        session.frontend.sync()?;
        (0..6).try_for_each(|at| sends(bench, &mut session, at % 2))?;
    }
    Ok(())
}

/// Starts a session whose control queue is vring `control`.
pub(super) fn controlled(bench: &Bench, setup: Setup, control: u32) -> std::result::Result<Session, Finding> {
    let setup = Setup { control: Some(control), features: setup.features | feature::CTRL_VQ, ..setup };
    let offered = bench.negotiated(0)?.get_features()?;
    if offered & feature::CTRL_VQ == 0 {
        return Err(Finding::NotOffered("VIRTIO_NET_F_CTRL_VQ".to_owned()));
    }
    bench.started(&setup)
}

fn command(session: &mut Session, class: u8, command: u8, data: &[u8]) -> std::result::Result<u8, Finding> {
    let queue = session.nic.queues.last_mut();
    let queue = queue.ok_or_else(|| Finding::Fail("no queue".to_owned()))?;
    Ok(queue.command(class, command, data, LIMIT)?)
}

fn set_pairs(session: &mut Session, pairs: u16) -> std::result::Result<u8, Finding> {
    command(session, PAIRS_SET.0, PAIRS_SET.1, &pairs.to_le_bytes())
}

/// Sets numbers of pairs and compares the answers; then checks the second pair.
fn control_mq(bench: &mut Bench, numbers: fn(u16) -> Vec<(u16, u8)>) -> Result {
    let most = pairs(bench)?;
    let mut session = controlled(bench, Setup::pairs(most), 2 * most)?;
    let most = most as u16;
    for (count, answer) in numbers(most).into_iter().chain([(most, 0)]) {
        let got = set_pairs(&mut session, count)?;
        ensure!(got == answer, "{count} of {most} pairs answered {got} and not {answer}");
    }
    let frame = bench.frame(200);
    session.tx(1).send(&frame, LIMIT)?;
    Ok(())
}

fn control_one(bench: &mut Bench) -> Result {
    let mut session = controlled(bench, Setup::default(), 2)?;
    let got = set_pairs(&mut session, 1)?;
    ensure!(got == 1, "a number of pairs without MQ answered {got} and not 1");
    let frame = bench.frame(200);
    session.tx(0).send(&frame, LIMIT)?;
    Ok(())
}

fn control_bad(bench: &mut Bench) -> Result {
    let most = pairs(bench)?;
    let mut session = controlled(bench, Setup::pairs(most), 2 * most)?;
    for data in [&[][..], &[1], &[0xff; 3000]] {
        let got = command(&mut session, PAIRS_SET.0, PAIRS_SET.1, data)?;
        ensure!(got == 1, "a number of pairs in {} bytes answered {got} and not 1", data.len());
    }
    for (class, number) in [(4, 200), (200, 0), (255, 255)] {
        let got = command(&mut session, class, number, &[0; 6])?;
        ensure!(got == 1, "command {number} of class {class} answered {got} and not 1");
    }
    if let Some(queue) = session.nic.queues.last_mut() {
        let at = queue.alloc(64);
        for chain in [vec![Part::out(at, 1)], vec![Part::out(at, 4)], vec![Part::into(at, 1)]] {
            queue.submit(&chain)?;
            queue.kick()?;
            let used = queue.used(LIMIT)?;
            ensure!(used.len <= 1, "used length {} of a command without room for its answer", used.len);
        }
    }
    let got = set_pairs(&mut session, most as u16)?;
    ensure!(got == 0, "after bad commands {most} pairs answered {got} and not 0");
    Ok(())
}
