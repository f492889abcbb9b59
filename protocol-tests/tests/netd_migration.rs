//! Live migration through volt-netd: every published page is in the front-end's log, whatever happens.

use std::time::{Duration, Instant};

use protocol_tests::capture::Client;
use protocol_tests::daemon::poll_until;
use protocol_tests::dirty_log::DirtyLog;
use protocol_tests::frame::{NetHeader, numbered};
use protocol_tests::migration::instant::{lost, pair_thread, published, walk};
use protocol_tests::migration::journey::{Journey, Tally};
use protocol_tests::migration::oracle::Oracle;
use protocol_tests::rig::{LIMIT, QUIET, Rig};
use protocol_tests::session::{Session, Setup};
use protocol_tests::succession::SUPERVISED;
use protocol_tests::trace::Traced;
use protocol_tests::wire::{feature, protocol};
use rustix::process::{Signal, kill_process};

/// Steps of one session. A daemon's log grows with its requests.
const STEPS: u64 = 20_000;

/// Random sessions lose no page: for 60 seconds, or as many steps as `VOLT_STEPS` says.
#[test]
fn random_sessions() {
    let steps = std::env::var("VOLT_STEPS").ok().map(|text| text.parse::<u64>().expect("a number of steps"));
    let first = std::env::var("VOLT_SEED").ok().map_or(1, |text| text.parse::<u64>().expect("a seed"));
    let start = Instant::now();
    let over = |done| steps.map_or(start.elapsed() >= Duration::from_secs(60), |steps| done >= steps);
    let mut all = Tally::default();
    for seed in first.. {
        let Some(mut journey) = Journey::new("random_sessions", seed) else { return };
        let most = STEPS.min(1000 + 500 * (seed - first));
        while journey.steps() < most && !over(all.steps + journey.steps()) {
            journey.step();
        }
        all += journey.finish();
        eprintln!("after session {seed}: {all:?}");
        if over(all.steps) {
            break;
        }
    }
    let Tally { received, merged, sent, migrations, marked, .. } = all;
    assert!([received, merged, sent, migrations, marked].iter().all(|count| *count > 0), "{all:?}");
}

/// A session whose pages are logged.
struct Logged {
    rig: Rig,
    session: Session,
    log: DirtyLog,
    oracle: Oracle,
}

impl Logged {
    fn new(test: &str, features: u64, buffer: u32) -> Option<Logged> {
        let rig = Rig::new(test, &SUPERVISED)?;
        let wanted = protocol::MQ | protocol::REPLY_ACK | protocol::LOG_SHMFD | protocol::RARP;
        let setup = Setup { features, protocol: wanted, ..Setup::default() };
        let mut session = Session::start(rig.connect(), &setup).expect("a session");
        session.rx(0).fill(64, &[buffer]).expect("buffers");
        let log = start_logging(&session);
        let mut oracle = Oracle::new(&session.nic, 0).expect("memory");
        oracle.pass(&log);
        Some(Logged { rig, session, log, oracle })
    }

    /// Stops the thread of the first pair.
    fn seize(&self) -> Traced {
        Traced::seize(pair_thread(self.rig.worker())).expect("a thread to trace")
    }

    /// Puts a frame of `len` bytes in front of the daemon, and one of the guest's.
    fn traffic(&mut self, len: usize) {
        let number = self.rig.number();
        self.rig.wire.send(&numbered(number, len)).expect("sent");
        self.session.tx(0).offer(&NetHeader::default(), &numbered(number, len), &[]).expect("room");
        self.session.tx(0).kick().expect("kicked");
    }

    /// Takes what has been used, and posts new buffers.
    fn settle(&mut self) {
        while let Ok(frame) = self.session.rx(0).recv(Duration::ZERO) {
            assert!(!frame.bytes.is_empty());
        }
        while let Some(used) = self.session.tx(0).try_used().expect("an intact ring") {
            self.session.tx(0).parts(used);
        }
    }
}

/// Logs the pages of a session, with the used rings at their own addresses.
fn start_logging(session: &Session) -> DirtyLog {
    let nic = &session.nic;
    let end = nic.mem.specs().iter().map(|spec| spec.guest + spec.size).max().expect("memory");
    let log = DirtyLog::covering(end).expect("a log");
    assert_eq!(session.frontend.set_log_base(&log).expect("a reply").body, log.body());
    session.frontend.set_features(nic.features | feature::LOG_ALL).expect("taken");
    for queue in &nic.queues {
        let layout = queue.ring.layout();
        let flagged =
            session.frontend.set_vring_addr_logged(queue.vring, &nic.mem, &layout, Some(layout.used));
        flagged.expect("taken");
    }
    log
}

