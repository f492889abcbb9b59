//! Network devices and disks are added to and removed from the PCI bus of a stock Debian guest while it runs,
//! by `volt-vmm ctl` and the guest's own hot-plug driver.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use protocol_tests::daemon::poll_until;
use protocol_tests::lab::guest::{Flavour, Image, Spec, Transport};
use protocol_tests::lab::machine::Machine;
use protocol_tests::lab::netd::{Netd, address, ip};
use protocol_tests::lab::traffic::{HOST, Traffic, value};
use protocol_tests::lab::{PATIENCE, in_lab, rounds};

const TAP: &str = "k0";

/// Returns a command for `volt.run`: waits until the file exists, or until it is gone.
fn until(there: bool, file: &str) -> String {
    format!("until [ {} -e {file} ]; do sleep 0.1; done", if there { "" } else { "!" })
}

/// Like `until`, for an interface.
fn interface(there: bool) -> String {
    until(there, "/sys/class/net/eth0")
}

fn start(directory: &Path, flavour: Flavour, transport: Transport, run: &str) -> Machine {
    let spec = Spec { flavour, image: Image::Vmlinux, transport, ..Spec::new(run) };
    Machine::start(directory, &spec, &[])
}

fn names(machine: &Machine) -> Vec<String> {
    let devices = machine.devices();
    let devices = devices.as_array().expect("a list").iter();
    devices.map(|device| device["device"].as_str().expect("a label").to_owned()).collect()
}

/// Removes a device and waits until it is gone, even if the guest is too busy to release it in time.
#[track_caller]
fn remove(machine: &Machine, kind: &str, name: &str) {
    let before = names(machine).len();
    if let Err(why) = machine.ctl(&["remove", kind, name]) {
        assert!(why.contains("within 8 s"), "{why}");
    }
    let gone = poll_until(PATIENCE, || (names(machine).len() < before).then_some(()));
    assert!(gone.is_some(), "the guest did not release {name}: {:?}", names(machine));
}

/// The guest's last command: it waits, so that requests to the machine still succeed.
const STAY: &str = "report over; sleep 1800";

/// Ends a machine whose guest has finished.
#[track_caller]
fn end(machine: &mut Machine) {
    machine.guest.wait_for("VOLT over", PATIENCE);
    machine.done(&["shutdown"]);
    assert_eq!(machine.guest.wait_exit(PATIENCE).code(), Some(0));
}

/// Checks the guest's `complaints`; messages about a new device are none. Linux shows the file of a disk
/// before it can open it: opening it in between makes Linux look for a driver, and log it.
#[track_caller]
fn only_news(reports: &[String]) {
    const NEWS: [&str; 5] = [
        ": [1af4:10",
        ": BAR 0 [mem ",
        ": enabling device (",
        "virtio_blk virtio",
        "block device autoloading is deprecated",
    ];
    // The report must exist.
    value(reports, "complaints");
    let complaints = reports.iter().filter(|line| line.starts_with("complaint "));
    let complaints: Vec<_> = complaints.filter(|line| !NEWS.iter().any(|news| line.contains(news))).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
}

