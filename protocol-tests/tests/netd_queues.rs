//! volt-netd with several queue pairs: exactly the enabled pairs are attached to the TAP, so that no flow is
//! lost. The control queue is served if the front-end leaves it to the back-end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use protocol_tests::daemon::poll_until;
use protocol_tests::frame::{NetHeader, numbered, udp};
use protocol_tests::rig::{LIMIT, QUIET, Rig};
use protocol_tests::ring::Part;
use protocol_tests::session::{Session, Setup, offer_vring};
use protocol_tests::succession::SUPERVISED;
use protocol_tests::trace::Traced;
use protocol_tests::wire::{encode, feature, protocol, request, words};
use rustix::process::Pid;
use serde_json::json;

/// Number of flows sent each time.
const FLOWS: u16 = 200;
/// Class and command that set the number of pairs (virtio 1.2, 5.1.6.5.5).
const MQ_PAIRS_SET: (u8, u8) = (4, 0);
/// An address outside every region.
const NOWHERE: u64 = 0x7_0000_0000;

/// Sends one frame of each flow to the guest, and returns the pairs on which they arrived.
fn spread(rig: &Rig, session: &mut Session) -> BTreeMap<u16, usize> {
    for flow in 0..FLOWS {
        let frame = udp((1, 10_000 + flow), (2, 53), &flow.to_be_bytes().repeat(20));
        rig.wire.send(&frame).expect("sent");
    }
    let mut seen = BTreeMap::new();
    let deadline = Instant::now() + LIMIT;
    while seen.len() < usize::from(FLOWS) {
        assert!(Instant::now() < deadline, "{} of {FLOWS} flows came; the others are lost", seen.len());
        for pair in 0..session.nic.pairs() as usize {
            while let Ok(frame) = session.rx(pair).recv(Duration::from_millis(5)) {
                let flow = u16::from_be_bytes([frame.bytes[42], frame.bytes[43]]);
                assert_eq!(frame.bytes[42..], flow.to_be_bytes().repeat(20));
                assert_eq!(seen.insert(flow, pair), None, "flow {flow} came twice");
            }
        }
    }
    seen
}

/// Returns the number of flows on a pair.
fn share(seen: &BTreeMap<u16, usize>, pair: usize) -> usize {
    seen.values().filter(|at| **at == pair).count()
}

/// A guest with one of four pairs enabled loses no flow; with two, both receive some; with one again, it
/// receives all.
#[test]
fn exactly_the_enabled_pairs_are_attached() {
    let Some(rig) = Rig::new("exactly_the_enabled_pairs_are_attached", &["--queues", "4"]) else { return };
    let mut session = rig.session(&Setup { enabled: 1, ..Setup::pairs(4) });
    for pair in 1..4 {
        session.rx(pair).fill(64, &[2048]).expect("buffers");
    }
    assert_eq!(share(&spread(&rig, &mut session), 0), usize::from(FLOWS), "one pair gets all flows");
    for (pairs, most) in [(2, 150), (4, 110)] {
        for vring in 0..2 * pairs {
            session.frontend.set_vring_enable(vring as u32, true).expect("enable");
        }
        session.frontend.sync().expect("taken");
        let seen = spread(&rig, &mut session);
        for pair in 0..pairs {
            let count = share(&seen, pair);
            assert!((10..most).contains(&count), "pair {pair} of {pairs} got {count} of {FLOWS} flows");
        }
    }
    for vring in 2..8 {
        session.frontend.set_vring_enable(vring, false).expect("disable");
    }
    session.frontend.sync().expect("taken");
    assert_eq!(share(&spread(&rig, &mut session), 0), usize::from(FLOWS), "one pair gets all flows again");
}

/// Sends flows until the log has `line` after `from`; takes those that arrive on the first pair.
#[track_caller]
fn spread_until_logged(rig: &Rig, session: &mut Session, from: usize, line: &str) {
    let logged = poll_until(LIMIT, || {
        for flow in 0..FLOWS {
            rig.wire.send(&udp((1, 10_000 + flow), (2, 53), &[0; 40])).expect("sent");
        }
        while session.rx(0).recv(Duration::from_millis(5)).is_ok() {}
        rig.daemon.logged(from, &[line], Duration::ZERO)
    });
    assert!(logged.is_some(), "not logged: {line}\n{}", rig.daemon.log());
}

