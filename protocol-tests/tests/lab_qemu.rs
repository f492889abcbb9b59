//! volt-netd behind QEMU with KVM, where QEMU's device has MSI-X and each ring's call descriptor is a
//! separate irqfd. With vhost-user, QEMU keeps the call descriptor when a vector is masked or moved, and only
//! detaches it from KVM. Signals gather in it meanwhile, and none may be lost.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use protocol_tests::lab::guest::{Accel, Flavour, Image, QemuNet, Spec};
use protocol_tests::lab::netd::{Netd, address, ip};
use protocol_tests::lab::process::Process;
use protocol_tests::lab::traffic::{Traffic, every_queue_carried, iperf3, many_flows};
use protocol_tests::lab::{PATIENCE, guest_file, here, in_lab, repository, variants};
use rustix::process::{Pid, Signal, kill_process};

/// Commands for `volt.run`: mask and unmask the device's interrupts, by moving them between processors, until
/// killed.
const MOVE_INTERRUPTS: &str = "moving() { while :; do for mask in 1 2; do for irq in \
                               $(sed -n 's/ *\\([0-9]*\\):.*virtio0-[io].*/\\1/p' /proc/interrupts); do \
                               echo $mask >/proc/irq/$irq/smp_affinity; done; usleep 50000; done; done; }; \
                               moving &";

/// Commands for `volt.run`: print each ring's interrupts by processor.
const COUNT_MOVES: &str = "sed -n 's/ *[0-9]*: *\\([0-9]*\\) *\\([0-9]*\\) .*virtio0-\\([io].*\\)/\
                           VOLT interrupts \\3 \\1 \\2/p' /proc/interrupts";

fn guest(pairs: u16) {
    let directory = tempfile::tempdir().expect("a directory");
    let netd = Netd::start(directory.path(), &["--queues", &pairs.to_string()]);
    let traffic = Traffic::new();
    let _server = iperf3();
    let run = format!(
        "report vectors $(grep -c virtio0-[io] /proc/interrupts); {MOVE_INTERRUPTS} {}; {}; {COUNT_MOVES}",
        traffic.both_ways(),
        many_flows()
    );
    let spec = Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, ..Spec::new(&run) };
    let vectors = 2 * pairs + 2;
    let net =
        QemuNet::VhostUser { socket: netd.socket.clone(), pairs, properties: format!("vectors={vectors}") };
    let mut guest = Process::start("qemu", &mut spec.qemu(Accel::Kvm, &net));
    guest.wait_for("VOLT exit", PATIENCE);
    assert!(guest.wait_exit(PATIENCE).success());
    let reports = guest.reports();
    // One vector for each ring: MSI-X is in use.
    assert!(reports.contains(&format!("vectors {}", 2 * pairs)), "{reports:?}");
    traffic.judge(&reports);
    every_queue_carried(&reports, pairs);
}

#[test]
fn msix_moved_under_traffic() {
    in_lab("msix_moved_under_traffic", || variants(&[1, 2], 2).into_iter().for_each(guest));
}

/// The basis of the other tests: on QEMU's own TAP device, without either program under test, guests carry
/// checksummed TCP both ways. If this fails, all other tests fail too, and volt is not at fault.
fn qemu_alone(accel: Accel, flavour: Flavour) {
    ip(&["tuntap", "add", "tap0", "mode", "tap"]);
    address("tap0");
    let traffic = Traffic::new();
    let spec = Spec { flavour, ..Spec::new(&traffic.both_ways()) };
    let net = QemuNet::Tap { name: "tap0".into(), vhost: false, properties: String::new() };
    let mut guest = Process::start("qemu", &mut spec.qemu(accel, &net));
    guest.wait_for("VOLT exit 0", PATIENCE);
    assert!(guest.wait_exit(PATIENCE).success());
    traffic.judge(&guest.reports());
}

#[test]
fn an_emulated_guest_carries_traffic() {
    here("an_emulated_guest_carries_traffic", || qemu_alone(Accel::Tcg, Flavour::Generic));
}

#[test]
fn the_lab_runs_a_debian_kernel_under_kvm() {
    in_lab("the_lab_runs_a_debian_kernel_under_kvm", || qemu_alone(Accel::Kvm, Flavour::Cloud));
}

/// Runs a command that counts, prints `last` and ends, with a slow reader behind a narrow pipe: no line is
/// lost.
fn says_all(command: &mut Command, last: &str) {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a machine");
    let mut output = child.stdout.take().expect("its console");
    rustix::pipe::fcntl_setpipe_size(&output, 4096).expect("a pipe of a page");
    let (mut text, mut piece, deadline) = (Vec::new(), [0; 64], Instant::now() + PATIENCE);
    while Instant::now() < deadline
        && let Ok(len @ 1..) = output.read(&mut piece)
    {
        text.extend_from_slice(&piece[..len]);
        sleep(Duration::from_millis(20));
    }
    // It has ended or hangs.
    let _ = kill_process(Pid::from_child(&child), Signal::TERM);
    child.wait().expect("its end");
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    let expected = format!("\n{}\n{COUNT}\n{last}", COUNT - 1);
    let end: Vec<_> = text.lines().rev().take(5).collect();
    assert!(text.contains(&expected), "{command:?} ended, from its last line up, with {end:?}");
}

/// More lines than fit into the pipe and the machine's own buffer.
const COUNT: u32 = 3_000;

/// Tests often depend on a machine's last lines: its end must not lose them.
#[test]
fn last_words_reach_a_slow_reader() {
    let name = "last_words_reach_a_slow_reader";
    here(name, || {
        ip(&["tuntap", "add", "tap0", "mode", "tap"]);
        let spec = Spec { flavour: Flavour::Cloud, ..Spec::new(&format!("seq 1 {COUNT}")) };
        let net = QemuNet::Tap { name: "tap0".into(), vhost: false, properties: String::new() };
        says_all(&mut spec.qemu(Accel::Tcg, &net), "VOLT exit 0\n");
        if guest_file("initramfs-lab").exists() {
            let mut lab = Command::new(repository().join("scripts/lab"));
            says_all(lab.args(["seq", "1", &COUNT.to_string()]), "");
        } else {
            eprintln!("SKIP {name}: the lab image is missing: run scripts/setup");
        }
    });
}
