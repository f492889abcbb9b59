//! volt-netd behind QEMU with KVM, where QEMU's device has MSI-X and each ring's call descriptor is an irqfd of its
//! own. For vhost-user, QEMU keeps the call descriptor when a vector is masked or moved and takes it off KVM instead,
//! so that signals gather in it meanwhile: none may be lost.

use std::time::Duration;

use protocol_tests::lab::guest::{Accel, Flavour, Image, QemuNet, Spec};
use protocol_tests::lab::in_lab;
use protocol_tests::lab::netd::Netd;
use protocol_tests::lab::process::Process;
use protocol_tests::lab::traffic::{Traffic, every_queue_carried, iperf3, many_flows};

/// For `volt.run`: masks and unmasks the device's interrupts, by moving them between processors, until killed.
const MOVE_INTERRUPTS: &str = "moving() { while :; do for mask in 1 2; do for irq in \
                               $(sed -n 's/ *\\([0-9]*\\):.*virtio0-[io].*/\\1/p' /proc/interrupts); do \
                               echo $mask >/proc/irq/$irq/smp_affinity; done; usleep 50000; done; done; }; moving &";

/// For `volt.run`: the processors that each ring's interrupts went to.
const COUNT_MOVES: &str = "sed -n 's/ *[0-9]*: *\\([0-9]*\\) *\\([0-9]*\\) .*virtio0-\\([io].*\\)/VOLT interrupts \\3 \\1 \\2/p' /proc/interrupts";

fn guest(name: &str, pairs: u16) {
    in_lab(name, || {
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
        let net = QemuNet::VhostUser {
            socket: netd.socket.clone(),
            pairs,
            properties: format!("vectors={vectors}"),
        };
        let mut guest = Process::start("qemu", &mut spec.qemu(Accel::Kvm, &net));
        guest.wait_for("VOLT exit", Duration::from_secs(120));
        assert!(guest.wait_exit(Duration::from_secs(20)).success());
        let reports = guest.reports();
        // A vector for each ring: what this test is about is in use.
        assert!(reports.contains(&format!("vectors {}", 2 * pairs)), "{reports:?}");
        traffic.judge(&reports);
        every_queue_carried(&reports, pairs);
    });
}

#[test]
fn msix_moved_under_traffic() {
    guest("msix_moved_under_traffic", 1);
}

#[test]
fn msix_moved_under_traffic_of_two_pairs() {
    guest("msix_moved_under_traffic_of_two_pairs", 2);
}