/// Repeatedly adds a network device, moves checksummed traffic both ways, and removes it. The guest has the
/// interface exactly as long as the device exists, and the process has no more open files at the end. One
/// device is added, and one removal requested, while the machine is paused.
#[test]
fn a_network_device_comes_and_goes() {
    in_lab("a_network_device_comes_and_goes", || {
        let directory = tempfile::tempdir().expect("a directory");
        ip(&["tuntap", "add", "dev", TAP, "mode", "tap"]);
        address(TAP);
        let traffic = Traffic::of(1);
        let rounds = rounds(5);
        let network = traffic.try_network("round$n", "eth0", "10.77.0");
        let script = format!(
            "dmesg -c >/dev/null; report waiting; n=0; while [ $n -lt {rounds} ]; do {}; {network}; \
             report done $n; {}; report gone $n; n=$((n + 1)); done; complaints; {STAY}",
            interface(true),
            interface(false)
        );
        let mut machine = start(directory.path(), Flavour::Cloud, Transport::Pci, &script);
        machine.guest.wait_for("VOLT waiting", PATIENCE);
        let files = machine.files();
        for round in 0..rounds {
            let paused = round == 1;
            if paused {
                machine.done(&["pause"]);
            }
            let added = machine.done(&["add", "net", "tap=k0,mac=52:54:00:77:00:02"]);
            assert_eq!(added["slot"], 2 + round, "slots are used in turn");
            assert_eq!(names(&machine), ["rng", "net k0"]);
            let taken = machine.ctl(&["add", "net", "tap=k0"]).expect_err("the device exists already");
            assert!(taken.contains("k0 exists already"), "{taken}");
            if paused {
                machine.done(&["resume"]);
            }
            machine.guest.wait_for(&format!("VOLT done {round}"), PATIENCE);
            let limits = machine.done(&["limits", "k0", "--tx-rate", "1Gbit"]);
            assert!(limits["tx_rate"].as_str().is_some_and(|rate| rate.starts_with("1Gbit")), "{limits}");
            if round == 2 {
                machine.done(&["pause"]);
                let late = machine.ctl(&["remove", "net", "k0"]).expect_err("the guest is paused");
                assert!(late.contains("has not released network device k0 within"), "{late}");
                assert_eq!(machine.devices()[1]["removing"], true);
                machine.done(&["resume"]);
            } else {
                remove(&machine, "net", if round % 2 == 0 { "k0" } else { "0" });
                assert_eq!(names(&machine), ["rng"]);
            }
            machine.guest.wait_for(&format!("VOLT gone {round}"), PATIENCE);
            // The guest unbinds its driver, then ejects the device.
            let gone = poll_until(PATIENCE, || (names(&machine) == ["rng"]).then_some(()));
            assert!(gone.is_some(), "{:?}", names(&machine));
        }
        assert_eq!(machine.files(), files);
        end(&mut machine);
        let reports = machine.guest.reports();
        for round in 0..rounds {
            traffic.judge_network(&reports, &format!("round{round}"));
        }
        only_news(&reports);
    });
}

/// Devices of every kind: a disk with correct data, whose image is free afterwards; a back-end behind a
/// socket; an interface removed during traffic; and one that the guest ejects by itself.
#[test]
fn every_kind_comes_and_goes() {
    in_lab("every_kind_comes_and_goes", || {
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &[]);
        let image = directory.path().join("disk.img");
        let image = image.to_str().expect("a path of letters");
        let mut data = vec![0; 4 << 20];
        File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut data)).expect("random data");
        std::fs::write(image, data).expect("an image");
        let digest = Command::new("sha256sum").arg(image).output().expect("sha256sum");
        let digest = String::from_utf8_lossy(&digest.stdout)[..64].to_owned();
        let traffic = Traffic::of(1);
        let script = [
            "dmesg -c >/dev/null; report waiting".to_owned(),
            until(true, "/dev/vda"),
            "report disk $(sha256sum </dev/vda | cut -c 1-64); report read".to_owned(),
            until(false, "/dev/vda"),
            interface(true),
            traffic.try_network("socket", "eth0", "10.77.0"),
            "report back-end".to_owned(),
            interface(false),
            interface(true),
            traffic.try_network("again", "eth0", "10.77.0"),
            // Transfers cut off by the removal end by themselves.
            format!(
                "report network cut; tcp_limit=3; /usr/bin/ping -U -q -f -w 60 {HOST} >/dev/null 2>&1 & \
                 pinger=$!; report moving; \
                 while [ -e /sys/class/net/eth0 ]; do tcp_in {HOST} 7002; done; kill $pinger; report cut"
            ),
            interface(true),
            "report ejecting; echo 0 >/sys/bus/pci/slots/5/power".to_owned(),
            interface(false),
            format!("report ejected; complaints; {STAY}"),
        ];
        let mut machine = start(directory.path(), Flavour::Generic, Transport::Pci, &script.join("; "));
        machine.guest.wait_for("VOLT waiting", PATIENCE);
        let files = machine.files();
        machine.done(&["add", "disk", image]);
        machine.guest.wait_for("VOLT read", PATIENCE);
        remove(&machine, "disk", image);
        let socket = format!("socket={}", netd.socket.display());
        machine.done(&["add", "net", &socket]);
        machine.guest.wait_for("VOLT back-end", PATIENCE);
        remove(&machine, "net", netd.socket.to_str().expect("a path of letters"));
        machine.done(&["add", "net", &socket]);
        machine.guest.wait_for("VOLT moving", PATIENCE);
        sleep(Duration::from_millis(500));
        remove(&machine, "net", "0");
        machine.guest.wait_for("VOLT cut", PATIENCE);
        machine.done(&["add", "net", &socket]);
        machine.guest.wait_for("VOLT ejected", PATIENCE);
        let gone = poll_until(PATIENCE, || (names(&machine) == ["rng"]).then_some(()));
        assert!(gone.is_some(), "{:?}", names(&machine));
        assert_eq!(machine.files(), files);
        // Its lock ended with the device.
        let free = Command::new("flock").args(["--nonblock", image, "true"]).status().expect("flock");
        assert!(free.success());
        end(&mut machine);
        let reports = machine.guest.reports();
        assert_eq!(value(&reports, "disk"), digest);
        traffic.judge_network(&reports, "socket");
        traffic.judge_network(&reports, "again");
        assert!(machine.guest.output().iter().any(|line| line.contains("without a request, and removed")));
        only_news(&reports);
    });
}

