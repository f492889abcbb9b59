//! volt-filter against nftables: the kernel judges the same frames by the same policies. Their agreement
//! excludes one author's misreading of prefixes, ranges, ports and precedence.
//!
//! The frames are those that begin flows, each of another flow. MAC addresses are left out: a frame that the
//! filter refuses only for its MAC address counts as allowed by the rules.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use protocol_tests::netns::Netns;
use protocol_tests::nft::{Policy, Prefix, Protocol, Rule, ranges};
use protocol_tests::rig::LIMIT;
use protocol_tests::wire::readable;
use volt_filter::Way;
use volt_filter::reason::Reason;
use volt_filter::setup::Setup;
use volt_filter::summary::Summary;
use volt_filter::verdict::{Filter, Verdict};

/// Policies at random, beside the examples.
const RANDOM_POLICIES: usize = 28;
/// Frames for each policy: 200,000 in all.
const FRAMES: u32 = 6250;
/// Frames between two looks at what came out. The interface holds some hundred.
const BATCH: u32 = 200;

const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const GUESTS: [&str; 2] = ["192.0.2.10", "2001:db8:80::10"];
/// EtherType of the frame that ends a batch: one for local experiments.
const MARKER: u16 = 0x88b5;
/// Protocols to try. Those that nft takes for IPv6 extension headers are not among them.
const PROTOCOLS: [u8; 16] = [6, 6, 6, 6, 17, 17, 17, 1, 58, 1, 58, 47, 41, 50, 132, 253];

/// xorshift64*: the same frames in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 32) as usize % end
    }

    fn of<T: Clone>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())].clone()
    }

    /// Returns an address at the edge of a prefix, or anywhere in it.
    fn address(&mut self, prefix: Prefix) -> IpAddr {
        let wide = u128::from(self.next()) << 64 | u128::from(self.next());
        let edges = prefix.edges();
        match self.below(6) {
            at @ 0..4 => edges[at],
            _ => prefix.inside(wide),
        }
    }

    /// Returns a prefix around an address of interest.
    fn prefix(&mut self, pool: &[Prefix]) -> Prefix {
        let near = self.of(pool);
        let address = self.address(near);
        let lengths: &[u8] = if address.is_ipv4() {
            &[0, 4, 8, 15, 16, 24, 28, 31, 32]
        } else {
            &[0, 7, 16, 32, 48, 64, 96, 128]
        };
        match self.below(3) {
            0 => near,
            _ => Prefix::around(address, self.of(lengths)),
        }
    }

    fn policy(&mut self) -> Policy {
        let known =
            ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "2001:db8:80::/64"];
        let pool: Vec<_> = ranges().into_iter().chain(known.map(Prefix::parse)).collect();
        let on_link = (0..self.below(4)).map(|_| self.prefix(&pool)).collect();
        let rules = (0..4 + self.below(10)).map(|_| self.rule(&pool)).collect();
        Policy { on_link, rules }
    }

    fn rule(&mut self, pool: &[Prefix]) -> Rule {
        let any = ["0.0.0.0/0", "::/0"].map(Prefix::parse).to_vec();
        let prefixes = match self.below(4) {
            0 => any,
            _ => (0..=self.below(4)).map(|_| self.prefix(pool)).collect(),
        };
        let protocol = match self.below(8) {
            0 | 1 => Protocol::Any,
            2 => Protocol::Icmp,
            3 => Protocol::Number(self.of(&PROTOCOLS)),
            4 | 5 => Protocol::Number(17),
            _ => Protocol::Number(6),
        };
        let has_ports = matches!(protocol, Protocol::Number(6 | 17)) && self.below(3) > 0;
        let count = if has_ports { 1 + self.below(3) } else { 0 };
        let ports = (0..count).map(|_| {
            // Below the ports that flows are opened from.
            let first = self.below(30_000) as u16;
            (first, first + self.of(&[0, 0, 1, 100]))
        });
        let ports = ports.collect();
        let deny = self.below(5) == 0 && prefixes.iter().all(|prefix: &Prefix| prefix.len > 0);
        Rule { deny, from: self.below(3) == 0, prefixes, protocol, ports }
    }

    /// Returns a frame that begins a flow, its way, and its number at its end.
    fn frame(&mut self, policy: &Policy, pool: &[Prefix], number: u32) -> (Way, Vec<u8>) {
        let way = self.of(&[Way::Out, Way::Out, Way::In]);
        let rules: Vec<_> = policy.rules.iter().filter(|rule| rule.from == (way == Way::In)).collect();
        let rule = (!rules.is_empty()).then(|| self.of(&rules));
        let prefix = match rule {
            Some(rule) if self.below(4) > 0 => self.of(&rule.prefixes),
            _ => self.of(pool),
        };
        let peer = self.address(prefix);
        let protocol = match rule.map(|rule| rule.protocol) {
            Some(Protocol::Number(number)) if self.below(4) > 0 => number,
            _ => self.of(&PROTOCOLS),
        };
        let guest = GUESTS[usize::from(peer.is_ipv6())].parse().expect("an address");
        let ends = if way == Way::Out { (guest, peer) } else { (peer, guest) };
        let macs = if way == Way::Out { [OTHER, GUEST] } else { [GUEST, OTHER] };
        let port = self.port(rule.map_or(&[][..], |rule| &rule.ports));
        let load = load(protocol, peer.is_ipv4(), (40_000 + (number % 20_000) as u16, port), number);
        (way, [&macs.concat()[..], &packet(ends, protocol, &load)].concat())
    }

    /// Returns a port at the edge of a range, or any. Clients of DHCP are the guard's matter.
    fn port(&mut self, ranges: &[(u16, u16)]) -> u16 {
        let any = self.next() as u16 % 40_000;
        let port = match self.below(4) {
            0..3 if !ranges.is_empty() => {
                let (first, last) = self.of(ranges);
                self.of(&[first, last, first.wrapping_sub(1), last.wrapping_add(1)])
            }
            0 => self.of(&[0, 22, 53, 80, 443, 65_535]),
            _ => any,
        };
        if [67, 68, 546, 547].contains(&port) { 69 } else { port }
    }
}

