//! The abilities of this host, and the consequences of missing ones: `volt-vmm check`.

use volt_program::check::{Findings, Given};
use volt_virtio::error_chain;

use crate::board::vcpu_error::has_hardware_virtualisation;
use crate::machine::builder::open_kvm;
use crate::opener::{self, VHOST_NET};

/// Checks the host, and TAP interface `tap` if given. Leaves this process in another network namespace.
pub fn look(tap: Option<&str>) -> Findings {
    let mut findings = Findings::default();
    match open_kvm(1) {
        Err(error) => findings.note("KVM", Given::No, error_chain(&error)),
        Ok(_) if has_hardware_virtualisation() => findings.note("KVM", Given::Yes, "runs guests"),
        Ok(_) => findings.note(
            "KVM",
            Given::Partly,
            "no vmx or svm in /proc/cpuinfo: too slow for a distribution's kernel, or cannot run it; \
             use another host, or scripts/demo with its emulated machine",
        ),
    }
    match opener::vhost_net() {
        Ok(_) => findings.note("vhost-net", Given::Yes, format_args!("{VHOST_NET} can be opened")),
        Err(error) => findings.note(
            "vhost-net",
            Given::Partly,
            format_args!(
                "{VHOST_NET}: {error} (modprobe vhost_net): vhost-net=on falls back, vhost-net=require fails"
            ),
        ),
    }
    findings.note_sandbox();
    findings.note_tap(tap);
    findings
}
