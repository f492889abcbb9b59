//! volt-vmm's network devices of every kind, with a stock Debian guest: TAP and macvtap in the process, the
//! kernel's vhost-net on both, and volt-netd behind a socket. One guest has many interfaces, each in a
//! separate network, because a boot costs more than their tests.

use std::net::UdpSocket;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use protocol_tests::daemon::poll_until;
use protocol_tests::lab::guest::{Flavour, Image, Spec, Transport};
use protocol_tests::lab::netd::{Netd, counter, ip};
use protocol_tests::lab::process::Process;
use protocol_tests::lab::traffic::{HOST, Traffic, iperf3, value};
use protocol_tests::lab::{PATIENCE, in_lab, program, rounds, variants};

fn quick(run: &str) -> Spec {
    Spec { flavour: Flavour::Cloud, image: Image::Vmlinux, ..Spec::new(run) }
}

fn finish(mut guest: Process) -> Vec<String> {
    guest.wait_for("VOLT exit", PATIENCE);
    let status = guest.wait_exit(PATIENCE);
    assert_eq!(status.code(), Some(0), "a power-off ends volt-vmm with 0");
    let reports = guest.reports();
    // Prints the output, in case an assertion about a report fails.
    eprintln!("{guest}");
    reports
}

/// The transports of volt-vmm; one boot of the lab covers both.
const TRANSPORTS: [Transport; 2] = [Transport::Mmio, Transport::Pci];

fn run(spec: &Spec, nets: &[&str]) -> Vec<String> {
    finish(Process::start("volt-vmm", &mut spec.vmm_net(nets)))
}

/// Makes a persistent TAP that several queues may open, with the host address in `subnet`.
fn tap(name: &str, subnet: &str) {
    ip(&["tuntap", "add", "dev", name, "mode", "tap", "multi_queue"]);
    up(name, subnet);
}

/// Makes a macvtap interface on a veth pair, whose other end has the host address in `subnet`. Returns its
/// index.
fn macvtap(name: &str, subnet: &str) -> u32 {
    static MADE: AtomicU32 = AtomicU32::new(0);
    // An index unique in all namespaces: they share the files /dev/tapN, and the previous test's interface
    // may still exist.
    let index = 64 * std::process::id() + MADE.fetch_add(1, Ordering::Relaxed);
    let (near, far) = (format!("{name}-a"), format!("{name}-b"));
    ip(&["link", "add", &near, "type", "veth", "peer", "name", &far]);
    ip(&["link", "set", &far, "up"]);
    macvtap_over(&far, name, index);
    up(&near, subnet);
    index
}

fn macvtap_over(far: &str, name: &str, index: u32) {
    let index = index.to_string();
    ip(&["link", "add", "link", far, "name", name, "index", &index, "type", "macvtap", "mode", "bridge"]);
    ip(&["link", "set", name, "up"]);
}

fn up(interface: &str, subnet: &str) {
    ip(&["addr", "add", &format!("{subnet}.1/24"), "dev", interface]);
    ip(&["link", "set", interface, "up"]);
}

/// Returns whether the kernel has vhost-net, like the lab's kernel.
fn vhost_net(test: &str) -> bool {
    let there = Path::new("/dev/vhost-net").exists();
    if !there {
        eprintln!("SKIP {test}: /dev/vhost-net is missing: modprobe vhost_net");
    }
    there
}

