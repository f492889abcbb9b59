//! A QEMU guest behind volt-netd with the policy of the page `docs/how-to/filter.md`: what a well-behaved
//! guest does works, also where the path is narrow; what a hostile one tries arrives nowhere, also while the
//! daemon is replaced and its worker killed. One TCP connection lasts through all of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use protocol_tests::bypass::forged::{self, LAST, REFUSED};
use protocol_tests::bypass::hosts::GUEST;
use protocol_tests::lab::archive::Archive;
use protocol_tests::lab::guest::{Accel, Flavour, Image, QemuNet, Spec};
use protocol_tests::lab::mirror::{DATA, INSTALLED, Mirror, PACKAGE};
use protocol_tests::lab::process::Process;
use protocol_tests::lab::routed::{NARROW, OWN, OWN6, Routed, WEB, WEB6};
use protocol_tests::lab::told::{Commands, Told};
use protocol_tests::lab::traffic::{Traffic, value};
use protocol_tests::lab::{PATIENCE, guest_file, here, repository, rounds};
use protocol_tests::netns::TapWire;

const MAC: &str = "52:54:00:01:02:03";
const LEARN: &str = "--guard=learn,dhcp=10.77.0.1";
/// Shell words of a report whether a command was refused at once, or went on until its limit in seconds.
const REFUSED_AT_ONCE: &str = "failed 1";
const ENDED_BY_LIMIT: &str = "failed 143";

