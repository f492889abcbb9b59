//! The systemd units of the package, as installed, under a real systemd: the daemon is the user volt-netd,
//! has no capability, and sees only what its unit allows.

use std::process::Command;

use protocol_tests::daemon::{poll_until, program, wait_until_asleep};
use protocol_tests::far_end::Wire;
use protocol_tests::frame::numbered;
use protocol_tests::frontend::Frontend;
use protocol_tests::lab::repository;
use protocol_tests::rig::{LIMIT, QUIET, Rig};
use protocol_tests::session::{Session, Setup};
use protocol_tests::systemd::{NETD, Systemd, USER};
use protocol_tests::wire::{encode, readable, request};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The folder of the instances' options, in place of `/etc/volt/netd`.
const OPTIONS: &str = "/run/volt-options/";

/// Returns the package's units, by name.
fn units() -> Vec<(String, String)> {
    let folder = repository().join("net-daemon/package/usr/lib/systemd/system");
    let unit = |name: &str| {
        let text = std::fs::read_to_string(folder.join(name)).expect("a unit of the package");
        // Tests write options of their own; those of this machine do not count.
        let text = text.replace("/usr/bin/volt-netd", NETD).replace("/etc/volt/netd/", OPTIONS);
        (name.to_owned(), text)
    };
    ["volt-netd@.service", "volt-netd@.socket"].map(unit).into()
}

/// Returns a systemd, and a rig without a daemon in its namespace, whose interfaces belong to the units'
/// user. Returns `None`, and prints why, if this machine does not allow it.
fn rig(test: &str) -> Option<(Systemd, Rig)> {
    let mut rig = Rig::new(test, &[])?;
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    rig.netns.ip("link del dev tap0").expect("deleted");
    for tap in ["tap0", "tap1"] {
        let owned = rig.netns.ip(&format!("tuntap add dev {tap} mode tap vnet_hdr user {USER}"));
        owned.and_then(|()| rig.netns.ip(&format!("link set dev {tap} mtu 9000 up"))).expect("a TAP");
    }
    rig.wire = Wire::Tap(rig.netns.wire("tap0").expect("a packet socket on the TAP"));
    match Systemd::start(&rig.netns, &units()) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => {
            eprintln!("SKIP {test}: no systemd can be started here: {error}");
            None
        }
        systemd => Some((systemd.expect("a systemd"), rig)),
    }
}

fn systemctl(systemd: &Systemd, arguments: &[&str]) {
    let output = systemd.systemctl(arguments).expect("systemctl");
    assert!(output.status.success(), "{arguments:?}: {output:?}\n{}", systemd.log());
}

fn session(systemd: &Systemd, path: &str) -> Session {
    let frontend = Frontend::connect(&systemd.path(path), 2 * LIMIT).expect("the unit takes a connection");
    let mut session = Session::start(frontend, &Setup::default()).expect("a session");
    session.rx(0).fill(64, &[2048]).expect("receive buffers");
    session
}

/// Restarts the unit, kills it as a whole, and kills its worker: its front-end never reconnects.
fn goes_on(systemd: &Systemd, rig: &mut Rig, session: &mut Session, unit: &str) {
    rig.both_ways(session, 3);
    for arguments in [&["restart", unit][..], &["kill", "--signal", "KILL", unit], &["restart", unit]] {
        let before = systemd.main_pid(unit).expect("a main process");
        // Not during a request, whose connection would be closed.
        assert!(wait_until_asleep(before as u32, LIMIT));
        systemctl(systemd, arguments);
        let next = || systemd.main_pid(unit).filter(|pid| *pid != before);
        assert!(poll_until(2 * LIMIT, next).is_some(), "{arguments:?}: {}", systemd.log());
        rig.both_ways(session, 3);
        session.frontend.sync().expect("the connection is served");
    }
}

/// Each unit continues after any end, and stopping one does not affect the other.
#[test]
fn a_unit_for_each_interface() {
    let Some((systemd, mut rig)) = rig("a_unit_for_each_interface") else { return };
    systemctl(&systemd, &["start", "volt-netd@tap0", "volt-netd@tap1"]);
    let mut session = session(&systemd, "/run/volt/tap0.sock");
    goes_on(&systemd, &mut rig, &mut session, "volt-netd@tap0.service");
    systemctl(&systemd, &["stop", "volt-netd@tap1.socket"]);
    assert!(!systemd.path("/run/volt/tap1").exists() && !systemd.path("/run/volt/tap1.sock").exists());
    assert!(systemd.path("/run/volt/tap0.sock").exists() && systemd.path("/run/volt/tap0/tap0.ctl").exists());
    goes_on(&systemd, &mut rig, &mut session, "volt-netd@tap0.service");
    systemctl(&systemd, &["stop", "volt-netd@tap0.socket"]);
    assert!(!systemd.path("/run/volt/tap0").exists());
}