/// A pair whose receive ring the driver has broken gets no more frames: the other pairs get them. The daemon
/// logs it by itself, the pair's other ring continues, and the next worker knows it too.
#[test]
fn a_pair_with_a_broken_ring_gets_no_frames() {
    let arguments = [&["--queues", "2"], &SUPERVISED[..]].concat();
    let Some(rig) = Rig::new("a_pair_with_a_broken_ring_gets_no_frames", &arguments) else { return };
    let mut session = rig.session(&Setup::pairs(2));
    assert!((10..150).contains(&share(&spread(&rig, &mut session), 1)), "both pairs get frames");
    let from = rig.daemon.log().len();
    let ring = &session.rx(1).ring;
    ring.set_avail_idx(ring.avail_idx().wrapping_add(300));
    // The broken ring is found when the buffers that the daemon has already seen are used up.
    spread_until_logged(&rig, &mut session, from, "serving queue pairs [0]");
    assert_eq!(rig.status()["front_end"]["broken_vrings"], json!([2]));
    for pair in [0, 1] {
        while session.rx(pair).recv(QUIET).is_ok() {}
    }
    assert_eq!(share(&spread(&rig, &mut session), 0), usize::from(FLOWS), "the other pair gets all flows");
    rig.guest_to_wire(&mut session, &numbered(1, 100));
    session.tx(1).send(&numbered(2, 100), LIMIT).expect("used");
    rig.expect(&numbered(2, 100));
    rig.kill_worker();
    assert_eq!(rig.status()["front_end"]["broken_vrings"], json!([2]), "before another frame comes");
}

/// A broken ring that is set up again before the daemon's main thread learns of it is a new ring.
#[test]
fn a_broken_ring_that_is_set_up_anew_at_once_runs() {
    let arguments = ["--queues", "2", "--control", "{control}"];
    let Some(rig) = Rig::new("a_broken_ring_that_is_set_up_anew_at_once_runs", &arguments) else { return };
    let base = Setup::pairs(2);
    let mut session = rig.session(&Setup { protocol: base.protocol & !protocol::REPLY_ACK, ..base });
    let from = rig.daemon.log().len();
    let main = Pid::from_raw(rig.daemon.pid() as i32).expect("a process");
    let stopped = Traced::seize(main).expect("it can be traced");
    let good = session.rx(1).ring.avail_idx();
    session.rx(1).ring.set_avail_idx(good.wrapping_add(300));
    spread_until_logged(&rig, &mut session, from, "vring 2 stopped");
    session.rx(1).ring.set_avail_idx(good);
    let frontend = &mut session.frontend;
    let get_base = encode(request::GET_VRING_BASE, 0, &words(&[2, 0]));
    frontend.channel().send_bytes(&get_base, &[]).expect("sent");
    let queue = &session.nic.queues[2];
    offer_vring(frontend, &session.nic.mem, queue, queue.ring.used_idx()).expect("sent");
    frontend.tell(request::SET_VRING_ENABLE, &words(&[2, 1]), &[]).expect("sent");
    stopped.detach().expect("it stood still");
    frontend.channel().recv_reply(request::GET_VRING_BASE).expect("its base");
    frontend.sync().expect("served");
    assert_eq!(rig.status()["front_end"]["broken_vrings"], json!([]));
    for pair in [0, 1] {
        while session.rx(pair).recv(QUIET).is_ok() {}
    }
    assert!((10..150).contains(&share(&spread(&rig, &mut session), 1)), "both pairs get frames");
}

/// A front-end with one pair on a four-queue daemon, which knows nothing of several pairs.
#[test]
fn one_pair_guest_on_four_queues() {
    let Some(mut rig) = Rig::new("one_pair_guest_on_four_queues", &["--queues", "4"]) else { return };
    for _ in 0..3 {
        let mut session = rig.session(&Setup::default());
        assert_eq!(share(&spread(&rig, &mut session), 0), usize::from(FLOWS));
        rig.both_ways(&mut session, 10);
    }
}

/// Every pair sends, and the frames leave unchanged.
#[test]
fn every_pair_sends() {
    let Some(rig) = Rig::new("every_pair_sends", &["--queues", "4"]) else { return };
    let mut session = rig.session(&Setup::pairs(4));
    for number in 0..400 {
        let frame = numbered(number, 100 + number as usize);
        let queue = session.tx(number as usize % 4);
        queue.offer(&NetHeader::default(), &frame, &[]).expect("room");
        queue.kick().expect("kicked");
        queue.used(LIMIT).expect("used");
        rig.expect(&frame);
    }
}

/// GET_QUEUE_NUM counts vrings, including the control queue; higher vrings are refused by number.
#[test]
fn queue_numbers() {
    for (arguments, vrings) in [(&[][..], 2), (&["--queues", "2"], 5), (&["--queues", "4"], 9)] {
        let Some(rig) = Rig::new("queue_numbers", arguments) else { return };
        let session = rig.session(&Setup::default());
        let count = session.frontend.get_queue_num().expect("an answer");
        assert_eq!(count, vrings);
        let offered = session.frontend.get_features().expect("an answer");
        assert_eq!(offered & feature::CTRL_VQ != 0, vrings > 2);
        assert_eq!(offered & feature::MQ != 0, vrings > 2);
        assert!(session.frontend.set_vring_num(vrings as u32, 256).is_err());
        rig.logged(&["WARN", &format!("vring {vrings}")]);
    }
}