/// The guest's part: it gets its addresses, and then runs what it is told.
const LEASED: &str = "#!/bin/sh
[ \"$1\" = bound ] || exit 0
/usr/bin/ip addr add \"$ip/24\" dev \"$interface\"
/usr/bin/ip route add default via \"$router\"
";
const START: &str = "
ip link set eth0 up
step dhcp udhcpc -i eth0 -n -q -t 10 -s /leased
ip -6 addr add fd77::2/64 dev eth0
while ip -6 addr show dev eth0 | grep -q tentative; do sleep 0.05; done
ip -6 route add default via fe80::1 dev eth0
# path NAME HOST: reports the MTU that the guest knows for the path.
path() { report \"$1 $(ip route get $2 | sed -n 's/.* mtu \\([0-9]*\\).*/\\1/p')\"; }
# digest NAME COMMAND...: reports the digest of its output.
digest() {
    local name=$1
    shift
    \"$@\" >/tmp/file
    report \"$name $(sha256sum </tmp/file | cut -c 1-64)\"
}
# tls HOST FILE: prints a file of a server whose certificate must be right.
tls() {
    printf 'GET /%s HTTP/1.0\\r\\n\\r\\n' $2 | openssl s_client -quiet -connect $1:443 \\
        -CAfile /certificate -verify_return_error -verify_ip $1
}
";

/// Returns the policy that the page shows.
fn policy() -> String {
    let page = std::fs::read_to_string(repository().join("docs/how-to/filter.md")).expect("the page");
    let block = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("a policy on the page").to_owned()
}

/// Boots the guest, whose initramfs has apt-get, and waits for its connection.
fn boot(routed: &Routed, mirror: &Mirror, directory: &Path) -> Told {
    let (archive, initramfs) = (Archive::new(), directory.join("initramfs"));
    mirror.add_clients(&archive, WEB);
    archive.program(Path::new(env!("CARGO_BIN_EXE_guest-frames")));
    archive.file("/frames", forged::round());
    archive.file("/leased", LEASED);
    archive.file("/start", format!("{START}{}", Commands::obey(OWN)));
    archive.pack(&guest_file("initramfs-cloud"), &initramfs);
    let commands = Commands::listen();
    let spec = Spec {
        flavour: Flavour::Cloud,
        image: Image::Vmlinux,
        network: String::new(),
        initramfs: Some(initramfs),
        ..Spec::new(". /start")
    };
    let properties = format!("vectors=0,mac={MAC}");
    let net = QemuNet::VhostUser { socket: routed.socket.clone(), pairs: 1, properties };
    commands.accept(Process::start("qemu", &mut spec.qemu(Accel::Tcg, &net)))
}

#[test]
fn a_guest_under_the_policy_of_the_page() {
    here("a_guest_under_the_policy_of_the_page", || {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("tap0.toml");
        std::fs::write(&file, policy()).expect("the policy");
        let options =
            ["--mac", MAC, LEARN, "--guest-ip", "fd77::2", "--policy", file.to_str().expect("text")];
        let mut routed = Routed::start(directory.path(), &options);
        let traffic = Traffic::of(4);
        let mirror = Mirror::start(directory.path());
        let start = Instant::now();
        let passed = |what: &str| eprintln!("{:5.1} s  {what}", start.elapsed().as_secs_f32());
        let mut guest = boot(&routed, &mirror, directory.path());
        passed("booted, with an address by DHCP");
        narrow_path(&mut guest, &traffic);
        passed("narrow path");
        web(&mut guest, &mirror);
        passed("HTTP, TLS and apt");
        refused_at_once(&mut guest);
        passed("refused connections");
        hostile(&mut guest, &routed);
        passed("hostile frames");
        another_mac(&mut guest, &routed);
        passed("another MAC address");
        replaced(&mut guest, &mut routed);
        passed("replaced and killed meanwhile");
        dropped(&mut guest, &routed, &file);
        passed("policy replaced");
        traffic.judge_tcp(&guest.run(&traffic.both_ways_with(OWN)));
        guest.finish();
    });
}

/// Large segments and echo requests fit after the router's ICMP errors, which come inward for live flows.
fn narrow_path(guest: &mut Told, traffic: &Traffic) {
    for host in [OWN, OWN6] {
        let upload = traffic.both_ways_with(host);
        let reports = guest.run(&format!("path before {host}; {upload}; path after {host}"));
        traffic.judge_tcp(&reports);
        assert_eq!(value(&reports, "before"), "", "{reports:?}");
        assert_eq!(value(&reports, "after"), NARROW.to_string(), "{reports:?}");
    }
    guest.step("gateway", "ping -c 2 -i 0.2 -W 5 10.77.0.1");
    guest.step("gateway6", "ping -c 2 -i 0.2 -W 5 -I eth0 fe80::1");
    // The guest knows the path by now, and sends no request that is too large.
    for (name, host, headers) in [("whole", OWN, 28), ("whole6", OWN6, 48)] {
        guest.step(name, &format!("ping -c 3 -i 0.2 -W 5 -M do -s {} {host}", NARROW - headers));
        let reports =
            guest.run(&format!("step large ping -c 2 -i 0.5 -W 2 -M do -s 1430 {host}; path {name} {host}"));
        assert_eq!(value(&reports, name), NARROW.to_string(), "{reports:?}");
        assert_eq!(value(&reports, "large"), "failed 1", "{reports:?}");
    }
}

/// Files by HTTP and TLS, and a package by apt-get, which alone decides how it asks.
fn web(guest: &mut Told, mirror: &Mirror) {
    for (name, command) in [
        ("http", format!("wget -q -O - http://{WEB}/{DATA}")),
        ("http6", format!("wget -q -O - http://[{WEB6}]/{DATA}")),
        ("tls", format!("tls {WEB} {DATA}")),
    ] {
        assert_eq!(value(&guest.run(&format!("digest {name} {command}")), name), mirror.sha256, "{command}");
    }
    guest.step("update", "apt-get -q update");
    guest.step("install", &format!("apt-get -q -y install {PACKAGE}"));
    let reports = guest.run(&format!("report installed $(sha256sum <{INSTALLED} | cut -c 1-64)"));
    assert_eq!(value(&reports, "installed"), mirror.sha256);
}

/// A connection that no rule allows ends by a reset, long before its limit.
fn refused_at_once(guest: &mut Told) {
    for (name, host, port) in [
        ("port", WEB, 22),
        ("host", "192.0.2.6", 80),
        ("metadata", "169.254.169.254", 80),
        ("port6", WEB6, 22),
    ] {
        let reports = guest.run(&format!("step {name} timeout 100 nc {host} {port}"));
        assert_eq!(value(&reports, name), REFUSED_AT_ONCE, "{host} port {port}: {reports:?}");
    }
}

/// With `refuse = "drop"`, nobody answers: the connection attempt goes on until its limit.
fn dropped(guest: &mut Told, routed: &Routed, file: &Path) {
    let text = policy().replace("\"reject\"", "\"drop\"");
    assert_ne!(text, policy(), "the page's policy rejects");
    std::fs::write(file, &text).expect("the policy");
    routed.ctl(&["policy", "set", file.to_str().expect("text")]);
    assert_eq!(routed.ctl(&["policy", "show"]), text);
    let reports = guest.run(&format!("step silent timeout 2 nc {WEB} 22"));
    assert_eq!(value(&reports, "silent"), ENDED_BY_LIMIT, "{reports:?}");
}

/// Asserts that a frame on the wire is none that must not arrive. Returns whether it ends a round.
fn judge(frame: &[u8], forged: &[forged::Forged]) -> bool {
    let holds = |text: &[u8]| frame.windows(text.len()).any(|part| part == text);
    assert!(!holds(REFUSED), "this frame passed: {frame:02x?}");
    assert_eq!(frame.get(6..12), Some(&GUEST[..]), "a frame from another address passed: {frame:02x?}");
    let passed = forged.iter().find(|(_, forged)| *forged == frame);
    assert_eq!(passed, None, "it should have been refused");
    holds(LAST)
}

/// Reads the wire until `rounds` rounds have ended. Returns the number of frames.
fn watch(wire: &TapWire, rounds: usize) -> usize {
    let (forged, mut ended, mut frames) = (forged::frames(), 0, 0);
    while ended < rounds {
        let frame = wire.recv(PATIENCE).expect("the wire").expect("a round that ends").1;
        ended += usize::from(judge(&frame, &forged));
        frames += 1;
    }
    frames
}

/// Each frame of a round is refused for its reason; the markers around them pass.
fn hostile(guest: &mut Told, routed: &Routed) {
    let wire = routed.wire();
    let reasons = || forged::frames().into_iter().map(|(reason, _)| (reason, routed.refused(reason)));
    let before: BTreeMap<_, _> = reasons().collect();
    guest.run("guest-frames eth0 /frames 3");
    watch(&wire, 3);
    for (reason, count) in reasons() {
        let expected = 3 * forged::frames().iter().filter(|(other, _)| *other == reason).count() as u64;
        let more = count - before[reason];
        let log = || routed.ctl(&["policy", "log"]);
        assert!(more >= expected, "{more} of {expected} frames were refused for {reason}: {}", log());
    }
}

/// The guest's own driver takes another MAC address: it reaches nothing, until it has its own again.
fn another_mac(guest: &mut Told, routed: &Routed) {
    let (wire, before) = (routed.wire(), routed.refused("source_mac"));
    let ping = format!("ping -c 2 -i 0.2 -W 1 {OWN}");
    let reports = guest.run(&format!(
        "ip link set eth0 address 52:54:00:00:00:20; step other {ping}; ip link set eth0 address {MAC}; \
         guest-frames eth0 /frames 1"
    ));
    assert_eq!(value(&reports, "other"), "failed 1", "{reports:?}");
    watch(&wire, 1);
    let round = forged::frames().iter().filter(|(reason, _)| *reason == "source_mac").count() as u64;
    assert!(routed.refused("source_mac") > before + round, "its own frames were refused");
    guest.step("again", &ping);
}

/// Rounds go on while the daemon is replaced and its worker killed.
fn replaced(guest: &mut Told, routed: &mut Routed) {
    guest.run("guest-frames eth0 /frames 100000000 & frames=$!");
    let (wire, replacing) = (routed.wire(), Arc::new(AtomicBool::new(true)));
    let still = Arc::clone(&replacing);
    let watching = thread::spawn(move || {
        let mut frames = 0;
        while still.load(Ordering::Acquire) {
            frames += watch(&wire, 1);
        }
        frames + watch(&wire, 5)
    });
    for _ in 0..rounds(3) {
        routed.take_over();
        guest.run("true");
        routed.kill_worker();
        guest.run("true");
    }
    replacing.store(false, Ordering::Release);
    let passed = watching.join().expect("nothing passed that should not");
    guest.run("kill $frames");
    eprintln!("{passed} frames passed, {} of {MAC} as another were refused", routed.refused("source_mac"));
}
