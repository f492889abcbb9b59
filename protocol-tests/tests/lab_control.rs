//! A stock Debian guest under volt-vmm is controlled while it runs, by `volt-vmm ctl` like an operator's:
//! paused and resumed under traffic, given other limits, and sent the power button.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use protocol_tests::lab::guest::{Flavour, Image, Spec};
use protocol_tests::lab::machine::Machine;
use protocol_tests::lab::netd::{address, counter, ip};
use protocol_tests::lab::traffic::{HOST, Traffic, iperf3, value};
use protocol_tests::lab::{PATIENCE, in_lab};

const TAP: &str = "k0";
/// An address that the far side gets when the guest may stop moving data.
const ENOUGH: &str = "10.77.0.9";
/// Number of measurements of a rate before it counts as not reached.
const WINDOWS: usize = 8;

fn start(directory: &Path, run: &str, nets: &[&str]) -> Machine {
    let spec = Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, ..Spec::new(run) };
    Machine::start(directory, &spec, nets)
}

fn tap() {
    ip(&["tuntap", "add", "dev", TAP, "mode", "tap"]);
    address(TAP);
}

/// After repeated pauses, each longer than the guest's watchdogs allow, connections continue with correct
/// data. A paused guest moves nothing. The power button and an end take effect during a pause.
#[test]
fn paused_and_resumed_under_traffic() {
    in_lab("paused_and_resumed_under_traffic", || {
        let directory = tempfile::tempdir().expect("a directory");
        tap();
        let traffic = Traffic::of(8);
        let run = format!(
            "modprobe button; modprobe evdev; dmesg -c >/dev/null; echo 1 >/proc/sys/kernel/watchdog_thresh; \
             until ping -q -c 1 -w 1 {ENOUGH} >/dev/null; do report round; {}; done; complaints; \
             report waiting; \
             report key $(dd if=/dev/input/event0 bs=24 count=1 2>/dev/null | od -An -v -t u2); \
             report events $(grep ACPI:Ged /proc/interrupts); report over; sleep 1800",
            traffic.both_ways_at_once()
        );
        let mut machine = start(directory.path(), &run, &["tap=k0"]);
        machine.guest.wait_for("VOLT round", PATIENCE);
        for round in 0..3 {
            sleep(Duration::from_millis(700));
            assert_eq!(machine.done(&["pause"])["state"], "paused");
            assert_eq!(machine.done(&["pause"])["state"], "paused");
            let before = machine.devices();
            sleep(Duration::from_secs(if round == 0 { 5 } else { 2 }));
            assert_eq!(machine.devices(), before, "a paused guest moves nothing");
            assert_eq!(machine.done(&["resume"])["state"], "running");
        }
        ip(&["addr", "add", ENOUGH, "dev", TAP]);
        machine.guest.wait_for("VOLT waiting", PATIENCE);
        machine.done(&["pause"]);
        machine.done(&["power-button"]);
        sleep(Duration::from_millis(500));
        assert!(!machine.guest.output().iter().any(|line| line.contains("VOLT key")));
        machine.done(&["resume"]);
        machine.guest.wait_for("VOLT over", PATIENCE);
        machine.done(&["pause"]);
        machine.done(&["shutdown"]);
        assert_eq!(machine.guest.wait_exit(PATIENCE).code(), Some(0));

        let reports = machine.guest.reports();
        let rounds: Vec<_> = reports.split(|report| report == "round").skip(1).collect();
        for round in &rounds {
            traffic.judge_tcp(round);
        }
        assert_eq!(value(&reports, "complaints"), "0", "{reports:?}");
        // A key event after its time stamp: EV_KEY, KEY_POWER, pressed.
        let key: Vec<&str> = value(&reports, "key").split(' ').collect();
        assert_eq!(key.get(8..11), Some(&["1", "116", "1"][..]), "{reports:?}");
        // Its interrupts by processor, after its number.
        let events = value(&reports, "events").split_whitespace().skip(1);
        let events: u64 = events.map_while(|count| count.parse::<u64>().ok()).sum();
        assert_eq!(events, 1, "{reports:?}");
    });
}

/// A limit changed under traffic holds within five per cent; a removed limit no longer applies. Devices whose
/// frames pass outside volt-vmm have no limit.
#[test]
fn a_rate_limit_changes_under_traffic() {
    in_lab("a_rate_limit_changes_under_traffic", || {
        let directory = tempfile::tempdir().expect("a directory");
        tap();
        let _server = iperf3();
        let run = format!("report ready; speed out -u -l 1448 -b 6M -c {HOST} -t 80");
        let mut machine = start(directory.path(), &run, &["tap=k0,tx-rate=500kbit", "tap=k1,vhost-net=on"]);
        machine.guest.wait_for("VOLT out begin", PATIENCE);
        sleep(Duration::from_secs(2));
        for (megabits, burst) in [(1.0, "20K"), (2.5, "50K"), (1.5, "30K")] {
            let rate = format!("{}kbit:{burst}", 1000.0 * megabits);
            let limits = machine.done(&["limits", TAP, "--tx-rate", &rate]);
            assert_eq!(limits["rx_rate"], "none", "{limits}");
            // The new bucket is full.
            sleep(Duration::from_secs(1));
            // A guest with too little CPU time sends less, but no guest may send more.
            let reached = (0..WINDOWS).any(|_| {
                let (least, most) = measure(Duration::from_secs(3));
                let (least, most) = (least / megabits, most / megabits);
                eprintln!("a_rate_limit_changes_under_traffic: {rate}: {least:.3} to {most:.3} of the limit");
                // A bucket filled by a pause is a twentieth of the window.
                assert!(least < 1.1, "{rate}: {least}");
                most > 0.95
            });
            assert!(reached, "{rate}: less in each of {WINDOWS} windows");
        }
        machine.done(&["limits", "0", "--tx-rate", "none"]);
        sleep(Duration::from_secs(1));
        // Twice the old limit and half of the offered rate: a guest on a starved machine hardly reaches more.
        let freed = (0..WINDOWS).any(|_| measure(Duration::from_secs(2)).1 > 3.0);
        assert!(freed, "not even 3 Mbit/s without a limit");

        if Path::new("/dev/vhost-net").exists() {
            let why =
                machine.ctl(&["limits", "1", "--tx-rate", "1Mbit"]).expect_err("the kernel has no limit");
            assert!(why.contains("vhost-net") && why.contains("tc"), "{why}");
        }
        let why = machine.ctl(&["limits", "k7", "--tx-rate", "1Mbit"]).expect_err("no such device");
        assert!(why.contains("k7") && why.contains("k0"), "{why}");
        machine.done(&["shutdown"]);
        assert_eq!(machine.guest.wait_exit(PATIENCE).code(), Some(0));
    });
}

/// Returns the guest's rate through the TAP, in Mbit/s of frames: a minimum and a maximum, because reading
/// the counter takes time.
fn measure(time: Duration) -> (f64, f64) {
    let bytes = || {
        let from = Instant::now();
        let bytes = counter(TAP, "rx", "bytes");
        (from, bytes, Instant::now())
    };
    let before = bytes();
    sleep(time);
    let after = bytes();
    let megabits = (after.1 - before.1) as f64 * 8e-6;
    (megabits / (after.2 - before.0).as_secs_f64(), megabits / (after.0 - before.2).as_secs_f64())
}
