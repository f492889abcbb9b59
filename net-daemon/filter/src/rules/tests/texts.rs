//! What a file may contain, errors, warnings and explanations.

use super::model::Random;
use super::*;
use crate::rules::error::MAX_LINK;

const WHOLE: &str = r#"
mode = "log"
refuse = "drop"

[network]
on-link = ["192.0.2.0/24", "2001:db8:1::/64"]
gateways = ["192.0.2.1", "fe80::1"]
gateway-mac = "52:54:00:00:00:01"
dhcp = "192.0.2.2"

[network.neighbours]
"192.0.2.7" = "52:54:00:00:00:07"

[[allow]]
to = ["198.51.100.0/24", "2001:db8:5::/48"]
protocol = "tcp"
ports = [443, "8000-8100"]
options = true

[[deny]]
to = "198.51.100.7"

[[allow]]
from = "any"
protocol = 47
fragments = true
"#;

#[test]
fn a_whole_file_is_read() {
    let policy = policy(WHOLE);
    assert_eq!((policy.text(), policy.mode(), policy.is_silent()), (WHOLE, Mode::Log, true));
    let network = policy.network();
    assert_eq!(network.on_link, ["192.0.2.0/24", "2001:db8:1::/64"].map(|text| text.parse().unwrap()));
    assert_eq!(network.gateways, ["192.0.2.1", "fe80::1"].map(|text| text.parse::<IpAddr>().unwrap()));
    assert_eq!(network.gateway_mac, Some([0x52, 0x54, 0, 0, 0, 1]));
    assert_eq!(network.dhcp, Some([192, 0, 2, 2].into()));
    assert_eq!(network.neighbours, [([192, 0, 2, 7].into(), [0x52, 0x54, 0, 0, 0, 7])]);
    assert_eq!(policy.warnings(), [] as [&str; 0]);
    let listing = "\
mode         log: the rules refuse nothing
refuse       drop
on-link      192.0.2.0/24, 2001:db8:1::/64
gateways     192.0.2.1, fe80::1
gateway-mac  52:54:00:00:00:01
dhcp         192.0.2.2
neighbour    192.0.2.7 52:54:00:00:00:07

line  rule        address          protocol  ports           also
14    allow to    198.51.100.0/24  tcp       443, 8000-8100  options
                  2001:db8:5::/48
20    deny to     198.51.100.7     any       any             -
23    allow from  0.0.0.0/0        gre       any             fragments
                  ::/0";
    assert_eq!(policy.to_string(), listing);
}

#[test]
fn an_empty_file_allows_nothing() {
    let policy = policy("");
    assert_eq!((policy.mode(), policy.is_silent()), (Mode::Enforce, false));
    assert_eq!(policy.network(), &Network::default());
    assert!(policy.to_string().ends_with("no rules: no flow is allowed"));
    assert_eq!(policy.warnings(), [] as [&str; 0]);
    assert!(!policy.names([192, 0, 2, 7].into()));
}

