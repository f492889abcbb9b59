//! volt-netd's worker dies, at any moment and in any way, and the next one continues. No request is lost or
//! answered twice, no chain is lost, and at most a batch of frames is lost or repeated.

use std::time::{Duration, Instant};

use protocol_tests::daemon::{Daemon, poll_until, program};
use protocol_tests::far_end::{PortKind, Wire};
use protocol_tests::frame::numbered;
use protocol_tests::memory::{GuestMemory, RegionSpec};
use protocol_tests::rig::{LIMIT, QUIET, Rig, namespace};
use protocol_tests::ring::{Desc, Part};
use protocol_tests::session::Setup;
use protocol_tests::succession::{Flow, SUPERVISED};
use protocol_tests::wire::{encode, protocol, request};
use rustix::process::{Pid, Signal, kill_process};

/// Most frames that a crash may lose or repeat on one queue.
const BATCH: u32 = 64;

/// Killed at random moments under traffic: every chain is returned once, and each crash costs at most a batch
/// each way.
#[test]
fn workers_killed_under_traffic() {
    PortKind::ALL.into_iter().for_each(kill_under_traffic);
}

fn kill_under_traffic(port: PortKind) {
    let Some(rig) = Rig::on(port, "workers_killed_under_traffic", &SUPERVISED) else { return };
    let mut session = rig.session(&Setup::default());
    let mut flow = Flow::new(1000);
    let kills = 20;
    for round in 0..kills {
        flow.run(&mut session, &rig.wire, Duration::from_micros(11_000 + 1370 * round));
        rig.kill_worker();
    }
    flow.run_to(&mut session, &rig.wire, 500, 100);
    let (out, into) = flow.settle(&mut session, &rig.wire);
    let most = BATCH * kills as u32;
    // A stream whose worker died in a call has lost what was on its way.
    let lost = match &rig.wire {
        Wire::Stream(peer) => most * (peer.accepted() as u32 - 1),
        _ => 0,
    };
    assert!(out.lost <= lost && out.repeated <= most && out.reordered <= kills as u32, "{port:?}: {out:?}");
    // Frames that wait for buffers in the memory of a port are delivered again.
    let again = if port == PortKind::Stream { most } else { 0 };
    assert!(into.repeated <= again && into.lost <= most && into.reordered <= again, "{port:?}: {into:?}");
    assert_eq!(session.rx(0).ring.outstanding(), 64, "no receive buffer is lost");
    session.frontend.sync().expect("the connection is served");
    let status = rig.status();
    assert_eq!(status["restarts"], kills);
    assert_eq!(status["supervisor_pid"], rig.daemon.pid());
    // Each worker continues the counts: a crash loses at most the count of the current frame.
    let counted = |name: &str| status["counters"][0][name].as_u64().expect("a number") + kills;
    assert!(counted("tx_frames") >= u64::from(out.frames), "out: {out:?}, {status:#}");
    assert!(counted("rx_frames") >= u64::from(into.frames - into.lost), "in: {into:?}, {status:#}");
}

/// Supervisor and worker end together, whichever gets the signal, and leave nothing behind.
#[test]
fn ends_and_descriptors() {
    let Some(mut rig) = Rig::new("ends_and_descriptors", &SUPERVISED) else { return };
    let mut session = rig.session(&Setup::default());
    rig.kill_worker();
    rig.both_ways(&mut session, 3);
    let before = rig.usage();
    for _ in 0..30 {
        rig.kill_worker();
        rig.both_ways(&mut session, 1);
    }
    rig.settled(&before);
    assert!(rig.usage().resident < before.resident + 512, "{before:?}, {:?}", rig.usage());
    let (socket, worker) = (rig.socket(), rig.worker());
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success(), "{}", rig.daemon.log());
    assert!(!socket.exists(), "the socket is removed");
    assert!(rustix::process::test_kill_process(worker).is_err(), "no worker is left");
}

/// An error at the start is logged once, and not retried.
#[test]
fn a_worker_that_cannot_start_is_not_started_again() {
    let Some(netns) = namespace("a_worker_that_cannot_start_is_not_started_again") else { return };
    let mut command = netns.command(program("volt-netd"));
    command.args(["--supervise", "--tap", "tap0", "--socket", "/nonexistent/s"]);
    let mut daemon = Daemon::start(command).expect("volt-netd");
    let status = daemon.wait(LIMIT).expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(daemon.logged(0, &["/nonexistent/s"], LIMIT).is_some(), "{}", daemon.log());
    std::thread::sleep(QUIET);
    assert_eq!(daemon.log().matches("/nonexistent/s").count(), 1, "{}", daemon.log());
}