/// Ping, and checksummed TCP and UDP, both ways over each kind of device in one guest; in `scripts/soak` with
/// each transport.
fn every_kind(name: &str, pairs: u16, transport: Transport) {
    in_lab(name, || {
        if !vhost_net(name) {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &["--queues", &pairs.to_string()]);
        tap("k1", "10.77.1");
        tap("k2", "10.77.2");
        macvtap("mv3", "10.77.3");
        macvtap("mv4", "10.77.4");
        let socket = format!("socket={}", netd.socket.display());
        let kinds = [
            ("socket", socket.as_str()),
            ("tap", "tap=k1"),
            ("tap-kernel", "tap=k2,vhost-net=require"),
            ("macvtap", "macvtap=mv3"),
            ("macvtap-kernel", "macvtap=mv4,vhost-net=require"),
        ];
        let traffic = Traffic::of(2);
        let mut script = Vec::new();
        for (n, (kind, _)) in kinds.iter().enumerate() {
            let interface = format!("eth{n}");
            script.push(traffic.try_network(kind, &interface, &format!("10.77.{n}")));
            script
                .push(format!("report pairs $(ethtool -l {interface} | grep -c 'Combined:[^0-9]*{pairs}$')"));
        }
        // The guest sends on all of them until it powers off.
        script.extend((0..kinds.len()).map(|n| format!("(ping -i 0.005 10.77.{n}.1 >/dev/null &)")));
        let nets: Vec<_> = kinds.iter().map(|(_, net)| format!("{net},queues={pairs}")).collect();
        let nets: Vec<_> = nets.iter().map(String::as_str).collect();
        for transport in variants(&TRANSPORTS, transport) {
            let reports = run(&Spec { transport, ..quick(&script.join("; ")) }, &nets);
            for (kind, _) in kinds {
                traffic.judge_network(&reports, kind);
            }
            // The maximum number of pairs, and the number in use.
            let pairs_used: Vec<_> = reports.iter().filter_map(|line| line.strip_prefix("pairs ")).collect();
            assert_eq!(pairs_used, ["2"; 5], "{transport:?}: {reports:?}");
        }
    });
}

#[test]
fn every_kind_with_one_pair() {
    every_kind("every_kind_with_one_pair", 1, Transport::Mmio);
}

/// Two devices of one guest that are each other's peer, by a stream and by datagrams: ping and TCP between
/// two namespaces of the guest, and the own sockets are removed at the end.
#[test]
fn devices_that_are_each_others_peers() {
    in_lab("devices_that_are_each_others_peers", || {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let nets = [
            format!("stream={},listen", path("s")),
            format!("stream={}", path("s")),
            format!("dgram={},local={}", path("a"), path("b")),
            format!("dgram={},local={}", path("b"), path("a")),
        ];
        let mut script = vec![
            "mkfifo /tmp/open; exec 3<>/tmp/open; ip netns add far; \
                               dd if=/dev/urandom of=/tmp/data bs=1M count=2"
                .to_owned(),
        ];
        for (near, far, subnet) in [("eth0", "eth1", "10.78.0"), ("eth2", "eth3", "10.78.1")] {
            script.push(format!(
                "ip link set {far} netns far; ip netns exec far ip addr add {subnet}.1/24 dev {far}; \
                 ip netns exec far ip link set {far} up; ip addr add {subnet}.2/24 dev {near}; \
                 ip link set {near} up; step ping ping -q -w 60 -c 3 {subnet}.1; \
                 ip netns exec far nc -l -p 7001 <&3 >/tmp/got & listener=$!; sleep 1; \
                 nc {subnet}.1 7001 </tmp/data; wait $listener; step tcp cmp /tmp/data /tmp/got"
            ));
        }
        let nets: Vec<_> = nets.iter().map(String::as_str).collect();
        let reports = run(&quick(&script.join("; ")), &nets);
        for (what, count) in [("ping ok", 2), ("tcp ok", 2)] {
            assert_eq!(reports.iter().filter(|line| *line == what).count(), count, "{reports:?}");
        }
        assert!(["s", "a", "b"].iter().all(|name| !directory.path().join(name).exists()));
    });
}

#[test]
fn every_kind_with_two_pairs() {
    every_kind("every_kind_with_two_pairs", 2, Transport::Pci);
}

/// Frames waiting in a TAP while a guest's driver is unbound: well above the number that a TAP's host sends
/// by itself.
const STALE: u64 = 60;

/// Runs in a guest: unbinds the driver of `eth1` until the host answers at [`SENT`], and reports the number
/// of frames that the next driver received.
const LATE_DRIVER: &str = "device=$(basename $(readlink -f /sys/class/net/eth1/device)); \
    echo $device >/sys/bus/virtio/drivers/virtio_net/unbind; report unbound; tries=0; \
    until ping -c 1 -W 1 10.77.0.99 || [ $tries = 100 ]; do tries=$((tries + 1)); sleep 0.1; done; \
    echo $device >/sys/bus/virtio/drivers/virtio_net/bind; \
    ip link set eth1 up; ip addr add 10.77.1.2/24 dev eth1; step late ping -c 3 -i 0.2 10.77.1.1; \
    report received $(cat /sys/class/net/eth1/statistics/rx_packets)";

