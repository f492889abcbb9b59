//! A guest's network with routers: volt-netd's TAP on a gateway, a narrow link behind it, and far hosts.
//!
//! ```text
//! guest - volt-netd - [gateway] --1500-- [router] --1400-- [the test's namespace: the far hosts]
//! ```
//!
//! The far hosts announce a segment size that does not fit the narrow link, as hosts behind routers do. So a
//! guest's large segments fit only after the router has told it the MTU of the path.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use super::netd::TAP;
use super::process::Process;
use super::{PATIENCE, guest_file, program};
use crate::daemon::{child, poll_until};
use crate::netns::{Netns, TapWire};

/// A far host that serves the web.
pub const WEB: &str = "198.51.100.1";
/// The same host's IPv6 address.
pub const WEB6: &str = "2001:db8:5::1";
/// A far host with services of its own.
pub const OWN: &str = "203.0.113.1";
/// The same host's IPv6 address.
pub const OWN6: &str = "2001:db8:113::1";
/// The MTU of the narrow link.
pub const NARROW: usize = 1400;

const FORWARD: &str = "
echo 1 >/proc/sys/net/ipv4/ip_forward
for which in all default lo; do echo 0 >/proc/sys/net/ipv6/conf/$which/disable_ipv6; done
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
";
const GATEWAY: &str = "
ip tuntap add volt0 mode tap
ip link set volt0 address 52:54:00:00:00:01
ip addr add 10.77.0.1/24 dev volt0
ip addr add fe80::1/64 dev volt0 nodad
ip addr add fd77::1/64 dev volt0 nodad
ip link set volt0 up
ip addr add 192.0.2.1/30 dev uplink
ip addr add 2001:db8:a::1/64 dev uplink nodad
ip link set uplink up
ip route add default via 192.0.2.2
ip route add default via 2001:db8:a::2
";
const ROUTER: &str = "
ip addr add 192.0.2.2/30 dev downlink
ip addr add 2001:db8:a::2/64 dev downlink nodad
ip link set downlink up
ip addr add 192.0.2.5/30 dev narrow
ip addr add 2001:db8:b::1/64 dev narrow nodad
ip link set narrow mtu 1400 up
ip route add 10.77.0.0/24 via 192.0.2.1
ip route add fd77::/64 via 2001:db8:a::1
ip route add default via 192.0.2.6
ip route add default via 2001:db8:b::2
";
const FAR: &str = "
ip addr add 192.0.2.6/30 dev far
ip addr add 2001:db8:b::2/64 dev far nodad
ip link set far mtu 1400 up
for address in 198.51.100.1/32 203.0.113.1/32; do ip addr add $address dev lo; done
for address in 2001:db8:5::1/128 2001:db8:113::1/128; do ip addr add $address dev lo nodad; done
ip route add 10.77.0.0/24 via 192.0.2.5 advmss 1460
ip route add fd77::/64 via 2001:db8:b::1 advmss 1440
";

/// The network, with a daemon in the gateway's namespace.
pub struct Routed {
    /// The daemon; after a take-over, the successor.
    pub daemon: Process,
    /// Its listening socket.
    pub socket: PathBuf,
    control: PathBuf,
    gateway: Netns,
    _dhcp: Process,
    _router: Netns,
}

impl Routed {
    /// Makes the network around the test's namespace, and starts volt-netd with `options`, its sockets in
    /// `directory`, and a DHCP server that has one address, 10.77.0.2.
    ///
    /// # Panics
    /// If a part does not start.
    #[track_caller]
    pub fn start(directory: &Path, options: &[&str]) -> Routed {
        let netns = || Netns::new().expect("a network namespace");
        let (gateway, router) = (netns(), netns());
        let inside = router.id();
        shell(&mut Command::new("sh"), &format!("ip link add far type veth peer name narrow netns {inside}"));
        let link = format!("ip link add uplink type veth peer name downlink netns {inside}");
        shell(&mut gateway.command("sh"), &format!("{FORWARD}{link}{GATEWAY}"));
        shell(&mut router.command("sh"), &format!("{FORWARD}{ROUTER}"));
        shell(&mut Command::new("sh"), FAR);
        let (socket, control) = (directory.join("net.sock"), directory.join("net.ctl"));
        let mut command = gateway.command(program("volt-netd"));
        command.args(["--tap", TAP, "--supervise", "--socket"]).arg(&socket);
        let mut daemon = Process::start("volt-netd", command.arg("--control").arg(&control).args(options));
        daemon.wait_for("listening on", PATIENCE);
        let dhcp = dhcp(&gateway, directory);
        Routed { daemon, socket, control, gateway, _dhcp: dhcp, _router: router }
    }

    /// Returns the wire behind the TAP.
    ///
    /// # Panics
    /// If there is none.
    pub fn wire(&self) -> TapWire {
        self.gateway.wire(TAP).expect("a packet socket")
    }

    /// Replaces the daemon by `volt-netd --take-over`.
    ///
    /// # Panics
    /// If one of the two fails.
    #[track_caller]
    pub fn take_over(&mut self) {
        let mut command = self.gateway.command(program("volt-netd"));
        command.args(["--supervise", "--take-over"]).arg(&self.control);
        let mut successor = Process::start("volt-netd, successor", &mut command);
        successor.wait_for("took over from", PATIENCE);
        let mut old = std::mem::replace(&mut self.daemon, successor);
        assert!(old.wait_exit(PATIENCE).success(), "the previous daemon failed: {old}");
    }

    /// Kills the daemon's worker, and waits for the next one.
    ///
    /// # Panics
    /// If none continues.
    #[track_caller]
    pub fn kill_worker(&mut self) {
        let worker = poll_until(PATIENCE, || child(self.daemon.id())).expect("a worker");
        kill_process(worker, Signal::KILL).expect("the worker lives");
        self.daemon.wait_for("a new worker continues with its state", PATIENCE);
    }

    /// Runs `volt-netd ctl` and returns its output.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(program("volt-netd"));
        command.arg("ctl").args(arguments).arg("--control").arg(&self.control);
        let output = command.output().expect("volt-netd ctl");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Returns the number of frames from the guest that were refused for this reason.
    ///
    /// # Panics
    /// If the daemon does not answer.
    #[track_caller]
    pub fn refused(&self, reason: &str) -> u64 {
        let status: Value = serde_json::from_str(&self.ctl(&["status", "--json"])).expect("JSON");
        status["filter"]["refused"]["tx"][reason].as_u64().unwrap_or(0)
    }
}

/// Starts the DHCP server on the gateway.
fn dhcp(gateway: &Netns, directory: &Path) -> Process {
    let (leases, pid) = (directory.join("leases"), directory.join("dhcp.pid"));
    let text = format!(
        "start 10.77.0.2\nend 10.77.0.2\nmax_leases 1\ninterface {TAP}\nlease_file {}\npidfile {}\n\
         opt lease 3600\nopt subnet 255.255.255.0\nopt router 10.77.0.1\n",
        leases.display(),
        pid.display()
    );
    let config = directory.join("udhcpd.conf");
    std::fs::write(&config, text).and_then(|()| std::fs::write(&leases, "")).expect("its files");
    let mut command = gateway.command(guest_file("busybox/bin/busybox"));
    let mut server = Process::start("udhcpd", command.args(["udhcpd", "-f", "-I", "10.77.0.1"]).arg(config));
    server.wait_for("started", PATIENCE);
    server
}

/// Runs a script, which must succeed.
#[track_caller]
pub(super) fn shell(command: &mut Command, script: &str) {
    let output = command.args(["-euc", script]).stdin(Stdio::null()).output().expect("a shell");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}
