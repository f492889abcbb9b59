//! Compares decisions with those of a model, which tries each rule and writes addresses as texts of bits.

use super::*;

/// A generator of numbers (xorshift).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % bound
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }
}

/// Addresses beside each other, and in ranges within ranges.
const ADDRESSES: &[&str] = &[
    "10.1.2.9",
    "10.1.3.1",
    "10.200.0.1",
    "169.254.169.254",
    "169.254.1.1",
    "192.0.2.7",
    "192.0.2.8",
    "198.51.100.1",
    "fd00:ec2::254",
    "fd00:ec2::1",
    "2001:db8:1::9",
    "2001:db8:2::9",
    "2001::1",
    "fe80::1",
];
const PROTOCOLS: &[(&str, &[u8])] =
    &[("any", &[]), ("icmp", &[1, 58]), ("tcp", &[6]), ("udp", &[17]), ("gre", &[47]), ("sctp", &[132])];
const NUMBERS: &[u8] = &[1, 6, 17, 47, 50, 58, 132];

struct ModelRule {
    deny: bool,
    from: bool,
    prefixes: Vec<String>,
    protocol: (&'static str, &'static [u8]),
    ports: Option<(u16, u16)>,
    fragments: bool,
    options: bool,
}

/// Returns the address as bits, after its family.
fn bits(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => format!("4{:032b}", v4.to_bits()),
        IpAddr::V6(v6) => format!("6{:0128b}", v6.to_bits()),
    }
}

/// Returns the bits that the addresses of a prefix begin with.
fn beginning(prefix: &str) -> String {
    let (address, len) = prefix.split_once('/').expect("a length");
    let len: usize = len.parse().expect("a length");
    bits(address.parse().expect("an address"))[..=len].to_owned()
}

impl ModelRule {
    fn random(random: &mut Random) -> ModelRule {
        let prefixes = (0..=random.below(3)).map(|_| random_prefix(random)).collect();
        let protocol = random.of(PROTOCOLS);
        let deny = random.one_in(4);
        let ports = (matches!(protocol.0, "tcp" | "udp") && !random.one_in(3)).then(|| {
            let first = 1 + random.below(4) as u16;
            (first, first + random.below(3) as u16)
        });
        let fragments = !deny && ports.is_none() && random.one_in(3);
        let options = !deny && random.one_in(3);
        ModelRule { deny, from: random.one_in(3), prefixes, protocol, ports, fragments, options }
    }

    fn text(&self) -> String {
        let kind = if self.deny { "deny" } else { "allow" };
        let side = if self.from { "from" } else { "to" };
        let ports = self.ports.map(|(first, last)| format!("ports = \"{first}-{last}\"\n"));
        let flag = |name, is_set| if is_set { format!("{name} = true\n") } else { String::new() };
        format!(
            "[[{kind}]]\n{side} = {:?}\nprotocol = \"{}\"\n{}{}{}",
            self.prefixes,
            self.protocol.0,
            ports.unwrap_or_default(),
            flag("fragments", self.fragments),
            flag("options", self.options)
        )
    }

    /// Whether the protocol is one of the rule's.
    fn has_protocol(&self, question: &Question) -> bool {
        let icmp = if question.peer.is_ipv4() { 1 } else { 58 };
        match self.protocol.0 {
            "any" => self.deny || [icmp, 6, 17].contains(&question.protocol),
            "icmp" => question.protocol == icmp,
            _ => self.protocol.1.contains(&question.protocol),
        }
    }

    /// Whether protocol and port fit. A fragment fits all ports.
    fn fits(&self, question: &Question) -> bool {
        let port = |(first, last)| question.port.is_some_and(|port| first <= port && port <= last);
        self.has_protocol(question) && (question.fragment || self.ports.is_none_or(port))
    }
}

fn random_prefix(random: &mut Random) -> String {
    let address: IpAddr = random.of(ADDRESSES).parse().expect("an address");
    let lengths: &[u8] =
        if address.is_ipv4() { &[0, 8, 16, 24, 31, 32] } else { &[0, 7, 16, 32, 48, 64, 128] };
    let len = random.of(lengths);
    format!("{}/{len}", Prefix::new(address, len).expect("a prefix").address())
}

