//! Replacements of volt-netd under a guest that moves TCP both ways and answers numbered echo requests
//! throughout.
//!
//! The same body serves every VMM: [`run`] starts the daemon, lets the caller start the guest, and then
//! replaces the daemon by hand-over and kills its worker, `rounds` times each.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use super::echo::{Account, Echo, INTERVAL};
use super::guest::{Flavour, Image, Spec};
use super::netd::{TAP, address, counter, ip};
use super::process::Process;
use super::traffic::{GUEST, HOST, Traffic, value};
use super::{PATIENCE, program};
use crate::daemon::{child, poll_until};

/// An address that the far side gets when the guest may stop moving data.
const ENOUGH: &str = "10.77.0.9";
/// Most frames that a crash may lose, or repeat, on each of the two queues of an echo.
const BATCH: usize = 64;

/// A daemon with a control socket, with or without a supervisor.
struct Succession {
    daemon: Process,
    socket: PathBuf,
    control: PathBuf,
}

impl Succession {
    fn start(directory: &Path) -> Succession {
        let (socket, control) = (directory.join("net.sock"), directory.join("net.ctl"));
        let mut command = Command::new(program("volt-netd"));
        command.args(["--tap", TAP, "--supervise", "--socket"]).arg(&socket).arg("--control").arg(&control);
        let mut daemon = Process::start("volt-netd", &mut command);
        daemon.wait_for("listening on", PATIENCE);
        Succession { daemon, socket, control }
    }

    fn hand_over(&mut self) {
        let mut command = Command::new(program("volt-netd"));
        command.args(["--supervise", "--take-over"]).arg(&self.control);
        let mut successor = Process::start("volt-netd", &mut command);
        successor.wait_for("took over from", PATIENCE);
        let mut old = std::mem::replace(&mut self.daemon, successor);
        assert!(old.wait_exit(PATIENCE).success(), "the previous daemon failed: {old}");
    }

    fn kill_worker(&mut self) {
        let worker = poll_until(PATIENCE, || child(self.daemon.id())).expect("a worker");
        kill_process(worker, Signal::KILL).expect("the worker lives");
        self.daemon.wait_for("a new worker continues with its state", PATIENCE);
        let next = poll_until(PATIENCE, || child(self.daemon.id()).filter(|pid| *pid != worker));
        assert!(next.is_some(), "no new worker started: {}", self.daemon);
    }

    fn status(&self) -> serde_json::Value {
        let mut command = Command::new(program("volt-netd"));
        let output =
            command.args(["ctl", "status", "--json", "--control"]).arg(&self.control).output().expect("ctl");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    }

    /// Returns the descriptors of supervisor and worker, and their memory in KiB.
    fn usage(&self) -> (usize, u64) {
        let worker = child(self.daemon.id()).expect("a worker").as_raw_nonzero().get();
        let one = |pid: u32| {
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let own =
                status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.split_whitespace().next());
            (fds, own.and_then(|text| text.parse().ok()).unwrap_or(0))
        };
        let (supervisor, worker): ((usize, u64), _) = (one(self.daemon.id()), one(worker as u32));
        (supervisor.0 + worker.0, supervisor.1 + worker.1)
    }

    /// Returns the usage of a worker that has finished starting: it answers, and its usage is stable.
    fn steady_usage(&self) -> (usize, u64) {
        self.status();
        let mut last = [0; 3];
        let steady = || {
            sleep(Duration::from_millis(100));
            let usage = self.usage();
            last = [last[1], last[2], usage.0];
            (last == [usage.0; 3]).then_some(usage)
        };
        poll_until(PATIENCE, steady).expect("descriptors that stay the same")
    }
}

/// Returns the frames that the interface has dropped for lack of room.
fn dropped() -> u64 {
    counter(TAP, "tx", "dropped")
}

/// Returns a time that differs from round to round, from 40 to 400 ms.
fn moment(round: usize) -> Duration {
    Duration::from_millis(40 + (round as u64 * 7919) % 360)
}

/// Runs the body: `guest` starts a VMM on the daemon's socket.
///
/// # Panics
/// If a frame or data is lost or wrong, or the guest reports an error.
pub fn run(rounds: usize, guest: impl FnOnce(&Path, &Spec) -> Process) {
    let directory = tempfile::tempdir().expect("a directory");
    ip(&["tuntap", "add", TAP, "mode", "tap"]);
    address(TAP);
    let mut succession = Succession::start(directory.path());
    let traffic = Traffic::of(8);
    let script = format!(
        "dmesg -c >/dev/null; until ping -q -c 1 -w 1 {ENOUGH} >/dev/null; do report round; {}; done; \
         complaints",
        traffic.both_ways_at_once()
    );
    let spec = Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, ..Spec::new(&script) };
    let mut guest = guest(&succession.socket, &spec);
    guest.wait_for("VOLT round", PATIENCE);

    let (before, start) = (dropped(), Instant::now());
    let echo = Echo::start();
    for round in 0..rounds {
        sleep(moment(round));
        succession.hand_over();
    }
    let account = echo.stop();
    let gone = dropped() - before;
    eprintln!(
        "{rounds} hand-overs in {:.0} s, an echo request every {INTERVAL:?}: {account:?}; \
         dropped by the interface: {gone}",
        start.elapsed().as_secs_f32()
    );
    let perfect = Account { sent: account.sent, lost: 0, repeated: 0 };
    assert!(account == perfect && account.sent > 0 && gone == 0, "a hand-over lost or repeated frames");
    assert_eq!(succession.status()["take_overs"], rounds);

    succession.kill_worker();
    let (fds, memory) = succession.steady_usage();
    let echo = Echo::start();
    for round in 1..rounds {
        sleep(moment(round) + Duration::from_millis(200));
        succession.kill_worker();
    }
    let account = echo.stop();
    eprintln!("{rounds} workers killed: {account:?}");
    let most = BATCH * rounds;
    assert!(account.sent > 0 && account.lost <= most && account.repeated <= most, "{account:?}");
    assert_eq!(succession.status()["restarts"], rounds);
    let (fds_now, memory_now) = succession.steady_usage();
    assert!(fds_now <= fds, "{fds} descriptors became {fds_now}");
    assert!(memory_now <= memory + 1024, "{memory} KiB became {memory_now} KiB");

    ip(&["addr", "add", ENOUGH, "dev", TAP]);
    guest.wait_for("VOLT exit 0", PATIENCE);
    assert!(guest.wait_exit(PATIENCE).success());
    let reports = guest.reports();
    let done: Vec<_> = reports.split(|report| report == "round").skip(1).collect();
    assert!(!done.is_empty());
    for round in &done {
        traffic.judge_tcp(round);
    }
    assert_eq!(value(&reports, "complaints"), "0", "{reports:?}");
    eprintln!("{} rounds of TCP, {HOST} to {GUEST} and back", done.len());
}