/// The worker kills a hanging supervisor, and the unit continues from the state that systemd keeps, including
/// the request.
#[test]
fn a_unit_that_hangs_goes_on() {
    let Some((systemd, mut rig)) = rig("a_unit_that_hangs_goes_on") else { return };
    systemctl(&systemd, &["start", "volt-netd@tap0"]);
    let mut session = session(&systemd, "/run/volt/tap0.sock");
    rig.both_ways(&mut session, 3);
    let hung = systemd.main_pid("volt-netd@tap0").and_then(Pid::from_raw).expect("a main process");
    kill_process(hung, Signal::STOP).expect("stopped");
    let ask = encode(request::GET_FEATURES, 0, &[]);
    session.frontend.channel().send_bytes(&ask, &[]).expect("sent");
    let answered = readable(session.frontend.channel().socket(), 20 * LIMIT).expect("poll");
    assert!(answered, "{}", systemd.log());
    session.frontend.channel().recv_reply(request::GET_FEATURES).expect("the request is answered");
    rig.both_ways(&mut session, 3);
}

/// The first front-end starts the daemon. After any end it continues, and accepts new front-ends.
#[test]
fn a_front_end_starts_its_unit() {
    let Some((systemd, mut rig)) = rig("a_front_end_starts_its_unit") else { return };
    systemctl(&systemd, &["start", "volt-netd@tap0.socket"]);
    assert_eq!(systemd.main_pid("volt-netd@tap0.service"), None, "it is not started yet");
    let mut first = session(&systemd, "/run/volt/tap0.sock");
    goes_on(&systemd, &mut rig, &mut first, "volt-netd@tap0.service");
    drop(first);
    let mut second = session(&systemd, "/run/volt/tap0.sock");
    goes_on(&systemd, &mut rig, &mut second, "volt-netd@tap0.service");
}

/// An instance's file names the guest and its policy, which the unit's user can read. A restart takes new
/// values.
#[test]
fn a_unit_filters_by_its_file() {
    let Some((systemd, rig)) = rig("a_unit_filters_by_its_file") else { return };
    let folder = systemd.path(OPTIONS);
    std::fs::create_dir(&folder).expect("a folder");
    let policy = format!("{OPTIONS}tap0.toml");
    let options = format!("mac=52:54:00:01:02:03\nguest-ip=192.0.2.10\npolicy={policy}\n");
    std::fs::write(folder.join("tap0.conf"), options).expect("the options");
    let unit = "volt-netd@tap0";
    // Without options, the daemon offers a random address, which QEMU's guest never has.
    let (conf, later) = (folder.join("tap0.conf"), folder.join("later"));
    std::fs::rename(&conf, &later).expect("renamed");
    systemctl(&systemd, &["start", unit]);
    std::fs::rename(&later, &conf).expect("renamed");
    for (mode, refused) in [("enforce", 1), ("log", 2)] {
        std::fs::write(systemd.path(&policy), format!("mode = \"{mode}\"\n")).expect("the policy");
        systemctl(&systemd, &["restart", unit]);
        let mut session = session(&systemd, "/run/volt/tap0.sock");
        // Not a frame of this guest.
        session.tx(0).send(&numbered(1, 90), LIMIT).expect("it comes back");
        let arguments = ["ctl", "status", "--json", "--control"];
        let control = systemd.path("/run/volt/tap0/tap0.ctl");
        let output = Command::new(program("volt-netd")).args(arguments).arg(control).output();
        let output = output.expect("volt-netd ctl");
        let status: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(status["filter"]["policy"], mode, "{status:#}");
        assert_eq!(status["filter"]["mac"], "52:54:00:01:02:03", "{status:#}");
        assert_eq!(status["filter"]["refused"]["tx"]["source_mac"], refused, "{status:#}");
        assert!(rig.wire.recv(QUIET).expect("the wire").is_none(), "a refused frame passed");
    }
}
