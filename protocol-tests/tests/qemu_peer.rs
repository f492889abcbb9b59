//! A QEMU guest, by vhost-user through volt-netd, to peers that need no interface of the host: passt, and
//! QEMU's stream and dgram netdevs. All programs run as an ordinary user without capabilities.

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use protocol_tests::daemon::{child, poll_until};
use protocol_tests::lab::guest::{Accel, Flavour, Image, QemuNet, Spec};
use protocol_tests::lab::netd::ip;
use protocol_tests::lab::process::Process;
use protocol_tests::lab::traffic::{HOST, Traffic};
use protocol_tests::lab::{PATIENCE, guest_file, here, program};
use rustix::process::{Signal, kill_process};

/// A user without files and rights: `nobody`.
const USER: u32 = 65_534;
/// MiB each way.
const MIB: usize = 16;

/// A directory of the user's, with a volt-netd that the user may run.
struct Home(tempfile::TempDir);

impl Home {
    /// Returns `None`, and prints that `test` is skipped, if the user can read no kernel, or a program is
    /// missing.
    fn new(test: &str, needed: &str) -> Option<Home> {
        let home = tempfile::tempdir().expect("a directory");
        chown(home.path(), Some(USER), Some(USER)).expect("the user's directory");
        let copied = Command::new("cp").arg(program("volt-netd")).arg(home.path()).status().expect("cp");
        assert!(copied.success());
        let mut read = Command::new("test");
        let read = as_user(read.arg("-r").arg(guest_file("initramfs-cloud"))).status();
        if !read.is_ok_and(|status| status.success()) {
            eprintln!("SKIP {test}: an ordinary user cannot read {}", guest_file("").display());
            return None;
        }
        if Command::new(needed).arg("--version").output().is_err() {
            eprintln!("SKIP {test}: {needed} is not installed: run scripts/setup");
            return None;
        }
        Some(Home(home))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn netd(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(self.path("volt-netd"));
        Process::start("volt-netd", &mut as_user(command.args(arguments)))
    }

    /// Starts a guest that runs these commands.
    fn guest(&self, run: &str) -> Process {
        let spec = Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, ..Spec::new(run) };
        let net = QemuNet::VhostUser { socket: self.path("s"), pairs: 1, properties: "vectors=0".to_owned() };
        Process::start("qemu", &mut as_user(&spec.qemu(Accel::Tcg, &net)))
    }
}

/// Returns the command as the ordinary user, without any capability now or later.
fn as_user(command: &Command) -> Command {
    let mut user = Command::new("setpriv");
    let number = USER.to_string();
    user.args(["--reuid", &number, "--regid", &number, "--clear-groups", "--bounding-set=-all"]);
    user.args(["--inh-caps=-all", "--no-new-privs", "--"]).arg(command.get_program());
    user.args(command.get_args());
    user
}

/// Makes the namespace look like a host with a network: passt takes the guest's address from an interface,
/// and sends pings as an ordinary program.
fn host_network() {
    ip(&["link", "set", "lo", "up"]);
    ip(&["link", "add", "host0", "type", "bridge"]);
    ip(&["addr", "add", "10.77.0.2/24", "dev", "host0"]);
    ip(&["link", "set", "host0", "up"]);
    ip(&["route", "add", "default", "via", HOST, "dev", "host0"]);
    // Not earlier: a gateway must be another host.
    ip(&["addr", "add", HOST, "dev", "lo"]);
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").expect("pings without rights");
}

fn passt(socket: &Path) -> Process {
    let mut command = Command::new("passt");
    let mut passt = Process::start("passt", &mut as_user(command.args(["-f", "-e", "-s"]).arg(socket)));
    passt.wait_for("You can now start qemu", PATIENCE);
    passt
}

fn finish(mut guest: Process) -> Vec<String> {
    guest.wait_for("VOLT exit", PATIENCE);
    assert!(guest.wait_exit(PATIENCE).success());
    guest.reports()
}

/// Kills the worker of a supervised daemon, and waits until another one works.
fn kill_worker(netd: &Process) {
    let worker = || child(netd.id());
    let dead = worker().expect("a worker");
    kill_process(dead, Signal::KILL).expect("the worker lives");
    poll_until(PATIENCE, || worker().filter(|pid| *pid != dead)).expect("another worker");
}

/// Waits until the guest is in the middle of a transfer, which starts behind this line.
fn wait_for_transfer(guest: &mut Process, line: &str) {
    guest.wait_for(line, PATIENCE);
    std::thread::sleep(Duration::from_millis(100));
}