/// The address by which the host signals that it has sent the frames.
const SENT: &str = "10.77.0.99/24";

/// Sends [`STALE`] frames to `tap`, whose guest has no driver, and checks that they wait there.
fn leave_frames(tap: &str, subnet: &str) {
    let dropped = counter(tap, "tx", "dropped");
    let socket = UdpSocket::bind(format!("{subnet}.1:0")).expect("a socket");
    socket.set_broadcast(true).expect("broadcasts");
    for _ in 0..STALE {
        socket.send_to(&[0xa5; 1000], format!("{subnet}.255:9")).expect("a datagram");
    }
    assert_eq!(counter(tap, "tx", "dropped"), dropped, "{tap} has not kept the frames");
}

/// The driver is repeatedly unbound and bound, every offload is switched off and on, and pairs change; the
/// device works after each step. The kernel's vhost-net does not deliver frames that arrived without a driver
/// to the next driver, which may have other offloads. In `scripts/soak` with each transport.
#[test]
fn the_driver_comes_and_goes_and_changes_its_mind() {
    let name = "the_driver_comes_and_goes_and_changes_its_mind";
    in_lab(name, || {
        if !vhost_net(name) {
            return;
        }
        tap("k0", "10.77.0");
        tap("k1", "10.77.1");
        let traffic = Traffic::of(2);
        let mut script = Vec::new();
        for n in 0..2 {
            let ping = format!("ping -c 3 -i 0.2 10.77.{n}.1");
            script.push(format!("step rebind{n} rebind eth{n} {}", rounds(10)));
            script.push(format!("ip link set eth{n} up; ip addr add 10.77.{n}.2/24 dev eth{n}"));
            script.push(format!("step rebound{n} {ping}; offloads eth{n}"));
            script.push(format!("step one{n} ethtool -L eth{n} combined 1; step alone{n} {ping}"));
            script.push(format!("step two{n} ethtool -L eth{n} combined 2"));
            script.push(format!("step speed{n} ethtool -s eth{n} speed 1000 duplex full"));
            script.push(traffic.try_network(&format!("after{n}"), &format!("eth{n}"), &format!("10.77.{n}")));
            script.push(format!("step counters{n} ethtool -S eth{n}"));
        }
        script.push(LATE_DRIVER.to_owned());
        for transport in variants(&TRANSPORTS, Transport::Pci) {
            let spec = Spec { transport, ..quick(&script.join("; ")) };
            let nets = ["tap=k0,queues=2", "tap=k1,queues=2,vhost-net=require"];
            let mut guest = Process::start("volt-vmm", &mut spec.vmm_net(&nets));
            guest.wait_for("VOLT unbound", PATIENCE);
            leave_frames("k1", "10.77.1");
            ip(&["addr", "add", SENT, "dev", "k0"]);
            let reports = finish(guest);
            ip(&["addr", "del", SENT, "dev", "k0"]);
            assert_eq!(value(&reports, "late"), "ok", "{transport:?}: {reports:?}");
            let received: u64 = value(&reports, "received").parse().expect("a number");
            assert!((3..STALE / 2).contains(&received), "{transport:?}: {received} frames");
            for n in 0..2 {
                traffic.judge_network(&reports, &format!("after{n}"));
                for step in ["rebind", "rebound", "one", "alone", "two", "speed", "counters"] {
                    let step = format!("{step}{n}");
                    assert_eq!(value(&reports, &step), "ok", "{transport:?} {step}: {reports:?}");
                }
            }
            assert!(!reports.iter().any(|line| line.starts_with("offload ")), "{reports:?}");
            assert_eq!(reports.iter().filter(|line| line.starts_with("offloads done")).count(), 2);
        }
    });
}

