//! volt-netd under a running volt-vmm guest. Replacing it or killing its worker is invisible to the guest.
//! After a kill and restart, TCP continues both ways with correct data, and the guest's kernel reports
//! nothing. The TAP exists before the daemon and survives it.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use protocol_tests::lab::continuity::run;
use protocol_tests::lab::guest::{Flavour, Image, Spec};
use protocol_tests::lab::netd::{TAP, address, ip};
use protocol_tests::lab::process::Process;
use protocol_tests::lab::traffic::{HOST, Traffic, value};
use protocol_tests::lab::{PATIENCE, in_lab, program, rounds};

/// An address that the far side gets when the guest may stop moving data.
const ENOUGH: &str = "10.77.0.9";

fn netd(socket: &Path, options: &[&str]) -> Process {
    let mut command = Command::new(program("volt-netd"));
    Process::start("volt-netd", command.args(["--tap", TAP, "--socket"]).arg(socket).args(options))
}

/// Time without a daemon, once in the test: `VOLT_AWAY` seconds, by default a few.
fn away() -> Duration {
    Duration::from_secs(
        std::env::var("VOLT_AWAY").map_or(4, |text| text.parse().expect("VOLT_AWAY is a number")),
    )
}

/// Returns a random time in milliseconds between `shortest` and `longest`.
fn between(shortest: u64, longest: u64) -> Duration {
    let mut bytes = [0; 4];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("random bytes");
    Duration::from_millis(shortest + u64::from(u32::from_le_bytes(bytes)) % (longest - shortest))
}

#[test]
fn hand_overs_and_crashes_under_volt_vmm() {
    in_lab("hand_overs_and_crashes_under_volt_vmm", || {
        run(rounds(4), |socket, spec| Process::start("volt-vmm", &mut spec.vmm(socket, 1)));
    });
}

#[test]
fn netd_killed_again_and_again_under_traffic() {
    in_lab("netd_killed_again_and_again_under_traffic", || {
        let kills = rounds(5);
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("net.sock");
        ip(&["tuntap", "add", TAP, "mode", "tap"]);
        address(TAP);
        let traffic = Traffic::new();
        // By its path, not by the shell's function of that name: the signal is for the program.
        let run = format!(
            "tcp_limit={}; dmesg -c >/dev/null; /usr/bin/ping -U -q -i 0.2 {HOST} >/tmp/ping & ping=$!; \
             until ping -q -c 1 -w 1 {ENOUGH} >/dev/null; do report round; {}; done; \
             kill -INT $ping; wait $ping; \
             report pings $(sed -n 's/ packets transmitted, \\([0-9]*\\) received.*/ \\1/p' /tmp/ping); \
             complaints",
            300 + 2 * away().as_secs(),
            traffic.both_ways_at_once()
        );
        let spec = Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, ..Spec::new(&run) };
        let mut daemon = netd(&socket, &[]);
        let mut guest = Process::start("volt-vmm", &mut spec.vmm(&socket, 1));
        guest.wait_for("VOLT round", PATIENCE);
        for _ in 0..kills {
            sleep(between(100, 1200));
            daemon.kill();
            sleep(between(100, 3000));
            daemon = netd(&socket, &[]);
            guest.wait_for("the back-end is back after", PATIENCE);
        }
        // A long absence, then a daemon with other options. Not during a handshake: a host that never sees
        // its end gives up within this time.
        guest.wait_for("VOLT tcp_out sha256", PATIENCE);
        sleep(Duration::from_millis(400));
        daemon.kill();
        sleep(away());
        daemon = netd(&socket, &["--queue-size", "512", "--mac", "52:54:00:00:00:99", "--mtu", "1400"]);
        guest.wait_for("the back-end is back after", PATIENCE);
        // Stopped for a time that volt-vmm may not notice.
        sleep(Duration::from_millis(300));
        let pid = rustix::process::Pid::from_raw(daemon.id() as i32).expect("a process id");
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stopped");
        sleep(Duration::from_secs(5));
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).expect("continued");
        guest.wait_for("VOLT round", PATIENCE);
        ip(&["addr", "add", ENOUGH, "dev", TAP]);
        guest.wait_for("VOLT exit 0", PATIENCE);
        assert_eq!(guest.wait_exit(PATIENCE).code(), Some(0));

        let output = guest.output();
        let losses = output.iter().filter(|line| line.contains("lost the back-end (")).count();
        // The stop may count as a loss.
        assert!((kills + 1..=kills + 2).contains(&losses), "one line for each of {kills} and one: {losses}");
        let reports = guest.reports();
        let rounds: Vec<_> = reports.split(|report| report == "round").skip(1).collect();
        assert!(!rounds.is_empty());
        for round in &rounds {
            traffic.judge_tcp(round);
        }
        assert_eq!(value(&reports, "complaints"), "0", "{reports:?}");
        let pings: Vec<usize> =
            value(&reports, "pings").split(' ').map(|n| n.parse().expect("a number")).collect();
        // Requests wait in the vring; a kill loses those between the vring and the far side. Answers are lost
        // for longer: for up to a second after the TAP's carrier is back, the host drops its frames, which is
        // five answers at five a second. The ring, which TCP shares, and ping's socket hold the requests of
        // twenty seconds; the rest is never sent.
        let unsent = 5 * away().as_secs().saturating_sub(20) as usize;
        let most = (5 + 2) * (kills + 2) + unsent;
        assert!(pings[1] > 0 && pings[0] - pings[1] <= most, "{pings:?} sent and answered");
        eprintln!("{kills} kills in {} rounds of TCP, pings sent and answered: {pings:?}", rounds.len());
    });
}