/// The load of a packet that begins a flow.
fn load(protocol: u8, v4: bool, ports: (u16, u16), number: u32) -> Vec<u8> {
    let mut load = match (protocol, v4) {
        (6, _) => {
            let ports = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
            [&ports[..], &[0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0]].concat()
        }
        (17, _) => [ports.0, ports.1, 12, 0].map(u16::to_be_bytes).concat(),
        (1, true) => [[8, 0, 0, 0], number.to_be_bytes()].concat(),
        (58, false) => [[128, 0, 0, 0], number.to_be_bytes()].concat(),
        _ => vec![0; 16],
    };
    if protocol == 6 {
        // A SYN has no data: the number is in its options, behind their end.
        load[12] = 0x70;
        load.extend([0; 4]);
    }
    load.extend(number.to_be_bytes());
    load
}

/// An IP packet behind its EtherType.
fn packet((source, destination): (IpAddr, IpAddr), protocol: u8, load: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let [high, low] = (20 + load.len() as u16).to_be_bytes();
            let fixed = [8, 0, 0x45, 0, high, low, 0, 0, 0x40, 0, 64, protocol, 0, 0];
            [&fixed[..], &source.octets(), &destination.octets(), load].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let [high, low] = (load.len() as u16).to_be_bytes();
            let fixed = [0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol, 64];
            [&fixed[..], &source.octets(), &destination.octets(), load].concat()
        }
        _ => panic!("addresses of two families"),
    }
}

/// Reads an example, without what is not about addresses, protocols and ports.
fn example(text: &str) -> Policy {
    let table: toml::Table = text.parse().expect("TOML");
    let many = |value: Option<&toml::Value>| match value {
        None => Vec::new(),
        Some(toml::Value::Array(values)) => values.clone(),
        Some(one) => vec![one.clone()],
    };
    let prefixes = |value: Option<&toml::Value>| -> Vec<Prefix> {
        let texts = many(value).into_iter().map(|text| text.as_str().expect("a text").to_owned());
        let texts = texts.flat_map(|text| match text.as_str() {
            "any" => vec!["0.0.0.0/0".to_owned(), "::/0".to_owned()],
            _ => vec![text],
        });
        texts.map(|text| Prefix::parse(&text)).collect()
    };
    let port = |value: toml::Value| match value {
        toml::Value::String(text) => {
            let (first, last) = text.split_once('-').expect("a range");
            (first.parse().expect("a port"), last.parse().expect("a port"))
        }
        other => [other.as_integer().expect("a port") as u16; 2].into(),
    };
    let rule = |deny: bool, rule: &toml::Value| {
        let protocol = match rule.get("protocol").and_then(toml::Value::as_str) {
            None | Some("any") => Protocol::Any,
            Some("icmp") => Protocol::Icmp,
            Some("tcp") => Protocol::Number(6),
            Some("udp") => Protocol::Number(17),
            Some(other) => panic!("{other}: teach the test this protocol"),
        };
        let from = rule.get("from").is_some();
        let ports = many(rule.get("ports")).into_iter().map(port).collect();
        let prefixes = prefixes(rule.get("from").or(rule.get("to")));
        Rule { deny, from, prefixes, protocol, ports }
    };
    let rules = [("deny", true), ("allow", false)].into_iter().flat_map(|(key, deny)| {
        many(table.get(key)).iter().map(|value| rule(deny, value)).collect::<Vec<_>>()
    });
    let on_link = prefixes(table.get("network").and_then(|network| network.get("on-link")));
    Policy { on_link, rules: rules.collect() }
}