/// Files belong to no network namespace, and indices repeat. The file of an interface with the same index and
/// name in another namespace is refused.
#[test]
fn another_namespaces_macvtap_is_refused() {
    in_lab("another_namespaces_macvtap_is_refused", || {
        let directory = tempfile::tempdir().expect("a directory");
        let index = macvtap("mv1", "10.77.1");
        let namespace = Process::start("unshare", Command::new("unshare").args(["-n", "sleep", "600"]));
        poll_until(PATIENCE, || {
            let of = |process: u32| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
            (of(namespace.id())? != of(rustix::thread::gettid().as_raw_nonzero().get() as u32)?).then_some(())
        })
        .expect("another namespace");
        ip(&["link", "set", "mv1", "netns", &namespace.id().to_string()]);
        macvtap_over("mv1-b", "mv1", index);
        let mut command = Command::new(program("volt-netd"));
        command.args(["--macvtap", "mv1", "--socket"]).arg(directory.path().join("s"));
        let mut daemon = Process::start("volt-netd", &mut command);
        daemon.wait_for(&format!("/dev/tap{index} belongs to another interface than mv1"), PATIENCE);
        assert_eq!(daemon.wait_exit(PATIENCE).code(), Some(1));
    });
}

/// Jumbo frames, IPv6 and a VLAN, on a TAP in the process and on a macvtap.
#[test]
fn large_frames_ipv6_and_a_vlan() {
    in_lab("large_frames_ipv6_and_a_vlan", || {
        tap("k0", "10.77.0");
        macvtap("mv1", "10.77.1");
        for (n, host) in ["k0", "mv1-a"].into_iter().enumerate() {
            for interface in if n == 0 { vec![host] } else { vec![host, "mv1-b", "mv1"] } {
                ip(&["link", "set", interface, "mtu", "9000"]);
            }
            ip(&["-6", "addr", "add", &format!("fd00:{n}::1/64"), "dev", host, "nodad"]);
            let vlan = format!("{host}.7");
            ip(&["link", "add", "link", host, "name", &vlan, "type", "vlan", "id", "7"]);
            up(&vlan, &format!("10.78.{n}"));
        }
        let _server = iperf3();
        let mut script = vec!["modprobe 8021q".to_owned()];
        for n in 0..2 {
            script.push(format!(
                "ip link set eth{n} up; report mtu{n} $(cat /sys/class/net/eth{n}/mtu); \
                 ip addr add 10.77.{n}.2/24 dev eth{n}; \
                 step large{n} ping -c 3 -i 0.2 -M do -s 8972 10.77.{n}.1; \
                 ip -6 addr add fd00:{n}::2/64 dev eth{n} nodad; \
                 step v6ping{n} ping -c 3 -i 0.2 -s 8000 -p a5 fd00:{n}::1; \
                 step v6out{n} speed v6 -6 -n 4M -c fd00:{n}::1; \
                 step v6in{n} speed v6 -6 -R -n 4M -c fd00:{n}::1; \
                 ip link add link eth{n} name vlan{n} type vlan id 7; ip link set vlan{n} up; \
                 ip addr add 10.78.{n}.2/24 dev vlan{n}; \
                 step vlan{n} ping -c 3 -i 0.2 -s 4000 10.78.{n}.1; \
                 step vlanout{n} speed vlan -n 4M -c 10.78.{n}.1"
            ));
        }
        let reports = run(&quick(&script.join("; ")), &["tap=k0", "macvtap=mv1"]);
        for n in 0..2 {
            assert_eq!(value(&reports, &format!("mtu{n}")), "9000");
            for step in ["large", "v6ping", "v6out", "v6in", "vlan", "vlanout"] {
                assert_eq!(value(&reports, &format!("{step}{n}")), "ok", "{reports:?}");
            }
        }
    });
}