/// Each error names the line, what is wrong, and what to do.
#[test]
fn errors_name_the_line() {
    let allow = "# comment\n\n[[allow]]\n";
    for (text, why) in [
        ("mode = \"enforce\"\nmode = \"log\"", "line 2: duplicate key"),
        ("\nmode = enforce", "line 2: string values must be quoted"),
        ("mode = \"off\"", "line 1: unknown variant `off`, expected `enforce` or `log`"),
        ("refuse = \"deny\"", "line 1: unknown variant `deny`, expected `reject` or `drop`"),
        ("\n\nallowed = 1", "line 3: unknown field `allowed`, expected one of"),
        ("[network]\ngateway = \"192.0.2.1\"", "line 2: unknown field `gateway`, expected one of"),
        (
            "[network]\non-link = [\n\"192.0.2.0/24\",\n\"192.0.2.7/24\"]",
            "line 4: '192.0.2.7/24' has bits beyond",
        ),
        ("[network]\non-link = \"any\"", "line 2: 'any' is not an address or prefix"),
        ("[network]\ngateways = \"192.0.2.0/24\"", "line 2: '192.0.2.0/24' is not an IP address"),
        ("[network]\ngateways = [true]", "line 2: invalid type: boolean `true`, expected an IP address like"),
        ("[network]\ngateway-mac = \"52:54\"", "line 2: '52:54' is not a MAC address like"),
        ("[network]\ngateway-mac = \"52:54:00:00:00:+1\"", "is not a MAC address like"),
        ("[network]\ngateway-mac = \"52:54:00:00:00:01:02\"", "is not a MAC address like"),
        ("[network]\ngateway-mac = \"53:54:00:00:00:01\"", "is not the MAC address of one host"),
        ("[network]\ngateway-mac = \"00:00:00:00:00:00\"", "is not the MAC address of one host"),
        ("[network]\ndhcp = \"fe80::1\"", "line 2: 'fe80::1' is not an IPv4 address"),
        ("[network.neighbours]\n\"x\" = \"52:54:00:00:00:01\"", "line 2: 'x' is not an IP address"),
        (
            "[network.neighbours]\n\"fe80::1\" = \"52:54:00:00:00:01\"\n\"FE80::1\" = \"52:54:00:00:00:02\"",
            "the neighbour fe80::1 is listed twice: keep one",
        ),
        (allow, "line 3: the rule has neither 'to' nor 'from': add 'to'"),
        (
            &format!("{allow}to = \"any\"\nfrom = \"any\""),
            "line 3: the rule has both 'to' and 'from': write a",
        ),
        (&format!("{allow}to = []"), "line 3: the list 'to' is empty: remove it"),
        (&format!("{allow}from = []"), "line 3: the list 'from' is empty: remove it"),
        (&format!("{allow}to = \"example.org\""), "line 4: 'example.org' is not an address or prefix, like"),
        (&format!("{allow}to = 7"), "line 4: invalid value: integer `7`, expected an address or prefix like"),
        (&format!("{allow}to = [\"any\", 7]"), "line 4: invalid value: integer `7`, expected an address or"),
        (&format!("{allow}to = \"any\"\nport = 443"), "line 5: unknown field `port`, expected one of"),
        (&format!("{allow}to = \"any\"\nprotocol = \"http\""), "line 5: 'http' is not a protocol: write tcp"),
        (
            &format!("{allow}to = \"any\"\nprotocol = 256"),
            "line 5: invalid value: integer `256`, expected a prot",
        ),
        (&format!("{allow}to = \"any\"\nports = 443"), "line 3: 'ports' needs protocol = \"tcp\" or"),
        (
            &format!("{allow}to = \"any\"\nprotocol = \"sctp\"\nports = 443"),
            "line 3: 'ports' needs protocol = \"tcp\" or protocol = \"udp\", not \"sctp\": for both, write",
        ),
        (
            &format!("{allow}to = \"any\"\nprotocol = \"tcp\"\nports = []"),
            "line 3: the list 'ports' is empty",
        ),
        (
            &format!("{allow}to = \"any\"\nprotocol = \"tcp\"\nports = 0"),
            "line 6: invalid value: integer `0`",
        ),
        (
            &format!("{allow}to = \"any\"\nprotocol = \"tcp\"\nports = \"0\""),
            "line 6: '0' is not a port from 1",
        ),
        (
            &format!("{allow}to = \"any\"\nports = 65536"),
            "line 5: invalid value: integer `65536`, expected a port",
        ),
        (
            &format!("{allow}to = \"any\"\nports = \"90-80\""),
            "line 5: '90-80' is empty: did you mean \"80-90\"?",
        ),
        (
            &format!("{allow}to = \"any\"\nports = \"http\""),
            "line 5: 'http' is not a port from 1 to 65535, or a",
        ),
        (
            &format!("{allow}to = \"any\"\nprotocol = \"udp\"\nports = 1\nfragments = true"),
            "line 3: 'fragments' and 'ports' exclude each other",
        ),
        ("[[deny]]\nto = \"any\"\nfragments = true", "line 1: remove 'fragments': a deny rule always covers"),
        ("[[deny]]\nto = \"any\"\noptions = false", "line 1: remove 'options': a deny rule always covers"),
        (&format!("{allow}to = \"any\"\n[[deny]]\n"), "line 5: the rule has neither"),
    ] {
        let error = Policy::parse(text).expect_err(text).to_string();
        assert!(error.contains(why), "{text}\n{error}");
        assert!(error.starts_with("line ") && !error.contains('\n'), "{error}");
    }
}