/// Devices added, and removals requested, while the guest boots with the interrupt masked take effect when
/// its drivers are loaded.
#[test]
fn devices_come_and_go_while_the_guest_boots() {
    in_lab("devices_come_and_go_while_the_guest_boots", || {
        let directory = tempfile::tempdir().expect("a directory");
        ip(&["tuntap", "add", "dev", TAP, "mode", "tap"]);
        let image = directory.path().join("disk.img");
        std::fs::write(&image, vec![0; 1 << 20]).expect("an image");
        let image = image.to_str().expect("a path of letters");
        let script = [interface(true), until(false, "/dev/vda"), format!("report settled; {STAY}")];
        let mut machine = start(directory.path(), Flavour::Generic, Transport::Pci, &script.join("; "));
        machine.guest.wait_for("API at", PATIENCE);
        machine.done(&["add", "net", "tap=k0"]);
        // volt-vmm creates this interface, and the kernel moves its frames.
        machine.done(&["add", "net", "tap=k1,mtu=1400,vhost-net=require"]);
        machine.done(&["add", "disk", image]);
        remove(&machine, "disk", image);
        machine.guest.wait_for("VOLT settled", PATIENCE);
        assert_eq!(names(&machine), ["rng", "net k0", "net k1"]);
        end(&mut machine);
    });
}

/// A machine that cannot add a device says so, and names the option that would allow it. A missing or busy
/// interface or image leaves nothing behind.
#[test]
fn what_cannot_be_added_is_refused() {
    in_lab("what_cannot_be_added_is_refused", || {
        ip(&["tuntap", "add", "dev", TAP, "mode", "tap"]);
        for transport in [Transport::Mmio, Transport::Pci] {
            let directory = tempfile::tempdir().expect("a directory");
            let mut machine =
                start(directory.path(), Flavour::Cloud, transport, "report waiting; sleep 1800");
            // A machine that refuses everything need not have booted.
            let ready = if transport == Transport::Pci { "VOLT waiting" } else { "API at" };
            machine.guest.wait_for(ready, PATIENCE);
            if transport == Transport::Mmio {
                for arguments in
                    [["add", "net", "tap=k0"], ["remove", "net", "k0"], ["add", "disk", "/dev/null"]]
                {
                    let why = machine.ctl(&arguments).expect_err("virtio-mmio has no hot plug");
                    assert!(why.contains("--transport pci"), "{arguments:?}: {why}");
                }
            } else {
                let files = machine.files();
                let nowhere = format!("socket={}", directory.path().join("nowhere").display());
                for (arguments, expected) in [
                    (["add", "net", "tap=k0,queues=0"], "queues=0"),
                    (["add", "net", "macvtap=nothing"], "nothing"),
                    (["add", "net", "tap=k0,queues=2"], "k0"),
                    (["add", "net", &nowhere], "no network back-end at /"),
                    (["add", "net", "socket=/nowhere"], "--allow-path"),
                    (["add", "disk", "/nowhere"], "cannot open disk image /nowhere"),
                    (["add", "disk", "/nowhere"], "--allow-path"),
                    (["add", "disk", "/nowhere"], "No such file"),
                    (["add", "disk", "/dev/null"], "neither a file nor a block device"),
                    (["remove", "disk", "0"], "no disk 0"),
                ] {
                    let why = machine.ctl(&arguments).expect_err("an invalid request");
                    assert!(why.contains(expected), "{arguments:?}: {why}");
                }
                assert_eq!(machine.files(), files);
            }
            assert_eq!(names(&machine), ["rng"]);
            machine.done(&["shutdown"]);
            assert_eq!(machine.guest.wait_exit(PATIENCE).code(), Some(0));
        }
    });
}
