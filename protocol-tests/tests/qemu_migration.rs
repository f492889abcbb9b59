//! A guest that moves between two QEMUs, each with a volt-netd in a network namespace of its own, while TCP
//! goes both ways, one connection stays open, and numbered echo requests are counted.

use std::collections::BTreeMap;
use std::path::Path;

use protocol_tests::lab::migration::{Device, Emulator, Host, switch};
use protocol_tests::lab::moving::{Moving, Passage};
use protocol_tests::lab::traffic::Traffic;
use protocol_tests::lab::{PATIENCE, here, rounds, variants};

const I440FX: &str = "pc-i440fx-7.2";
const Q35: &str = "pc-q35-7.2";
const DEBIAN: [Emulator; 2] = [Emulator::Debian; 2];
/// For migrations that are held: QEMU 7.2 loses writes of an emulated processor when it copies memory again
/// and again, also without volt-netd.
const NEWER: [Emulator; 2] = [Emulator::Newer; 2];
const ONE_PAIR: Device = Device { pairs: 1, properties: "" };
const TWO_PAIRS: Device = Device { pairs: 2, properties: "" };
const NOT_MERGEABLE: Device = Device { pairs: 1, properties: "mrg_rxbuf=off" };
/// Periods without answers that a migration may have: while the guest stands still, and while the bridges
/// still send to its old host.
const HOLES: usize = 2;

/// In each round nothing besides TCP both ways.
const NOTHING: fn(&Traffic) -> String = |_| ":".into();

/// Starts two hosts, `a` and `b`.
fn hosts(directory: &Path, emulators: [Emulator; 2], options: &[&str]) -> [Host; 2] {
    switch();
    let [a, b] = emulators;
    [Host::start(directory, "a", a, options), Host::start(directory, "b", b, options)]
}

/// A network that is interrupted only by the move itself.
#[track_caller]
fn judge(passage: Passage) {
    let Passage { account, outage, .. } = passage;
    assert!(outage.holes <= HOLES, "requests were lost at other times, too: {passage}");
    assert!(account.sent > account.lost && account.repeated == 0, "{passage}");
}

/// Moves a guest `rounds` times to the other host and back, and with [`NEWER`] once more while it has data
/// that only its device has written.
fn there_and_back(machine: &'static str, emulators: [Emulator; 2], device: Device, rounds: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let [a, b] = hosts(directory.path(), emulators, &["--queues", &device.pairs.to_string()]);
    let mut moving = Moving::start(directory.path(), &a, machine, device, NOTHING);
    for host in [&b, &a].repeat(rounds) {
        judge(moving.migrate(host));
    }
    if emulators == NEWER {
        let next = moving.awaited_at(&b);
        judge(moving.migrate_and(next, || {}));
    }
    moving.finish();
}

#[test]
fn there_and_back_again() {
    here("there_and_back_again", || there_and_back(I440FX, DEBIAN, ONE_PAIR, rounds(2)));
}

#[test]
fn without_mergeable_buffers() {
    here("without_mergeable_buffers", || there_and_back(Q35, NEWER, NOT_MERGEABLE, rounds(0)));
}

/// Also between versions, in both directions.
#[test]
fn a_newer_qemu() {
    let mixed = [Emulator::Debian, Emulator::Newer];
    for emulators in variants(&[NEWER, mixed], mixed) {
        here("a_newer_qemu", || there_and_back(Q35, emulators, ONE_PAIR, rounds(1)));
    }
}

/// Each pair still carries frames both ways after the last move.
#[test]
fn two_queue_pairs() {
    here("two_queue_pairs", || {
        let directory = tempfile::tempdir().expect("a directory");
        let [a, b] = hosts(directory.path(), NEWER, &["--queues", "2"]);
        let each = |traffic: &Traffic| format!("queue_counters; {}", traffic.flows(16));
        let mut moving = Moving::start(directory.path(), &a, I440FX, TWO_PAIRS, each);
        for host in [&b, &a].repeat(rounds(0)) {
            judge(moving.migrate(host));
        }
        let next = moving.awaited_at(&b);
        judge(moving.migrate_and(next, || {}));
        let moved = moving.guest.console.reports();
        moving.gets_on();
        let ended = moving.finish();
        for (name, before) in queue_counters(&moved) {
            let after = queue_counters(&ended)[&name];
            assert!(after >= before + 20, "{name} was {before} after the move, and {after} at the end");
        }
        assert!(
            ended.iter().filter(|report| report.starts_with("flows")).all(|flows| flows == "flows 16 of 16")
        );
    });
}