#[test]
fn sizes_are_bounded() {
    let error = |text: &str| Policy::parse(text).unwrap_err().to_string();
    let comment = |len: usize| "#".repeat(len);
    assert!(Policy::parse(&comment(MAX_TEXT)).is_ok());
    assert!(error(&comment(MAX_TEXT + 1)).contains("the policy has more than 262144 bytes"));
    let rules = |count| "[[deny]]\nto=\"192.0.2.1\"\n".repeat(count);
    assert!(Policy::parse(&rules(MAX_RULES)).is_ok());
    assert!(error(&rules(MAX_RULES + 1)).contains("1025 rules, and may have 1024"));
    let prefixes = |count| format!("[[allow]]\nto=[{}]", "\"192.0.2.1\",".repeat(count));
    assert!(Policy::parse(&prefixes(MAX_PREFIXES)).is_ok());
    assert!(error(&prefixes(MAX_PREFIXES + 1)).contains("16385 prefixes, and may have 16384"));
    for (key, what) in [("on-link", "prefixes on the link"), ("gateways", "gateways")] {
        let text = |count| format!("[network]\n{key}=[{}]", "\"192.0.2.1\",".repeat(count));
        assert!(Policy::parse(&text(MAX_LINK)).is_ok());
        assert!(error(&text(MAX_LINK + 1)).contains(&format!("65 {what}, and may have 64")));
    }
    let line = |at: usize| format!("\"2001:db8::{at:x}\"=\"52:54:00:00:00:01\"\n");
    let neighbours = |count| format!("[network.neighbours]\n{}", (0..count).map(line).collect::<String>());
    assert!(Policy::parse(&neighbours(1024)).is_ok());
    assert!(error(&neighbours(1025)).contains("1025 neighbours, and may have 1024"));
    assert!(Policy::parse(&"[".repeat(MAX_TEXT)).is_err());
    assert!(Policy::parse(&format!("mode={}", "[".repeat(MAX_TEXT - 5))).is_err());
}

#[test]
fn likely_mistakes_are_told() {
    let network = "[network]\non-link = [\"192.0.2.0/25\", \"192.0.2.128/25\"]\ngateways = \"192.0.2.1\"\n";
    for (text, warning) in [
        ("[[allow]]\nto = \"198.51.100.0/24\"", "[network]: no IPv4 prefix in 'on-link': hosts beside"),
        ("[[allow]]\nto = \"any\"", "no IPv6 address in 'gateways': ::/0 (line 1) is not on the link, and"),
        (
            "[network]\non-link = \"192.0.2.0/24\"\n[[allow]]\nto = [\"192.0.2.7\", \"198.51.100.0/24\"]",
            "[network]: no IPv4 address in 'gateways': 198.51.100.0/24 (line 3) is not on the link",
        ),
        ("[network]\ngateways = \"192.0.2.1\"", "the gateway 192.0.2.1 is in no prefix of 'on-link'"),
        (
            "[network.neighbours]\n\"2001:db8::1\" = \"52:54:00:00:00:01\"",
            "the neighbour 2001:db8::1 is in no prefix of 'on-link'",
        ),
        ("[network]\ngateway-mac = \"52:54:00:00:00:01\"", "'gateway-mac' has no effect without 'gateways'"),
        (
            &format!("{network}[[allow]]\nto = \"192.0.2.0/24\""),
            "line 4: to 192.0.2.0/24: reaches no address",
        ),
        (
            &format!("{network}[[allow]]\nfrom = \"224.0.0.0/3\""),
            "line 4: from 224.0.0.0/3: reaches no address",
        ),
        (
            &format!(
                "{network}[[allow]]\nto = \"198.51.100.7\"\nprotocol = \"tcp\"\nports = [80, \"90-99\"]
[[deny]]\nto = \"198.51.100.0/24\"\nprotocol = \"tcp\"\nports = \"80-100\""
            ),
            "line 4: to 198.51.100.7: has no effect: the deny rule in line 8 covers it",
        ),
        (
            &format!("{network}[[allow]]\nto = \"64:ff9b::/96\""),
            "line 4: to 64:ff9b::/96: IPv4 by NAT64: these addresses contain IPv4 addresses",
        ),
    ] {
        let warnings = policy(text).warnings();
        assert!(warnings.iter().any(|one| one.contains(warning)), "{text}\n{warnings:#?}");
    }
    for fine in [
        format!("{network}[[allow]]\nto = \"any\"\n[[deny]]\nto = \"198.51.100.0/24\""),
        format!(
            "{network}[[allow]]\nto = \"198.51.100.7\"\n[[deny]]\nto = \"198.51.100.7\"\nprotocol = \"icmp\""
        ),
        format!("{network}[[allow]]\nto = \"198.51.100.7\"\n[[deny]]\nfrom = \"198.51.100.7\""),
        "[network]\non-link = \"2001:db8::/64\"\ngateways = \"fe80::1\"\n[[allow]]\nto = \"2001:db8:1::1\""
            .into(),
        "[network.neighbours]\n\"fe80::7\" = \"52:54:00:00:00:01\"".into(),
    ] {
        assert_eq!(policy(&fine).warnings(), [] as [&str; 0], "{fine}");
    }
}

