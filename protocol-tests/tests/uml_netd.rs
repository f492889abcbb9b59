//! volt-netd behind user-mode Linux: a guest that is a plain process, with a vhost-user front-end of its own
//! in its kernel.

use std::process::Command;

use protocol_tests::lab::continuity::run;
use protocol_tests::lab::guest::Spec;
use protocol_tests::lab::netd::{Netd, TAP, ip};
use protocol_tests::lab::process::Process;
use protocol_tests::lab::traffic::Traffic;
use protocol_tests::lab::{PATIENCE, here, program, rounds};

/// Checksummed TCP both ways and numbered echo requests through hand-overs and killed workers. The front-end
/// waits for every answer without a limit.
#[test]
fn hand_overs_and_crashes_under_uml() {
    here("hand_overs_and_crashes_under_uml", || {
        run(rounds(3), |socket, spec| Process::start("linux.uml", &mut spec.uml(socket)));
    });
}

/// The guest sees its link go down and up with the interface, by the back-end's own requests, with a
/// hand-over in between.
#[test]
fn the_link_goes_down_and_comes_up() {
    here("the_link_goes_down_and_comes_up", || {
        let directory = tempfile::tempdir().expect("a directory");
        let control = directory.path().join("net.ctl");
        let mut netd = Netd::start(directory.path(), &["--control", control.to_str().expect("UTF-8")]);
        let traffic = Traffic::of(2);
        let until = |what: &str, carrier: u8| {
            format!(
                "until [ $(cat /sys/class/net/eth0/carrier) = {carrier} ]; do sleep 0.05; done; \
                 report link {what}"
            )
        };
        let script = [until("here", 1), until("down", 0), until("back", 1), traffic.both_ways()].join("; ");
        let mut guest = Process::start("linux.uml", &mut Spec::new(&script).uml(&netd.socket));
        guest.wait_for("VOLT link here", PATIENCE);
        ip(&["link", "set", TAP, "down"]);
        guest.wait_for("VOLT link down", PATIENCE);
        let mut successor = Command::new(program("volt-netd"));
        let mut successor = Process::start("volt-netd", successor.arg("--take-over").arg(&control));
        successor.wait_for("took over from", PATIENCE);
        assert!(netd.process.wait_exit(PATIENCE).success(), "{}", netd.process);
        ip(&["link", "set", TAP, "up"]);
        guest.wait_for("VOLT link back", PATIENCE);
        guest.wait_for("VOLT exit 0", PATIENCE);
        assert!(guest.wait_exit(PATIENCE).success());
        traffic.judge(&guest.reports());
    });
}