fn filter(text: &str) -> Filter {
    struct Words(Vec<AtomicU64>);
    impl AsRef<[AtomicU64]> for Words {
        fn as_ref(&self) -> &[AtomicU64] {
            &self.0
        }
    }
    let setup = Setup {
        mac: GUEST,
        addresses: GUESTS.map(|text| text.parse().expect("an address")).to_vec(),
        learn: None,
        flows: 2 * FRAMES,
        policy: Some(text.to_owned()),
    };
    let words = Words((0..Filter::words(&setup)).map(|_| AtomicU64::new(0)).collect());
    Filter::new(setup, Arc::new(words), [3, 5]).expect("a filter")
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A namespace in which nft forwards frames from one TAP to another.
struct Kernel {
    netns: Netns,
    into: File,
    from: File,
}

impl Kernel {
    fn new() -> Kernel {
        let netns = Netns::new().expect("a namespace");
        let tap = |name: &str| {
            let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
            netns.add_tap(name, false).expect("a TAP");
            File::from(netns.open_tap(name, flags).expect("a TAP"))
        };
        let (into, from) = (tap("va"), tap("vb"));
        netns.wait_until_up("va", LIMIT).expect("up");
        netns.wait_until_up("vb", LIMIT).expect("up");
        Kernel { netns, into, from }
    }

    fn load(&self, policy: &Policy) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ruleset");
        let ruleset = policy.ruleset(("va", "vb"), &mac(GUEST), MARKER);
        fs::write(&path, format!("flush ruleset\n{ruleset}")).expect("written");
        let output = self.netns.command("nft").arg("-f").arg(&path).output().expect("nsenter");
        let why = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nft (scripts/setup installs nftables) fails: {why}\n{ruleset}");
    }

    /// Returns the numbers of those frames that the kernel forwards.
    fn judge(&mut self, frames: &[Vec<u8>]) -> Vec<u32> {
        let marker = [&[0xff; 6], &OTHER[..], &MARKER.to_be_bytes(), &[0; 46]].concat();
        for frame in frames.iter().chain([&marker]) {
            self.into.write_all(frame).expect("written");
        }
        let (mut passed, mut bytes) = (Vec::new(), [0; 2048]);
        loop {
            assert!(readable(self.from.as_fd(), LIMIT).expect("a TAP"), "the marker does not come out");
            let len = self.from.read(&mut bytes).expect("a frame");
            if bytes[12..14] == MARKER.to_be_bytes() {
                return passed;
            }
            passed.push(u32::from_be_bytes(*bytes[..len].last_chunk().expect("a number")));
        }
    }
}

/// What both said: allowed and refused frames, and those of the allowed ones that the filter let pass.
type Counts = [u32; 3];

/// Judges frames by both, and compares.
fn compare(kernel: &mut Kernel, random: &mut Random, name: &str, policy: &Policy, text: &str) -> Counts {
    kernel.load(policy);
    // A flow of one way would let frames of the other pass.
    let filters = Way::BOTH.map(|_| filter(text));
    let pool: Vec<_> = ranges().into_iter().chain(policy.on_link.iter().copied()).collect();
    let mut counts = Counts::default();
    for first in (0..FRAMES).step_by(BATCH as usize) {
        let numbers = first..FRAMES.min(first + BATCH);
        let (ways, frames): (Vec<_>, Vec<_>) =
            numbers.clone().map(|number| random.frame(policy, &pool, number)).unzip();
        let passed = kernel.judge(&frames);
        for ((number, way), frame) in numbers.zip(ways).zip(&frames) {
            let mut with_header = [&[0; 12], &frame[..]].concat();
            let len = with_header.len();
            let verdict = filters[way as usize].judge(way, &mut with_header, len, 1000);
            let allowed = matches!(verdict, Verdict::Pass | Verdict::Refuse(Reason::PeerMac));
            let by_kernel = passed.contains(&number);
            let summary = Summary::of(way, &with_header);
            assert_eq!(
                by_kernel, allowed,
                "nft (left), filter ({verdict:?}); {name}: {number}: {summary:?}\n{frame:02x?}\n{text}"
            );
            counts[usize::from(!allowed)] += 1;
            counts[2] += u32::from(verdict == Verdict::Pass);
        }
    }
    println!("{name}: {} allowed, {} refused, {} passed", counts[0], counts[1], counts[2]);
    counts
}

#[test]
fn nft_decides_alike() {
    let mut kernel = Kernel::new();
    let mut random = Random(0x766f_6c74_2066_696c);
    let mut all = Counts::default();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/policy");
    let mut paths: Vec<_> =
        fs::read_dir(folder).expect("the examples").map(|entry| entry.expect("one").path()).collect();
    paths.sort();
    for path in paths {
        let text = fs::read_to_string(&path).expect("an example");
        let name = path.file_name().expect("a name").display().to_string();
        let counts = compare(&mut kernel, &mut random, &name, &example(&text), &text);
        all = std::array::from_fn(|at| all[at] + counts[at]);
    }
    for number in 0..RANDOM_POLICIES {
        let policy = random.policy();
        let name = format!("random policy {number}");
        let counts = compare(&mut kernel, &mut random, &name, &policy, &policy.text(&mac(OTHER)));
        all = std::array::from_fn(|at| all[at] + counts[at]);
    }
    assert!(all.iter().all(|count| *count > 10_000), "each answer is frequent: {all:?}");
}