/// Workers killed repeatedly before they have worked restart more slowly; then all works as before.
#[test]
fn workers_that_die_at_once_come_back_more_slowly() {
    let Some(mut rig) = Rig::new("workers_that_die_at_once_come_back_more_slowly", &SUPERVISED) else {
        return;
    };
    let mut session = rig.session(&Setup::default());
    // Longer than the lifetime that counts as an early death.
    std::thread::sleep(Duration::from_millis(250));
    rig.kill_worker();
    let log = rig.daemon.log();
    assert!(
        log.lines().any(|line| line.ends_with("a new worker continues with its state")),
        "at once: {log}"
    );
    // The speed of the test decides which deaths are early; a worker that lived longer resets the delay.
    let waited = (0..20).any(|_| {
        let from = rig.daemon.log().len();
        let took = rig.kill_worker();
        let told = rig.daemon.log()[from..].contains("continues with its state in 80 ms");
        assert!(!told || took >= Duration::from_millis(80), "{took:?}");
        told
    });
    assert!(waited, "{}", rig.daemon.log());
    rig.both_ways(&mut session, 5);
}

/// A chain that kills the daemon, here by a table in memory that the front-end has truncated, is skipped
/// after the second time. Chains before and after it are sent.
#[test]
fn a_chain_that_kills_twice_is_returned_unserved() {
    let Some(rig) = Rig::new("a_chain_that_kills_twice_is_returned_unserved", &SUPERVISED) else { return };
    let slots = protocol::CONFIGURE_MEM_SLOTS;
    let setup = Setup { protocol: Setup::default().protocol | slots, ..Setup::default() };
    let mut session = rig.session(&setup);
    let deadly =
        GuestMemory::map(vec![(RegionSpec::linear(0x4000_0000, 1 << 20, 0), file(1 << 20))]).expect("memory");
    session.frontend.add_mem_reg(&deadly.specs()[0], deadly.fds()[0]).expect("added");
    session.frontend.sync().expect("served");
    rustix::fs::ftruncate(deadly.fds()[0], 0).expect("cut off");
    let tx = session.tx(0);
    for number in 0..3 {
        tx.offer(&Default::default(), &numbered(number, 90), &[]).expect("room");
    }
    let buffer = tx.alloc(100);
    let killer = tx.submit(&[Part::out(buffer, 100)]).expect("room");
    let indirect = 4;
    tx.ring.set_desc(killer, Desc { addr: 0x4000_0000, len: 32, flags: indirect, next: 0 });
    for number in 3..6 {
        tx.offer(&Default::default(), &numbered(number, 90), &[]).expect("room");
    }
    tx.kick_always().expect("kicked");
    let heads: Vec<_> = (0..7).map(|_| session.tx(0).used(LIMIT).expect("every chain comes back")).collect();
    assert!(heads.iter().all(|used| used.len == 0));
    assert_eq!(heads[3].head, killer);
    let mut seen = Vec::new();
    while let Some((_, frame)) = rig.wire.recv(QUIET).expect("the wire") {
        seen.push(protocol_tests::frame::number_of(&frame).expect("an intact frame"));
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5]);
    let status = rig.status();
    assert_eq!(status["restarts"], 2, "{status:#}");
    assert_eq!(status["counters"][0]["deadly_chains"], 1, "{status:#}");
    rig.logged(&["vring 1", "killed two workers"]);
    session.frontend.sync().expect("the connection is served");
}

