//! The systemd units of net-daemon/docs/continuity.md, as they stand there, under a real systemd.

use std::path::Path;

use protocol_tests::daemon::{poll_until, program, wait_until_asleep};
use protocol_tests::frontend::Frontend;
use protocol_tests::rig::{LIMIT, Rig};
use protocol_tests::session::{Session, Setup};
use protocol_tests::systemd::Systemd;
use protocol_tests::wire::{encode, readable, request};
use rustix::process::{Pid, Signal, kill_process};

/// The documents' units, by the file name in their first line.
fn units(keep: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../net-daemon/docs/continuity.md");
    let page = std::fs::read_to_string(page).expect("the document");
    let blocks = page.split("```ini\n").skip(1).filter_map(|block| block.split("\n```").next());
    let unit = |block: &str| {
        let name = block.lines().next()?.strip_prefix("# /etc/systemd/system/")?;
        Some((name.to_owned(), block.replace("/usr/bin/volt-netd", program("volt-netd").to_str()?)))
    };
    let units: Vec<_> = blocks.filter_map(unit).filter(|(name, _)| keep(name)).collect();
    assert!(!units.is_empty(), "the document has units");
    units
}

/// A rig without a daemon, and a systemd in its namespace. `None`: not on this machine, and a line has said
/// so.
fn rig(test: &str, units: &[(String, String)]) -> Option<(Systemd, Rig)> {
    let mut rig = Rig::new(test, &[])?;
    assert!(rig.daemon.stop(LIMIT).expect("it ends").success());
    rig.netns.add_tap("tap1", false).expect("another TAP");
    match Systemd::start(&rig.netns, units) {
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

/// Restarts the unit, kills it as a whole, kills its worker: its front-end is never told.
fn goes_on(systemd: &Systemd, rig: &mut Rig, session: &mut Session, unit: &str) {
    rig.both_ways(session, 3);
    for arguments in [&["restart", unit][..], &["kill", "--signal", "KILL", unit], &["restart", unit]] {
        let before = systemd.main_pid(unit).expect("a main process");
        // Not in the middle of a request, whose connection would be closed.
        assert!(wait_until_asleep(before as u32, LIMIT));
        systemctl(systemd, arguments);
        let next = || systemd.main_pid(unit).filter(|pid| *pid != before);
        assert!(poll_until(2 * LIMIT, next).is_some(), "{arguments:?}: {}", systemd.log());
        rig.both_ways(session, 3);
        session.frontend.sync().expect("the connection is served");
    }
}

/// Each unit goes on after whatever happens to it, and stopping one touches no other.
#[test]
fn a_unit_for_each_interface() {
    let units = units(|name| name == "volt-netd@.service");
    let Some((systemd, mut rig)) = rig("a_unit_for_each_interface", &units) else { return };
    systemctl(&systemd, &["start", "volt-netd@tap0", "volt-netd@tap1"]);
    let mut session = session(&systemd, "/run/volt/tap0/net.sock");
    goes_on(&systemd, &mut rig, &mut session, "volt-netd@tap0.service");
    systemctl(&systemd, &["stop", "volt-netd@tap1"]);
    assert!(!systemd.path("/run/volt/tap1").exists());
    assert!(
        systemd.path("/run/volt/tap0/net.sock").exists() && systemd.path("/run/volt/tap0/net.ctl").exists()
    );
    goes_on(&systemd, &mut rig, &mut session, "volt-netd@tap0.service");
    systemctl(&systemd, &["stop", "volt-netd@tap0"]);
    assert!(!systemd.path("/run/volt/tap0").exists());
}

/// A supervisor that hangs is ended by its worker, and the unit goes on from what systemd keeps, request
/// included.
#[test]
fn a_unit_that_hangs_goes_on() {
    let units = units(|name| name == "volt-netd@.service");
    let Some((systemd, mut rig)) = rig("a_unit_that_hangs_goes_on", &units) else { return };
    systemctl(&systemd, &["start", "volt-netd@tap0"]);
    let mut session = session(&systemd, "/run/volt/tap0/net.sock");
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

/// With socket activation the first front-end starts the daemon, and after whatever happens to it, it goes on
/// and takes new ones.
#[test]
fn a_unit_with_socket_activation() {
    let Some((systemd, mut rig)) = rig("a_unit_with_socket_activation", &units(|_| true)) else { return };
    systemctl(&systemd, &["start", "volt-netd@tap0.socket", "volt-netd@tap1.socket"]);
    assert_eq!(systemd.main_pid("volt-netd@tap0.service"), None, "it is not started yet");
    let mut first = session(&systemd, "/run/volt/tap0.sock");
    goes_on(&systemd, &mut rig, &mut first, "volt-netd@tap0.service");
    drop(first);
    let mut second = session(&systemd, "/run/volt/tap0.sock");
    goes_on(&systemd, &mut rig, &mut second, "volt-netd@tap0.service");
    systemctl(&systemd, &["stop", "volt-netd@tap1.socket"]);
    assert!(!systemd.path("/run/volt/tap1.sock").exists() && systemd.path("/run/volt/tap0.sock").exists());
    goes_on(&systemd, &mut rig, &mut second, "volt-netd@tap0.service");
}
