//! The ground that the other tests stand on: without either program under test, guests carry traffic.
//! When these fail, so does everything else, and it is not volt's fault.

use std::time::Duration;

use protocol_tests::lab::guest::{Accel, Flavour, QemuNet, Spec};
use protocol_tests::lab::netd::{address, ip};
use protocol_tests::lab::process::Process;
use protocol_tests::lab::traffic::Traffic;
use protocol_tests::lab::{here, in_lab};

/// A QEMU guest on QEMU's own TAP device: checksummed TCP both ways.
fn qemu_alone(accel: Accel, flavour: Flavour) {
    ip(&["tuntap", "add", "tap0", "mode", "tap"]);
    address("tap0");
    let traffic = Traffic::new();
    let spec = Spec { flavour, ..Spec::new(&traffic.both_ways()) };
    let mut guest = Process::start(
        "qemu",
        &mut spec.qemu(accel, &QemuNet::Tap { name: "tap0".into(), properties: String::new() }),
    );
    guest.wait_for("VOLT exit 0", Duration::from_secs(120));
    assert!(guest.wait_exit(Duration::from_secs(20)).success());
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
