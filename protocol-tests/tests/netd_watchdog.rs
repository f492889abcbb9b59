//! systemd's watchdog is pinged as long as the guest is served. Without a watchdog no thread wakes up.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use protocol_tests::daemon::{Daemon, child, poll_until, program};
use protocol_tests::held::Held;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::Setup;
use protocol_tests::succession::SUPERVISED;
use rustix::process::{Signal, kill_process};

/// The watchdog's timeout; a ping is due in a third of it.
const WATCHDOG: Duration = Duration::from_millis(900);

/// Counts pings, like systemd.
fn count_pings(socket: UnixDatagram) -> Arc<AtomicUsize> {
    let pings = Arc::new(AtomicUsize::new(0));
    let counted = pings.clone();
    thread::spawn(move || {
        let mut message = [0; 4096];
        while let Ok(len) = socket.recv(&mut message) {
            if &message[..len] == b"WATCHDOG=1" {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    pings
}

/// Pinged under traffic and at idle; not while the worker does not answer, or a frame thread is blocked;
/// again afterwards, and by the next worker.
#[test]
fn the_watchdog_is_fed_while_the_guest_is_served() {
    let Some(mut rig) = Rig::new("the_watchdog_is_fed_while_the_guest_is_served", &[]) else { return };
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    let notify = rig.dir.path().join("notify");
    let pings = count_pings(UnixDatagram::bind(&notify).expect("a socket"));
    let mut command = rig.netns.command(program("volt-netd"));
    command.args(["--tap", "tap0", "--supervise", "--socket"]).arg(rig.socket());
    command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    rig.daemon = Daemon::start(command).expect("volt-netd");
    rig.daemon.wait_for_socket(&rig.socket(), LIMIT).expect("it listens");
    let fed = || {
        let before = pings.load(Ordering::SeqCst);
        poll_until(LIMIT, || (pings.load(Ordering::SeqCst) >= before + 3).then_some(())).is_some()
    };
    let hungry = || {
        // One ping may be on its way.
        thread::sleep(WATCHDOG / 3);
        let before = pings.load(Ordering::SeqCst);
        thread::sleep(WATCHDOG);
        pings.load(Ordering::SeqCst) == before
    };
    let start = Instant::now();
    assert!(fed(), "while nothing happens");
    assert!(start.elapsed() >= WATCHDOG / 2, "not more often than it takes: {:?}", start.elapsed());
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    assert!(fed(), "with a guest");

    let worker = rig.worker();
    kill_process(worker, Signal::STOP).expect("stopped");
    assert!(hungry(), "the worker does not answer");
    kill_process(worker, Signal::CONT).expect("goes on");
    assert!(fed(), "it answers again");

    let held = Held::new(&mut session, 1);
    rig.logged(&["queue pair 0 makes no progress"]);
    assert!(hungry(), "a frame thread is held");
    held.release();
    assert!(fed(), "it goes on");
    rig.kill_worker();
    assert!(fed(), "the next worker");
}

/// Returns the number of waits of a process's threads.
fn waits(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("a process");
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let of = |status: String| -> u64 {
        let count = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.and_then(|count| count.trim().parse().ok()).expect("a count")
    };
    statuses.map(of).sum()
}

/// No thread of supervisor and worker wakes up at idle, with or without metrics.
#[test]
fn without_a_watchdog_nothing_wakes_up() {
    let arguments = [&SUPERVISED[..], &["--metrics", "{metrics}"]].concat();
    let Some(mut rig) = Rig::new("without_a_watchdog_nothing_wakes_up", &arguments) else { return };
    let mut session = rig.session(&Setup::default());
    rig.both_ways(&mut session, 5);
    rig.netns.ip("link set dev tap0 arp off multicast off").expect("ip");
    let worker = child(rig.daemon.pid()).expect("a worker").as_raw_nonzero().get().unsigned_abs();
    let all = || waits(rig.daemon.pid()) + waits(worker);
    // Waits until the host has sent its own first frames on the interface.
    let quiet = poll_until(LIMIT, || {
        let before = all();
        thread::sleep(Duration::from_secs(2));
        (all() == before).then_some(())
    });
    assert!(quiet.is_some(), "{} waits after {}", all(), rig.daemon.log());
}