/// Under traffic, volt-netd is handed over, and the guest's connections continue. A worker is killed, and
/// passt is restarted: new connections work. Open ones may not continue after a kill: this passt does not
/// repeat an acknowledgement that was lost with a worker. Those of `a_guest_behind_another_qemu` continue.
#[test]
fn a_guest_behind_passt() {
    here("a_guest_behind_passt", || {
        let Some(home) = Home::new("a_guest_behind_passt", "passt") else { return };
        host_network();
        let traffic = Traffic::of(MIB);
        let socket = home.path("passt");
        let mut first = passt(&socket);
        let (stream, front, control) = (home.text("passt"), home.text("s"), home.text("c"));
        let arguments = ["--stream", &stream, "--socket", &front, "--control", &control, "--supervise"];
        let mut netd = home.netd(&arguments);
        netd.wait_for("listening on", PATIENCE);
        let both = traffic.both_ways();
        // Transfers that may be cut short, and afterwards whole ones.
        let cut = format!(
            "tcp_limit=2; for n in 1 2 3 4; do tcp_in {HOST} 7002; done; tcp_limit=300; \
             ping -q -w 60 -c 1 {HOST}"
        );
        let crash = format!("step crash true; {cut}; step crashed true; {both}");
        let restart = format!("step restart true; {cut}; step restarted true; {both}");
        let mut guest = home.guest(&format!("{both}; {crash}; {restart}"));

        wait_for_transfer(&mut guest, "VOLT tcp_out sha256");
        let mut next = home.netd(&["--take-over", &control, "--supervise"]);
        next.wait_for("took over", PATIENCE);
        assert!(netd.wait_exit(PATIENCE).success());

        wait_for_transfer(&mut guest, "VOLT crash ok");
        let output = next.output();
        assert!(
            !output.iter().any(|line| line.contains("passt is gone")),
            "it kept its connection: {output:?}"
        );
        kill_worker(&next);

        wait_for_transfer(&mut guest, "VOLT restart ok");
        first.kill();
        let _ = std::fs::remove_file(&socket);
        let _second = passt(&socket);
        next.wait_for("passt: opened again", PATIENCE);

        let reports = finish(guest);
        let at = |what: &str| reports.iter().position(|line| line == what).expect("all runs");
        traffic.judge(&reports[..at("crash ok")]);
        traffic.judge(&reports[at("crashed ok")..at("restart ok")]);
        traffic.judge(&reports[at("restarted ok")..]);
        privileges(&next);
    });
}

/// Checks that the daemon has no capability, and cannot get one.
fn privileges(daemon: &Process) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id())).expect("/proc");
    let value = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    assert_eq!((value("CapEff:"), value("CapBnd:")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!(value("NoNewPrivs:"), "1");
    let uid = USER.to_string();
    assert!(value("Uid:").split_whitespace().all(|number| number == uid), "{status}");
}

/// QEMU without a guest is the peer: its netdev, and a network that it emulates.
fn qemu_peer(netdev: &str) -> Process {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "none", "-nodefaults", "-display", "none", "-netdev", netdev]);
    command.args(["-netdev", &format!("user,id=u,net=10.77.0.0/24,host={HOST}")]);
    command.args(["-netdev", "hubport,id=h0,hubid=0,netdev=p", "-netdev", "hubport,id=h1,hubid=0,netdev=u"]);
    Process::start("qemu-peer", &mut as_user(&command))
}

/// A worker is killed under traffic, and the guest's connection continues.
#[test]
fn a_guest_behind_another_qemu() {
    here("a_guest_behind_another_qemu", || {
        let Some(home) = Home::new("a_guest_behind_another_qemu", "qemu-system-x86_64") else { return };
        ip(&["link", "set", "lo", "up"]);
        let (peer, own, front) = (home.text("peer"), home.text("own"), home.text("s"));
        let datagrams = format!("{peer},local={own}");
        let traffic = Traffic::of(MIB);
        for (netdev, port) in [
            (format!("stream,id=p,server=on,addr.type=unix,addr.path={peer}"), ["--stream", &peer]),
            (
                format!("dgram,id=p,local.type=unix,local.path={peer},remote.type=unix,remote.path={own}"),
                ["--dgram", &datagrams],
            ),
        ] {
            let _peer = qemu_peer(&netdev);
            poll_until(PATIENCE, || home.path("peer").exists().then_some(())).expect("QEMU's socket");
            let arguments = [port[0], port[1], "--socket", &front, "--control", "none", "--supervise"];
            let mut netd = home.netd(&arguments);
            netd.wait_for("listening on", PATIENCE);
            let mut guest = home.guest(&traffic.both_ways());
            wait_for_transfer(&mut guest, "VOLT tcp_out sha256");
            kill_worker(&netd);
            traffic.judge(&finish(guest));
            privileges(&netd);
            drop(netd);
            let _ = std::fs::remove_file(&peer);
        }
    });
}