/// The limits of volt-vmm and volt-netd hold, separately for each direction. UDP traffic at twice the rate
/// makes the limit decide alone. The rates are low, because a lab on a busy machine moves few frames a
/// second. The interface's counters measure the rate, because iperf3's own connection waits behind the limit
/// too. The bursts, 0.8 s, allow a busy machine to oversleep.
#[test]
fn rate_limits_hold() {
    in_lab("rate_limits_hold", || {
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &["--tx-rate", "500kbit:50K", "--rx-rate", "1Mbit:100K"]);
        tap("k1", "10.77.1");
        for interface in ["volt0", "k1"] {
            // A long queue would delay iperf3's own connection.
            ip(&["link", "set", interface, "txqueuelen", "25"]);
        }
        let _server = iperf3();
        let offer = |n: u8, out: u16, into: u16| {
            let udp = format!("-u -l 1448 -c 10.77.{n}.1 -t 12");
            format!(
                "ip link set eth{n} up; ip addr add 10.77.{n}.2/24 dev eth{n}; \
                 speed out{n} {udp} -b {out}K; speed in{n} {udp} -R -b {into}K"
            )
        };
        let spec = quick(&format!("{}; {}", offer(0, 1000, 2000), offer(1, 2000, 1000)));
        let nets =
            [&format!("socket={}", netd.socket.display()), "tap=k1,tx-rate=1Mbit:100K,rx-rate=500kbit:50K"];
        let mut guest = Process::start("volt-vmm", &mut spec.vmm_net(&nets));
        for (name, interface, direction, limit) in [
            ("out0", "volt0", "rx", 5e5),
            ("in0", "volt0", "tx", 1e6),
            ("out1", "k1", "rx", 1e6),
            ("in1", "k1", "tx", 5e5),
        ] {
            guest.wait_for(&format!("VOLT {name} begin"), PATIENCE);
            let (all, best) = rates_after_burst(interface, direction, 0.1 * limit);
            let (all, best) = (all / limit, best / limit);
            eprintln!("rate_limits_hold: {name}: {all:.3} of the limit, {best:.3} in the best 2 s");
            // A machine that stands still for seconds moves less than the limit, and never more.
            assert!(all < 1.13 && best > 0.95, "{name}: {all:.3} of the limit, {best:.3} in the best 2 s");
        }
        finish(guest);
    });
}

/// Returns the bits a second that pass `interface` in the 8 s after the burst, and in the best 2 s of them.
/// Twice the burst passes before that, because twice the rate is offered.
fn rates_after_burst(interface: &str, direction: &str, burst: f64) -> (f64, f64) {
    let bytes = || counter(interface, direction, "bytes") as f64;
    let (begin, deadline) = (bytes(), Instant::now() + PATIENCE / 5);
    while bytes() < begin + 2.2 * burst {
        assert!(Instant::now() < deadline, "{interface} {direction}: {} bytes passed", bytes() - begin);
        sleep(Duration::from_millis(10));
    }
    let rate = |(begin, since): (f64, Instant)| (bytes() - begin) * 8.0 / since.elapsed().as_secs_f64();
    let whole = (bytes(), Instant::now());
    let parts = (0..4).map(|_| {
        let part = (bytes(), Instant::now());
        sleep(Duration::from_secs(2));
        rate(part)
    });
    let best = parts.fold(0.0, f64::max);
    (rate(whole), best)
}

/// Two machines on one bridge, one with a TAP in its process and one served by volt-netd, reach each other.
#[test]
fn two_guests_on_a_bridge() {
    in_lab("two_guests_on_a_bridge", || {
        let directory = tempfile::tempdir().expect("a directory");
        let netd = Netd::start(directory.path(), &[]);
        ip(&["link", "add", "br0", "type", "bridge"]);
        ip(&["tuntap", "add", "dev", "k0", "mode", "tap"]);
        ip(&["addr", "flush", "dev", "volt0"]);
        for port in ["k0", "volt0"] {
            ip(&["link", "set", port, "master", "br0"]);
            ip(&["link", "set", port, "up"]);
        }
        ip(&["addr", "add", &format!("{HOST}/24"), "dev", "br0"]);
        ip(&["link", "set", "br0", "up"]);
        // It is ended below, whenever the other one finishes.
        let server = quick(
            "ip addr flush dev eth0; ip addr add 10.77.0.3/24 dev eth0; iperf3 -s -D; report serving; \
             sleep 1800",
        );
        let socket = format!("socket={}", netd.socket.display());
        let mut server = Process::start("volt-vmm", &mut server.vmm_net(&[&socket]));
        server.wait_for("VOLT serving", PATIENCE);
        let script = "step ping ping -c 3 -i 0.2 -W 2 10.77.0.3; step out speed tcp_out -c 10.77.0.3 -n 8M; \
                      step in speed tcp_in -R -c 10.77.0.3 -n 8M";
        let reports = run(&quick(script), &["tap=k0"]);
        for step in ["ping", "out", "in"] {
            assert_eq!(value(&reports, step), "ok", "{reports:?}");
        }
        server.terminate();
    });
}