/// Returns the last count of each queue.
fn queue_counters(reports: &[String]) -> BTreeMap<String, u64> {
    let counter = |report: &String| {
        let (name, frames) = report.split_once("_packets ")?;
        Some((name.to_owned(), frames.parse().ok()?))
    };
    let counters: BTreeMap<_, _> = reports.iter().filter_map(counter).collect();
    assert_eq!(counters.len(), 4, "two queues each way: {reports:?}");
    counters
}

/// A migration that is given up leaves nothing behind: the guest gets on each time, and moves in the end.
#[test]
fn cancelled_half_way() {
    here("cancelled_half_way", || {
        let directory = tempfile::tempdir().expect("a directory");
        let [a, b] = hosts(directory.path(), DEBIAN, &[]);
        let mut moving = Moving::start(directory.path(), &a, I440FX, ONE_PAIR, NOTHING);
        for _ in 0..rounds(10) {
            moving.cancel_half_way(&b);
        }
        judge(moving.migrate(&b));
        moving.finish();
    });
}

/// Both daemons are replaced. The source's successor continues the log of written pages, and no frame is lost
/// besides those of the move.
#[test]
fn taken_over_half_way() {
    for options in variants::<&[&str]>(&[&[], &["--supervise"]], &["--supervise"]) {
        here("taken_over_half_way", || {
            let directory = tempfile::tempdir().expect("a directory");
            let [mut a, mut b] = hosts(directory.path(), NEWER, options);
            let mut moving = Moving::start(directory.path(), &a, I440FX, ONE_PAIR, NOTHING);
            for round in 0..rounds(1) {
                let next = moving.awaited_at([&b, &a][round % 2]);
                judge(moving.migrate_and(next, || {
                    a.take_over();
                    b.take_over();
                }));
            }
            moving.finish();
        });
    }
}

/// Most periods without answers by a killed worker, which loses at most a batch on each queue.
const CRASH: usize = 64;

/// Both workers are killed. The source's next one continues the log of written pages.
#[test]
fn workers_killed_half_way() {
    here("workers_killed_half_way", || {
        let directory = tempfile::tempdir().expect("a directory");
        let [mut a, mut b] = hosts(directory.path(), NEWER, &["--supervise"]);
        let mut moving = Moving::start(directory.path(), &a, I440FX, ONE_PAIR, NOTHING);
        for round in 0..rounds(1) {
            let next = moving.awaited_at([&b, &a][round % 2]);
            let passage = moving.migrate_and(next, || {
                a.kill_worker();
                b.kill_worker();
            });
            assert!(passage.outage.holes <= HOLES + 2 * CRASH, "{passage}");
            assert!(passage.account.repeated <= 2 * CRASH, "{passage}");
        }
        moving.finish();
    });
}

/// Tries to move the guest where it cannot go. Returns what the destination's QEMU said.
#[track_caller]
fn refused(moving: &mut Moving, to: &Host, device: Device) -> String {
    let mut process = match moving.guest.awaited_at(to, device) {
        Err(process) => *process,
        Ok((mut next, address)) => {
            moving.at.go(&address);
            let state = moving.at.ended().expect_err("the destination refuses");
            assert_eq!(state["status"], "failed", "{state:#}");
            assert!(!next.process.wait_exit(PATIENCE).success());
            next.process
        }
    };
    moving.gets_on();
    process.output().join("\n")
}

/// A destination that lacks something refuses, one of its two programs names it, and the guest gets on where
/// it is.
#[test]
fn destinations_that_lack_something_refuse() {
    here("destinations_that_lack_something_refuse", || {
        let directory = tempfile::tempdir().expect("a directory");
        switch();
        let host = |name, options: &[&str]| Host::start(directory.path(), name, Emulator::Debian, options);
        let (a, mut b, mut c) =
            (host("a", &["--queues", "2"]), host("b", &[]), host("c", &["--queues", "2"]));
        let mut moving = Moving::start(directory.path(), &a, I440FX, TWO_PAIRS, NOTHING);

        // QEMU either starts without its back-end, and misses features when the guest comes, or tries to
        // start for ever: it expects no answer to the request that the daemon refuses.
        let why = refused(&mut moving, &b, TWO_PAIRS);
        eprintln!("fewer queues: {why}");
        assert!(why.contains("failed to init vhost_net") || why.contains("Features"), "{why}");
        b.daemon.wait_for("see --queues", PATIENCE);

        let fewer = Device { properties: "mrg_rxbuf=off", ..TWO_PAIRS };
        let why = refused(&mut moving, &c, fewer);
        eprintln!("fewer features: {why}");
        assert!(why.contains("Features 0x") && why.contains("unsupported"), "{why}");
        c.daemon.wait_for("front-end gone", PATIENCE);

        judge(moving.migrate(&c));
        moving.finish();
    });
}
