//! What this host gives a machine, and what is lost where it does not: `volt-vmm check`.

use volt_program::check::{Findings, Given};
use volt_virtio::error_chain;

use crate::board::vcpu_error::has_hardware_virtualisation;
use crate::machine::builder::open_kvm;
use crate::opener::{self, VHOST_NET};

/// Looks, for TAP interface `tap` too. This process is in another network namespace then.
pub fn look(tap: Option<&str>) -> Findings {
    let mut findings = Findings::default();
    match open_kvm(1) {
        Err(error) => findings.note("KVM", Given::No, error_chain(&error)),
        Ok(_) if has_hardware_virtualisation() => findings.note("KVM", Given::Yes, "runs guests"),
        Ok(_) => findings.note(
            "KVM",
            Given::Partly,
            "no vmx or svm in /proc/cpuinfo: too slow for a distribution's kernel, or cannot run it",
        ),
    }
    match opener::vhost_net() {
        Ok(_) => findings.note("vhost-net", Given::Yes, format_args!("{VHOST_NET} may be opened")),
        Err(error) => findings.note(
            "vhost-net",
            Given::Partly,
            format_args!(
                "{VHOST_NET}: {error} (modprobe vhost_net): vhost-net=on goes without, vhost-net=require \
                 fails"
            ),
        ),
    }
    findings.note_sandbox();
    findings.note_tap(tap);
    findings
}