/// Decides by the order of the documentation.
fn decide(rules: &[ModelRule], on_link: &[String], question: &Question) -> Result<(), Reason> {
    let peer = bits(question.peer);
    let special = SPECIAL.iter().map(|range| format!("{}/{}", range.prefix.address(), range.prefix.len()));
    let ranges = special.chain(on_link.iter().cloned()).map(|range| beginning(&range));
    let range = ranges.filter(|range| peer.starts_with(range)).max_by_key(String::len);
    let contains = |rule: &&ModelRule| {
        rule.from == (question.way == Way::In)
            && rule.prefixes.iter().any(|prefix| peer.starts_with(&beginning(prefix)))
    };
    let names = |rule: &ModelRule| {
        let own = rule.prefixes.iter().map(|prefix| beginning(prefix));
        let mut own = own.filter(|prefix| peer.starts_with(prefix));
        own.any(|prefix| range.as_ref().is_none_or(|range| prefix.starts_with(range)))
    };
    let about: Vec<_> = rules.iter().filter(contains).collect();
    if about.iter().any(|rule| rule.deny && rule.fits(question)) {
        return Err(Reason::Denied);
    }
    let options = if question.peer.is_ipv4() { Reason::IpOptions } else { Reason::ExtensionHeader };
    let (named, broader): (Vec<&ModelRule>, Vec<&ModelRule>) =
        about.into_iter().filter(|rule| !rule.deny).partition(|rule| names(rule));
    let lacks_fragments = |rule: &ModelRule| question.fragment && !rule.fragments;
    let lacks_options = |rule: &ModelRule| question.options && !rule.options;
    let fitting: Vec<_> = named.iter().filter(|rule| rule.fits(question)).collect();
    if fitting.iter().any(|rule| !lacks_fragments(rule) && !lacks_options(rule)) {
        return Ok(());
    }
    if fitting.iter().any(|rule| lacks_fragments(rule)) {
        return Err(Reason::Fragment);
    }
    if !fitting.is_empty() {
        return Err(options);
    }
    // A rule with several prefixes may name the address by one of them, and contain it in a broader one.
    let all = named.iter().chain(&broader).filter(|rule| {
        let own = rule.prefixes.iter().map(|prefix| beginning(prefix));
        let mut own = own.filter(|prefix| peer.starts_with(prefix));
        own.any(|prefix| range.as_ref().is_some_and(|range| !prefix.starts_with(range)))
    });
    let mut full = all.filter(|rule| rule.fits(question) && !lacks_fragments(rule) && !lacks_options(rule));
    match question.protocol {
        _ if range.is_some() && (named.is_empty() || full.next().is_some()) => Err(Reason::NotNamed),
        47 | 50 => Err(Reason::Tunnel),
        _ if question.fragment => Err(Reason::Fragment),
        _ if question.options => Err(options),
        _ => Err(Reason::NotAllowed),
    }
}

#[test]
fn decisions_are_those_of_the_model() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut seen = std::collections::BTreeMap::<_, u32>::new();
    for _ in 0..1000 {
        let rules: Vec<_> = (0..random.below(7)).map(|_| ModelRule::random(&mut random)).collect();
        let on_link: Vec<_> = (0..random.below(3)).map(|_| random_prefix(&mut random)).collect();
        let texts: String = rules.iter().map(ModelRule::text).collect();
        let policy = policy(&format!("[network]\non-link = {on_link:?}\n{texts}"));
        for _ in 0..40 {
            let protocol = random.of(NUMBERS);
            let fragment = random.one_in(4);
            let has_port = matches!(protocol, 6 | 17) && !fragment;
            let question = Question {
                way: random.of(&Way::BOTH),
                peer: random.of(ADDRESSES).parse().expect("an address"),
                protocol,
                port: has_port.then(|| 1 + random.below(6) as u16),
                fragment,
                options: random.one_in(4),
            };
            let expected = decide(&rules, &on_link, &question);
            let explanation = policy.explain(&question);
            assert_eq!(explanation.answer, expected, "{question}\n{}\n{explanation}", policy.text());
            assert!(expected.is_err() || policy.names(question.peer), "{question}\n{}", policy.text());
            *seen.entry(expected.map_err(Reason::name)).or_default() += 1;
        }
    }
    assert!(seen.len() == 8 && seen.values().all(|count| *count > 50), "{seen:?}");
}
