//! volt-netd replaced and killed under a QEMU guest, whose front-end cannot reconnect.

use protocol_tests::lab::continuity::run;
use protocol_tests::lab::guest::{Accel, QemuNet};
use protocol_tests::lab::process::Process;
use protocol_tests::lab::{here, rounds};

#[test]
fn hand_overs_and_crashes_under_qemu() {
    here("hand_overs_and_crashes_under_qemu", || {
        run(rounds(6), |socket, spec| {
            let net = QemuNet::VhostUser { socket: socket.into(), pairs: 1, properties: "vectors=0".into() };
            Process::start("qemu", &mut spec.qemu(Accel::Tcg, &net))
        });
    });
}