/// At each instruction of the worker's thread, every published byte is marked, except in used rings. Those
/// are marked when the thread sleeps.
#[test]
fn marks_precede_publication_at_every_instruction() {
    let base = Setup::default().features;
    let shapes = [
        (base, 2048, 300),
        (base, 200, 1400),
        (base & !feature::EVENT_IDX, 2048, 1400),
        (base & !feature::MRG_RXBUF, 2048, 900),
    ];
    for (features, buffer, len) in shapes {
        let Some(mut logged) = Logged::new("marks_precede_publication", features, buffer) else { return };
        let thread = logged.seize();
        logged.traffic(len);
        let Logged { session, log, oracle, .. } = &logged;
        let (mut lookups, mut waiting) = (0, 0);
        let used = || session.nic.queues.iter().all(|queue| queue.ring.used_idx() != 0);
        let look = || {
            lookups += 1;
            let lost = lost(&session.nic, oracle, log);
            assert!(lost.is_empty(), "instruction {lookups}: no mark for pages {lost:x?}");
            waiting += u64::from(!oracle.missing(log, &[]).is_empty());
        };
        let done = walk(thread, u64::MAX, look, used);
        assert!(!published(&session.nic).is_empty(), "a frame has arrived");
        assert_eq!(oracle.missing(log, &published(&session.nic)), [0; 0], "when the thread sleeps");
        // The oracle sees the moments between a store to a ring and its mark: it is not blind.
        assert!(done.instructions > 100 && waiting > 0, "{} instructions, {waiting}", done.instructions);
    }
}

/// A worker that is killed at any instruction leaves a log that the next one completes.
#[test]
fn the_next_worker_completes_the_log() {
    let features = Setup::default().features;
    let Some(mut logged) = Logged::new("the_next_worker_completes_the_log", features, 400) else { return };
    let kills = 6;
    let mut all = u64::MAX;
    for kill in 0..=kills {
        logged.oracle.pass(&logged.log);
        let thread = logged.seize();
        logged.traffic(1200);
        // The first walk counts the instructions. The last ones publish: the other walks end there.
        let at = if kill == 0 { u64::MAX } else { all / (2 * kills) * (kills + kill) };
        let queues = &logged.session.nic.queues;
        let before: Vec<_> = queues.iter().map(|queue| queue.ring.used_idx()).collect();
        let done = || queues.iter().zip(&before).all(|(queue, before)| queue.ring.used_idx() != *before);
        let walked = walk(thread, at, || {}, done);
        all = all.min(walked.instructions);
        let (dead, from) = (logged.rig.worker(), logged.rig.daemon.log().len());
        kill_process(dead, Signal::KILL).expect("the worker lives");
        let instructions = walked.instructions;
        walked.thread.reap().expect("it dies");
        logged.rig.next_worker(dead, from);
        logged.session.frontend.sync().expect("the next worker serves");
        let published = published(&logged.session.nic);
        logged
            .oracle
            .check(&logged.log, &published, LIMIT / 6)
            .unwrap_or_else(|missing| panic!("killed at instruction {instructions} of {all}: {missing}"));
        logged.settle();
    }
}

/// An independent front-end: that of the `vhost` crate waits for the reply to SET_LOG_BASE, and its guest's
/// pages are marked.
#[test]
fn the_vhost_crates_front_end_logs() {
    let Some(rig) = Rig::new("the_vhost_crates_front_end_logs", &[]) else { return };
    let mut card = protocol_tests::front_peer::by_crate::logged(&rig.socket()).expect("volt-netd serves it");
    let oracle = Oracle::new(&card.nic, 0).expect("memory");
    let frame = numbered(7, 900);
    rig.wire.send(&frame).expect("sent");
    let used = card.nic.rx(0).used(LIMIT).expect("a frame");
    let parts: Vec<_> =
        card.nic.rx(0).parts(used).iter().map(|part| (part.addr, u64::from(used.len))).collect();
    oracle.check(&card.log, &parts, LIMIT / 6).unwrap_or_else(|missing| panic!("{missing}"));
    assert!(!card.log.marked().is_empty());
}