/// With MQ the control queue is vring 2N. One pair is used until the driver asks for more, then the requested
/// number. An impossible number is refused and changes nothing.
#[test]
fn control_queue_with_mq() {
    let Some(rig) = Rig::new("control_queue_with_mq", &["--queues", "2"]) else { return };
    let base = Setup::pairs(2);
    let setup = Setup { control: Some(4), features: base.features | feature::CTRL_VQ, ..base };
    let mut session = rig.session(&setup);
    assert_eq!(share(&spread(&rig, &mut session), 0), usize::from(FLOWS), "one pair until the driver asks");
    let ask = |session: &mut Session, pairs: u16| {
        let (class, command) = MQ_PAIRS_SET;
        session.nic.queues[4].command(class, command, &pairs.to_le_bytes(), LIMIT).expect("an answer")
    };
    assert_eq!(ask(&mut session, 2), 0);
    let seen = spread(&rig, &mut session);
    assert!(share(&seen, 1) >= 20 && share(&seen, 0) >= 20, "both pairs get flows");
    for wrong in [0, 3, 0x8000, 65_535] {
        assert_eq!(ask(&mut session, wrong), 1, "{wrong} pairs");
    }
    assert!(share(&spread(&rig, &mut session), 1) >= 20, "a refused command changes nothing");
    assert_eq!(ask(&mut session, 1), 0);
    assert_eq!(share(&spread(&rig, &mut session), 0), usize::from(FLOWS), "back to one pair");
    let answer = session.nic.queues[4].command(200, 0, &[0; 6], LIMIT).expect("an answer");
    assert_eq!(answer, 1, "an unknown class is refused");
}

/// Without MQ the control queue is vring 2, and answers too.
#[test]
fn control_queue_without_mq() {
    let Some(mut rig) = Rig::new("control_queue_without_mq", &["--queues", "2"]) else { return };
    let base = Setup::default();
    let setup = Setup { control: Some(2), features: base.features | feature::CTRL_VQ, ..base };
    let mut session = rig.session(&setup);
    let (class, command) = MQ_PAIRS_SET;
    let answer =
        session.nic.queues[2].command(class, command, &2u16.to_le_bytes(), LIMIT).expect("an answer");
    assert_eq!(answer, 1, "pairs cannot be set without MQ");
    rig.both_ways(&mut session, 5);
}

/// Bad commands on the control queue are answered or returned, and the queue continues.
#[test]
fn bad_commands() {
    let Some(rig) = Rig::new("bad_commands", &["--queues", "2"]) else { return };
    let base = Setup::pairs(2);
    let setup = Setup { control: Some(4), features: base.features | feature::CTRL_VQ, ..base };
    let mut session = rig.session(&setup);
    let mut bytes = vec![vec![], vec![0], vec![0; 3], vec![0xff; 3000]];
    let queue = &mut session.nic.queues[4];
    for data in bytes.drain(..) {
        let answer = queue.command(MQ_PAIRS_SET.0, MQ_PAIRS_SET.1, &data, LIMIT).expect("an answer");
        assert_eq!(answer, 1, "{} bytes are no number of pairs", data.len());
    }
    let at = queue.alloc(64);
    for chain in
        [vec![Part::out(at, 1)], vec![Part::out(at, 4)], vec![Part::into(at, 1)], vec![Part::out(NOWHERE, 4)]]
    {
        queue.submit(&chain).expect("room");
        queue.kick().expect("kicked");
        assert!(queue.used(LIMIT).expect("returned").len <= 1);
    }
    let answer =
        queue.command(MQ_PAIRS_SET.0, MQ_PAIRS_SET.1, &2u16.to_le_bytes(), LIMIT).expect("an answer");
    assert_eq!(answer, 0, "the queue goes on");
}

/// A control queue is kicked through a pipe, more often than the pipe holds kicks: none stays in it, and the
/// queue continues.
#[test]
fn a_control_queue_kicked_by_a_pipe() {
    let Some(rig) = Rig::new("a_control_queue_kicked_by_a_pipe", &["--queues", "2"]) else { return };
    let base = Setup::pairs(2);
    let setup = Setup { control: Some(4), features: base.features | feature::CTRL_VQ, ..base };
    let mut session = rig.session(&setup);
    let (read, write) = std::io::pipe().expect("a pipe");
    rustix::io::ioctl_fionbio(&write, true).expect("non-blocking");
    session.frontend.set_vring_fd(request::SET_VRING_KICK, 4, Some(&read)).expect("a kick");
    drop(read);
    // A pipe holds 65,536 bytes.
    for kick in 0..3 * 8192 {
        let written = poll_until(LIMIT, || rustix::io::write(&write, &1u64.to_ne_bytes()).ok());
        assert_eq!(written, Some(8), "kick {kick}");
    }
    session.nic.queues[4].kick = write.into();
    let (class, command) = MQ_PAIRS_SET;
    let answer = session.nic.queues[4].command(class, command, &2u16.to_le_bytes(), LIMIT);
    assert_eq!(answer.expect("an answer"), 0);
    let ticks = rig.daemon.idle_ticks(QUIET).expect("/proc");
    assert!(ticks <= 3, "{ticks} ticks without a kick");
}
