//! volt-netd behind a QEMU guest under software emulation: every feature that QEMU can switch, queue pairs,
//! and changing front-ends. `vectors=0` because QEMU 7.2 crashes when an emulated guest's vhost-user device
//! starts with MSI-X; the lab's tests use MSI-X.

use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use protocol_tests::lab::guest::{Accel, Flavour, Image, QemuNet, Spec};
use protocol_tests::lab::netd::Netd;
use protocol_tests::lab::process::Process;
use protocol_tests::lab::traffic::{Traffic, every_queue_carried, has_feature, iperf3, many_flows, value};
use protocol_tests::lab::{PATIENCE, here, rounds, variants};

/// Feature bits of a network device (virtio 1.2, section 5.1.3) and of a ring (section 6).
const CSUM: usize = 0;
const GUEST_CSUM: usize = 1;
const GUEST_TSO4: usize = 7;
const GUEST_TSO6: usize = 8;
const HOST_TSO4: usize = 11;
const HOST_TSO6: usize = 12;
const MRG_RXBUF: usize = 15;
const INDIRECT_DESC: usize = 28;
const EVENT_IDX: usize = 29;
const SWITCHED: [usize; 9] =
    [CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, MRG_RXBUF, INDIRECT_DESC, EVENT_IDX];

/// Returns the kernel that boots fastest.
fn spec(run: &str) -> Spec {
    Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, ..Spec::new(run) }
}

fn start(netd: &Netd, pairs: u16, properties: &str, spec: &Spec) -> Process {
    let properties = format!("vectors=0,{properties}");
    let net = QemuNet::VhostUser { socket: netd.socket.clone(), pairs, properties };
    Process::start("qemu", &mut spec.qemu(Accel::Tcg, &net))
}

fn finish(mut guest: Process) -> Vec<String> {
    guest.wait_for("VOLT exit", PATIENCE);
    assert!(guest.wait_exit(PATIENCE).success());
    guest.reports()
}

/// Properties of the device, and the features that they remove.
type Without<'a> = (&'a str, &'a [usize]);

/// Checksummed TCP both ways with `properties` of the device; exactly the features in `off` are missing.
fn with_properties(name: &str, properties: &str, off: &[usize]) {
    here(name, || carries_traffic((properties, off)));
}

/// Without two independent features at once; in `scripts/soak` also without each alone.
fn without_both(name: &str, one: Without<'_>, other: Without<'_>) {
    let (properties, off) = (format!("{},{}", one.0, other.0), [one.1, other.1].concat());
    let both = (properties.as_str(), off.as_slice());
    here(name, || variants(&[one, other, both], both).into_iter().for_each(carries_traffic));
}

fn carries_traffic((properties, off): Without<'_>) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut netd = Netd::start(directory.path(), &[]);
    let traffic = Traffic::new();
    let guest = start(&netd, 1, properties, &spec(&format!("features; {}", traffic.both_ways())));
    let reports = finish(guest);
    for bit in SWITCHED {
        assert_eq!(has_feature(&reports, bit), !off.contains(&bit), "feature bit {bit}: {reports:?}");
    }
    traffic.judge(&reports);
    let complaint = netd.process.output().into_iter().find(|line| line.contains("share=on"));
    assert_eq!(complaint, None, "its memory is shared");
}

#[test]
fn all_features_on() {
    with_properties("all_features_on", "mac=52:54:00:12:34:56", &[]);
}

#[test]
fn without_mergeable_buffers() {
    with_properties("without_mergeable_buffers", "mrg_rxbuf=off", &[MRG_RXBUF]);
}

#[test]
fn without_mergeable_buffers_and_guest_tso() {
    let off = [MRG_RXBUF, GUEST_TSO4, GUEST_TSO6];
    with_properties(
        "without_mergeable_buffers_and_guest_tso",
        "mrg_rxbuf=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off",
        &off,
    );
}

#[test]
fn without_event_idx_and_guest_tso() {
    let properties = "guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
    let tso: Without<'_> = (properties, &[GUEST_TSO4, GUEST_TSO6]);
    without_both("without_event_idx_and_guest_tso", ("event_idx=off", &[EVENT_IDX]), tso);
}

#[test]
fn without_indirect_descriptors_and_host_tso() {
    let properties = "host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off";
    let tso: Without<'_> = (properties, &[HOST_TSO4, HOST_TSO6]);
    without_both("without_indirect_descriptors_and_host_tso", ("indirect_desc=off", &[INDIRECT_DESC]), tso);
}

/// Without checksum offload a guest has no TSO either: the host segments nothing for it.
#[test]
fn without_checksum_offload_out() {
    let properties = "csum=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off";
    with_properties("without_checksum_offload_out", properties, &[CSUM, HOST_TSO4, HOST_TSO6]);
}

#[test]
fn without_checksum_offload_in() {
    let properties = "guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off";
    with_properties("without_checksum_offload_in", properties, &[GUEST_CSUM, GUEST_TSO4, GUEST_TSO6]);
}

#[test]
fn without_any_of_them() {
    let properties = "csum=off,guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,\
                      guest_ufo=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,mrg_rxbuf=off,\
                      event_idx=off,indirect_desc=off";
    with_properties("without_any_of_them", properties, &SWITCHED);
}

/// Two queue pairs both carry frames, both ways.
#[test]
fn two_queue_pairs() {
    here("two_queue_pairs", || {
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &["--queues", "2"]);
        let traffic = Traffic::new();
        let _server = iperf3();
        let guest = start(&netd, 2, "", &spec(&format!("{}; {}", traffic.both_ways(), many_flows())));
        let reports = finish(guest);
        traffic.judge(&reports);
        every_queue_carried(&reports, 2);
    });
}