/// Returns a file that can be truncated.
fn file(len: u64) -> std::os::fd::OwnedFd {
    let fd = rustix::fs::memfd_create("volt-test", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
    rustix::fs::ftruncate(&fd, len).expect("its length");
    fd
}

/// Signals sent to every process, by systemd or a terminal, end the daemon like one sent to the supervisor.
#[test]
fn signals_to_everybody_are_one() {
    for _ in 0..8 {
        let Some(mut rig) = Rig::new("signals_to_everybody_are_one", &SUPERVISED) else { return };
        let mut session = rig.session(&Setup::default());
        rig.both_ways(&mut session, 1);
        let worker = rig.worker();
        for _ in 0..2 {
            kill_process(worker, Signal::TERM).expect("signalled");
        }
        rig.daemon.signal(Signal::TERM).expect("signalled");
        let _ = kill_process(worker, Signal::INT);
        assert!(rig.daemon.wait(LIMIT).expect("it ends").success(), "{}", rig.daemon.log());
        assert!(!rig.socket().exists(), "the socket is removed");
    }
}

/// A worker whose supervisor is killed still serves, logs it, can be ended, and can be succeeded.
#[test]
fn a_worker_without_its_supervisor_goes_on() {
    for succeeded in [true, false] {
        let Some(mut rig) = Rig::new("a_worker_without_its_supervisor_goes_on", &SUPERVISED) else { return };
        let mut session = rig.session(&Setup::default());
        let worker = rig.worker();
        session.frontend.sync().expect("the connection is served");
        // Not during a request, whose connection would be closed.
        std::thread::sleep(QUIET);
        rig.daemon.signal(Signal::KILL).expect("killed");
        rig.daemon.wait(LIMIT).expect("it ends");
        rig.both_ways(&mut session, 5);
        session.frontend.sync().expect("the connection is served");
        assert_eq!(rig.status()["supervised"], false);
        let mut successor = None;
        if succeeded {
            let next = rig.successor(&["--supervise"]);
            assert!(next.logged(0, &["took over"], LIMIT).is_some(), "{}", next.log());
            successor = Some(next);
            rig.both_ways(&mut session, 5);
            session.frontend.sync().expect("the connection is served");
        } else {
            kill_process(worker, Signal::TERM).expect("signalled");
        }
        let ended = poll_until(LIMIT, || rustix::process::test_kill_process(worker).is_err().then_some(()));
        assert!(ended.is_some(), "the worker ends");
        assert_eq!(rig.socket().exists(), succeeded);
        drop(successor);
    }
}

/// Ends a process whose parent may be gone, also after a failure.
struct Ends(Pid);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
    }
}

/// A supervisor that does not answer delays its worker only for a while: the worker kills it and continues
/// alone. The connection whose request it may have accepted is closed.
#[test]
fn a_supervisor_that_does_not_answer_is_done_without() {
    let test = "a_supervisor_that_does_not_answer_is_done_without";
    let Some(mut rig) = Rig::new(test, &SUPERVISED) else { return };
    let mut session = rig.session(&Setup::default());
    session.frontend.sync().expect("the connection is served");
    let worker = Ends(rig.worker());
    rig.daemon.signal(Signal::STOP).expect("stopped");
    let ask = encode(request::GET_FEATURES, 0, &[]);
    session.frontend.channel().send_bytes(&ask, &[]).expect("sent");
    // Frames are not delayed.
    rig.both_ways(&mut session, 5);
    // The worker waits ten seconds.
    let long = Duration::from_secs(100);
    let socket = session.frontend.channel().socket();
    assert!(protocol_tests::wire::readable(socket, long).expect("poll"), "{}", rig.daemon.log());
    assert!(session.frontend.channel().recv_reply(request::GET_FEATURES).is_err(), "it is closed");
    rig.logged(&["continues alone", "did not answer"]);
    assert!(rig.daemon.wait(LIMIT).is_some(), "the supervisor is ended");
    drop(session);
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    kill_process(worker.0, Signal::TERM).expect("signalled");
    let ended = poll_until(LIMIT, || rustix::process::test_kill_process(worker.0).is_err().then_some(()));
    assert!(ended.is_some(), "the worker ends");
    assert!(!rig.socket().exists(), "the socket is removed");
}

/// Limits changed at run time apply at once, and to the next process after a crash or hand-over. So does busy
/// polling.
#[test]
fn changed_limits_survive_a_crash_and_a_hand_over() {
    let name = "changed_limits_survive_a_crash_and_a_hand_over";
    let arguments = [&SUPERVISED[..], &["--busy-poll-us", "50"]].concat();
    let Some(mut rig) = Rig::new(name, &arguments) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    let limits = |rate: [&str; 2]| {
        let mut command = std::process::Command::new(program("volt-netd"));
        let output = command.args(["ctl", "--control"]).arg(rig.control()).arg("limits").args(rate).output();
        let output = output.expect("volt-netd ctl");
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    limits(["--tx-rate", "100pps:1"]);
    let expected = limits(["--rx-rate", "8Mbit:64K"]);
    assert_eq!(expected, serde_json::json!({ "rx_rate": "8Mbit:65536", "tx_rate": "100pps:1" }));
    for round in 0..3 {
        assert_eq!(rig.status()["limits"], expected);
        assert_eq!(rig.status()["busy_poll_us"], 50);
        let start = Instant::now();
        rig.both_ways(&mut session, 50);
        let taken = start.elapsed().as_secs_f64();
        assert!(taken >= 0.45, "round {round}: {taken} s for 50 frames at 100 a second");
        match round {
            0 => {
                rig.kill_worker();
            }
            _ => rig.take_over(&["--supervise"]),
        }
    }
}
