//! The policies in `docs/examples/policy/`.

use std::fs;
use std::path::Path;

use super::*;

fn example(name: &str) -> Policy {
    let path = format!("{}/../../docs/examples/policy/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    let policy = policy(&fs::read_to_string(path).expect("an example"));
    assert_eq!(policy.warnings(), [] as [&str; 0], "{name}");
    assert_eq!(policy.mode(), Mode::Enforce);
    policy
}

#[test]
fn each_example_is_tested() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/examples/policy");
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["agent.toml", "ci-runner.toml", "nothing.toml", "public-service.toml"]);
}

#[test]
fn nothing_allows_nothing() {
    let policy = example("nothing");
    assert!(policy.is_silent());
    assert_answers(
        &policy,
        &[
            ("tcp 198.51.100.1 443", "not_allowed"),
            ("icmp 2001:db8::1", "not_allowed"),
            ("from tcp 198.51.100.1 22", "not_allowed"),
            ("udp 10.0.0.1 53", "not_named"),
        ],
    );
}

#[test]
fn an_agent_reaches_its_services() {
    assert_answers(
        &example("agent"),
        &[
            ("udp 10.20.0.53 53", "allowed"),
            ("tcp fd7a:20::53 53", "allowed"),
            ("tcp 198.51.100.9 443", "allowed"),
            ("tcp 2001:db8:5::9 443", "allowed"),
            ("tcp 10.30.0.8 3128", "allowed"),
            ("tcp 198.51.100.66 443", "denied"),
            ("tcp 2001:db8:5::66 443", "denied"),
            ("tcp 198.51.100.9 80", "not_allowed"),
            ("tcp 203.0.113.1 443", "not_allowed"),
            ("tcp 10.20.0.7 22", "not_named"),
            ("tcp 10.30.0.9 3128", "not_named"),
            ("tcp 169.254.169.254 80", "not_named"),
            ("tcp fd00:ec2::254 80", "not_named"),
            ("from tcp 198.51.100.9 22", "not_allowed"),
            ("udp 10.20.0.53 fragment", "fragment"),
        ],
    );
}

#[test]
fn a_ci_runner_reaches_the_internet() {
    assert_answers(
        &example("ci-runner"),
        &[
            ("tcp 198.51.100.9 443", "allowed"),
            ("tcp 2001:db8:9::9 22", "allowed"),
            ("udp 198.51.100.9 443", "allowed"),
            ("icmp 2001:db8:9::9", "allowed"),
            ("udp 192.168.40.1 53", "allowed"),
            ("tcp 192.168.7.20 8002", "allowed"),
            ("tcp 198.51.100.9 25", "not_allowed"),
            ("gre 198.51.100.9", "tunnel"),
            ("tcp 203.0.113.9 443", "denied"),
            ("tcp 192.168.7.21 443", "not_named"),
            ("tcp 192.168.40.7 443", "not_named"),
            ("tcp 2001:db8:40::7 443", "not_named"),
            ("tcp 192.168.40.1 443", "not_named"),
            ("from tcp 198.51.100.9 22", "not_allowed"),
        ],
    );
}

#[test]
fn a_public_service_is_reached() {
    let policy = example("public-service");
    assert_answers(
        &policy,
        &[
            ("from tcp 198.51.100.200 443", "allowed"),
            ("from udp 2001:db8:9::9 443", "allowed"),
            ("from icmp 198.51.100.200", "allowed"),
            ("from tcp 198.51.100.17 22", "allowed"),
            ("tcp 192.0.2.20 5432", "allowed"),
            ("udp 198.51.100.53 123", "allowed"),
            ("from tcp 198.51.100.200 22", "not_allowed"),
            ("from tcp 203.0.113.9 443", "denied"),
            ("from tcp 192.0.2.7 443", "not_named"),
            ("tcp 198.51.100.200 443", "not_allowed"),
            ("tcp 192.0.2.20 22", "not_allowed"),
        ],
    );
    let database = policy.explain(&"tcp 192.0.2.20 5432".parse().unwrap());
    assert_eq!(database.hop.to_string(), "the host 192.0.2.20, on the link, 52:54:00:80:00:20");
}