#[test]
fn decisions_are_explained() {
    let policy = policy(&WHOLE.replace("mode = \"log\"", "mode = \"enforce\""));
    for (question, text) in [
        (
            "tcp 198.51.100.9 443",
            "allowed: tcp 198.51.100.9 443\n\
             rule: line 14: allow to 198.51.100.0/24; protocol tcp; ports 443, 8000-8100; also options\n\
             next hop: the gateway 192.0.2.1, 52:54:00:00:00:01",
        ),
        (
            "tcp 198.51.100.7 443",
            "refused: tcp 198.51.100.7 443\n\
             reason: denied: a deny rule fits\n\
             rule: line 20: deny to 198.51.100.7; protocol any; ports any",
        ),
        ("tcp 198.51.100.9 80", "refused: tcp 198.51.100.9 80\nreason: not_allowed: no rule allows it"),
        (
            "tcp 198.51.100.9 fragment",
            "reason: fragment: the rule fits, but for fragments: set 'fragments = true'",
        ),
        ("from gre 203.0.113.9 options", "reason: ip_options: the rule fits, but for options: set 'options"),
        ("sctp 203.0.113.9 options", "reason: ip_options: IPv4 options that no rule allows"),
        (
            "from gre 192.0.2.9",
            "reason: not_named: 192.0.2.9 is in 192.0.2.0/24 (on-link); the rule is broader",
        ),
        ("tcp 169.254.169.254 80", "169.254.169.254 (metadata service); no rule names an address or prefix"),
        ("gre 198.51.100.9", "reason: tunnel: no rule names the protocol gre"),
        ("from gre 2001:db8:9::1", "next hop of answers: the gateway fe80::1, 52:54:00:00:00:01"),
    ] {
        let explanation = policy.explain(&question.parse().unwrap()).to_string();
        assert!(explanation.contains(text), "{question}:\n{explanation}");
    }
    let log = super::policy(WHOLE).explain(&"tcp 192.0.2.7 80".parse().unwrap());
    assert_eq!((log.answer, log.line), (Err(Reason::NotNamed), None));
    let text = "\nmode: log: it passes, and is counted\n\
                next hop: the host 192.0.2.7, on the link, 52:54:00:00:00:07";
    assert!(log.to_string().ends_with(text), "{log}");
}

#[test]
fn next_hops_are_named() {
    let policy = policy(
        "[network]\non-link = \"192.0.2.0/24\"\ngateways = [\"192.0.2.1\", \"192.0.2.2\"]\n\
         [network.neighbours]\n\"192.0.2.1\" = \"52:54:00:00:00:01\"\n\
         [[allow]]\nto = [\"192.0.2.0/24\", \"any\", \"fe80::/10\"]",
    );
    for (peer, hop) in [
        ("192.0.2.1", "the host 192.0.2.1, on the link, 52:54:00:00:00:01"),
        ("192.0.2.2", "the gateway 192.0.2.2, by the MAC address that it answers with"),
        ("192.0.2.3", "the host 192.0.2.3, on the link, by the MAC address that it answers with"),
        ("198.51.100.1", "the gateway 192.0.2.1 or 192.0.2.2, by the MAC address that it answers with"),
        ("fe80::3", "the host fe80::3, on the link, by the MAC address that it answers with"),
        ("2001:db8::1", "none: not on the link, and no gateway of this family"),
    ] {
        let explanation = policy.explain(&format!("icmp {peer}").parse().unwrap());
        assert_eq!((explanation.answer, explanation.hop.to_string().as_str()), (Ok(()), hop), "{peer}");
    }
}

/// Texts with random changes are read, or are errors that name a line of theirs.
#[test]
fn any_text_is_read_or_an_error() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let pieces =
        ["\"", "[", "]", "=", "\n", "/", "any", "[[allow]]\n", "{", "}", ".", "9", "-", "\u{e9}", "'"];
    let mut errors = 0;
    for _ in 0..3000 {
        let mut text = WHOLE.to_owned();
        for _ in 0..=random.below(3) {
            let at = text.floor_char_boundary(random.below(text.len() as u64) as usize);
            let end = text.floor_char_boundary(at + random.below(8).min((text.len() - at) as u64) as usize);
            text.replace_range(at..end, pieces[random.below(pieces.len() as u64) as usize]);
        }
        match Policy::parse(&text) {
            Ok(policy) => drop((policy.to_string(), policy.warnings())),
            Err(error) => {
                let error = error.to_string();
                let line = error.strip_prefix("line ").and_then(|rest| rest.split(':').next()?.parse().ok());
                assert!(
                    line.is_some_and(|line| (1..=text.lines().count() + 1).contains(&line)),
                    "{error}\n{text}"
                );
                errors += 1;
            }
        }
    }
    assert!((100..2999).contains(&errors), "{errors} errors");
}

#[test]
fn a_rule_in_one_line_has_that_line() {
    let policy = policy("allow = [\n  { to = \"198.51.100.1\" },\n  { to = \"198.51.100.2\" },\n]\n");
    assert_eq!(policy.explain(&"icmp 198.51.100.2".parse().unwrap()).line, Some(3));
}