/// The kernel spreads flows over every attached TAP queue: only the guest's queues may be attached.
#[test]
fn four_queues_under_a_guest_of_one_pair_lose_no_flow() {
    here("four_queues_under_a_guest_of_one_pair_lose_no_flow", || {
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &["--queues", "4"]);
        let traffic = Traffic::new();
        let guest = start(&netd, 1, "", &spec(&traffic.flows(40)));
        assert_eq!(value(&finish(guest), "flows"), "40 of 40");
    });
}

/// One daemon serves several front-ends: some are killed under traffic, and leave nothing behind for the
/// next.
#[test]
fn front_ends_killed() {
    here("front_ends_killed", || {
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &[]);
        let traffic = Traffic::new();
        for _ in 0..rounds(4) {
            let mut guest = start(&netd, 1, "", &spec(&traffic.endless()));
            guest.wait_for("VOLT ping ok", PATIENCE);
            sleep(Duration::from_millis(300));
            guest.kill();
        }
        let reports = finish(start(&netd, 1, "", &spec(&traffic.both_ways())));
        traffic.judge(&reports);
    });
}

/// The guest's driver restarts the device after each reboot, over the same connection.
#[test]
fn guest_reboots_inside_one_qemu() {
    here("guest_reboots_inside_one_qemu", || {
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &[]);
        let traffic = Traffic::new();
        let run = format!("{}; reboot -f", traffic.both_ways());
        let net =
            QemuNet::VhostUser { socket: netd.socket.clone(), pairs: 1, properties: "vectors=0".into() };
        let mut command = spec(&run).qemu(Accel::Tcg, &net);
        let mut guest = Process::start("qemu", command.args(["-action", "reboot=reset"]));
        for _ in 0..3 {
            guest.wait_for("VOLT tcp_in sha256", PATIENCE);
            traffic.judge(&guest.reports());
        }
    });
}

/// The driver of a suspended guest releases the device, and restarts it when the guest wakes up.
#[test]
fn guest_suspends_and_wakes_up() {
    here("guest_suspends_and_wakes_up", || {
        let directory = tempfile::tempdir().expect("a directory");
        let mut netd = Netd::start(directory.path(), &[]);
        let traffic = Traffic::new();
        // Tests the drivers' part only; then the kernel wakes up by itself. The cloud kernel has no such
        // test.
        let suspend = "echo devices >/sys/power/pm_test; \
                       echo 1 >/sys/module/suspend/parameters/pm_test_delay; \
                       step suspend eval 'echo freeze >/sys/power/state'";
        let run = format!(
            "{}; {suspend}; {}; {suspend}; {}",
            traffic.both_ways(),
            traffic.both_ways(),
            traffic.both_ways()
        );
        let reports = finish(start(&netd, 1, "", &Spec { flavour: Flavour::Generic, ..spec(&run) }));
        let between: Vec<_> = reports.split(|report| report == "suspend ok").collect();
        assert_eq!(between.len(), 3, "{reports:?}");
        for reports in between {
            traffic.judge(reports);
        }
        let starts =
            netd.process.output().iter().filter(|line| line.contains("features acknowledged")).count();
        assert_eq!(starts, 3, "{}", netd.process);
    });
}

/// QEMU keeps the guest's memory private: there can be no network, and the daemon gives the reason with the
/// name of the option.
#[test]
fn memory_that_is_not_shared_is_named() {
    here("memory_that_is_not_shared_is_named", || {
        let directory = tempfile::tempdir().expect("a directory");
        let mut netd = Netd::start(directory.path(), &[]);
        let net =
            QemuNet::VhostUser { socket: netd.socket.clone(), pairs: 1, properties: "vectors=0".into() };
        let shared = spec("ping -c 1 -W 1 10.77.0.1; true").qemu(Accel::Tcg, &net);
        let mut unshared = Command::new(shared.get_program());
        unshared.args(shared.get_args().map(|word| word.to_string_lossy().replace("share=on", "share=off")));
        let guest = Process::start("qemu", &mut unshared);
        netd.process.wait_for("memory backend with share=on", PATIENCE);
        finish(guest);
    });
}

/// With a different number of queues than the daemon, QEMU retries as fast as it can: the daemon accepts one
/// attempt a second, and logs the reason.
#[test]
fn other_queues_are_named() {
    here("other_queues_are_named", || {
        let directory = tempfile::tempdir().expect("a directory");
        let mut netd = Netd::start(directory.path(), &[]);
        let net =
            QemuNet::VhostUser { socket: netd.socket.clone(), pairs: 2, properties: "vectors=0".into() };
        let once = spec("true").qemu(Accel::Tcg, &net);
        let mut again = Command::new(once.get_program());
        again.args(once.get_args().map(|word| match word.to_string_lossy() {
            chardev if chardev.starts_with("socket,id=c0") => format!("{chardev},reconnect=1"),
            other => other.into_owned(),
        }));
        let _guest = Process::start("qemu", &mut again);
        netd.process.wait_for("--queues", PATIENCE);
        let before = netd.process.output().len();
        sleep(Duration::from_secs(3));
        let tries = netd.process.output()[before..]
            .iter()
            .filter(|line| line.contains("front-end connected"))
            .count();
        assert!(tries <= 4, "{tries} tries in three seconds: {}", netd.process);
    });
}
