//! volt-netd replaced and killed under a volt-vmm guest, which sees neither.

use protocol_tests::lab::continuity::{rounds, run};
use protocol_tests::lab::in_lab;
use protocol_tests::lab::process::Process;

#[test]
fn hand_overs_and_crashes_under_volt_vmm() {
    in_lab("hand_overs_and_crashes_under_volt_vmm", || {
        run(rounds(4), |socket, spec| Process::start("volt-vmm", &mut spec.vmm(socket, 1)));
    });
}