/// A front-end that cuts its log off harms its own guest alone: the daemon continues, without serving that
/// guest, until another log comes.
#[test]
fn a_log_that_is_cut_off() {
    let Some(mut logged) = Logged::new("a_log_that_is_cut_off", Setup::default().features, 2048) else {
        return;
    };
    logged.log.cut_off(0).expect("cut off");
    logged.rig.wire.send(&numbered(1, 100)).expect("sent");
    logged.rig.logged(&["worker was ended by", "SIGBUS"]);
    logged.rig.logged(&["took its log of written pages away", "a file that has only 0x0"]);
    logged.session.frontend.sync().expect("the next worker serves");
    assert_eq!(logged.rig.status()["vrings"][0]["state"], "stopped");
    logged.log = start_logging(&logged.session);
    logged.rig.both_ways(&mut logged.session, 3);
    assert_eq!(logged.rig.status()["front_end"]["dirty_logging"], true);
}

/// The guest's arrival is announced on the network once it can be, behind the rate limits; status and
/// counters show it, and marked pages.
#[test]
fn announcements_and_marks_are_shown() {
    let Some(mut logged) = Logged::new("announcements_and_marks", Setup::default().features, 2048) else {
        return;
    };
    let counter = |logged: &Logged, name: &str| logged.rig.status()["counters"][0][name].as_u64().unwrap();
    let mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
    logged.session.frontend.send_rarp(mac).expect("taken");
    let (_, frame) = logged.rig.wire.recv(LIMIT).expect("the wire").expect("an announcement");
    assert_eq!((&frame[..6], &frame[6..12], &frame[12..14]), (&[0xff; 6][..], &mac[..], &[0x80, 0x35][..]));
    assert_eq!(counter(&logged, "announcements"), 1);
    for bad in [[0; 6], [0x53, 0, 0, 0, 0, 1]] {
        assert!(logged.session.frontend.send_rarp(bad).is_err(), "{bad:02x?}");
    }
    logged.rig.logged(&["SEND_RARP refused", "53:00:00:00:00:01 cannot be announced"]);
    // While no ring runs, an announcement waits for one.
    for vring in 0..2 {
        logged.session.frontend.get_vring_base(vring).expect("a base");
    }
    logged.session.frontend.send_rarp(mac).expect("taken");
    assert!(logged.rig.wire.recv(QUIET).expect("the wire").is_none(), "no queue pair runs");
    logged.rig.take_over(&["--supervise"]);
    logged.session.restart().expect("rings again");
    let (_, frame) = logged.rig.wire.recv(LIMIT).expect("the wire").expect("an announcement");
    assert_eq!(frame[6..12], mac);
    let before = counter(&logged, "pages_marked");
    logged.rig.both_ways(&mut logged.session, 3);
    logged.session.frontend.sync().expect("served");
    assert!(counter(&logged, "pages_marked") >= before + 3 && before > 0);
    assert_eq!(logged.rig.status()["front_end"]["dirty_logging"], true);
    logged.session.frontend.set_features(logged.session.nic.features).expect("taken");
    assert_eq!(logged.rig.status()["front_end"]["dirty_logging"], false);
}

/// An announcement passes the rate limits, which may delay it, and a capture shows it.
#[test]
fn announcements_are_limited_and_captured() {
    let arguments = [&SUPERVISED[..], &["--tx-rate", "2pps:1"]].concat();
    let Some(rig) = Rig::new("announcements_are_limited_and_captured", &arguments) else { return };
    let wanted = protocol::MQ | protocol::REPLY_ACK | protocol::RARP;
    let session = rig.session(&Setup { protocol: wanted, ..Setup::default() });
    let mut client = Client::start(&rig, &[]);
    let count = |name: &str| rig.status()["counters"][0][name].as_u64().expect("a counter");
    let mut sent = 0;
    // Each leaves, or waits for the limit.
    while count("tx_limited") == 0 {
        session.frontend.send_rarp([2, 0, 0, 0, 0, 7]).expect("taken");
        sent += 1;
        let done = || (count("announcements") == sent || count("tx_limited") > 0).then_some(());
        assert!(sent < 100 && poll_until(LIMIT, done).is_some(), "{:#}", rig.status());
    }
    let gone = poll_until(LIMIT, || (count("announcements") == sent).then_some(()));
    assert!(gone.is_some(), "the last one is lost: {:#}", rig.status());
    let capture = client.stop();
    assert_eq!(capture.frames.len() as u64, sent);
    assert!(capture.frames.iter().all(|frame| !frame.inbound && frame.bytes[12..14] == [0x80, 0x35]));
}
