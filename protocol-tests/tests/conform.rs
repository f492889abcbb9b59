//! The checks of volt-conform judge as they should: volt-netd fails none, and each broken back-end is caught by the
//! check that names its fault, which its unbroken parent passes.

use protocol_tests::backend::fault::Fault;
use protocol_tests::conform::run::{Target, Wire, run};
use protocol_tests::conform::{Check, catalogue, report};
use protocol_tests::daemon::program;
use protocol_tests::rig::namespace;

fn check(name: &str) -> &'static Check {
    let found = catalogue().into_iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check {name}"))
}

fn peer(kind: &str) -> Target {
    Target::Command(format!("{} {{socket}} {kind}", program("conform-peer").display()))
}

/// Every fault is caught by its check, and the back-end without it passes that check.
#[test]
fn every_fault_is_caught() {
    for fault in Fault::ALL {
        let check = check(fault.caught_by());
        let parent = run(check, &peer("scripted"), &Wire::Echo);
        assert!(parent.result.is_ok(), "{}: without fault: {}", fault.name(), report::line(&parent));
        let broken = run(check, &peer(fault.name()), &Wire::Echo);
        assert!(report::is_bad(&broken), "{}: not caught: {}", fault.name(), report::line(&broken));
        eprintln!("{:<20} {}", fault.name(), report::line(&broken));
    }
}

/// volt-netd fails no check and leaves none out for want of an offer.
#[test]
fn volt_netd_passes() {
    if namespace("volt_netd_passes").is_none() {
        return;
    }
    let command = format!("{} --tap tap0 --socket {{socket}}", program("volt-netd").display());
    let (target, wire) = (Target::Command(command), Wire::Tap("tap0".to_owned()));
    let outcomes: Vec<_> = catalogue().into_iter().map(|check| run(check, &target, &wire)).collect();
    let bad: Vec<_> = outcomes.iter().filter(|outcome| outcome.result.is_err()).map(report::line).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// A back-end that says nothing, and one that does not start, are results and not errors of the tool.
#[test]
fn a_dead_back_end_is_a_result() {
    for command in ["false {socket}", "sleep 60; : {socket}"] {
        let outcome = run(check("messages/version-1"), &Target::Command(command.to_owned()), &Wire::Unseen);
        assert_eq!(report::words(&outcome).0, "BROKEN", "{}", report::line(&outcome));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let silent = std::os::unix::net::UnixListener::bind(dir.path().join("s")).expect("a listener");
    let outcome = run(check("messages/version-1"), &Target::Socket(dir.path().join("s")), &Wire::Unseen);
    assert_eq!(report::words(&outcome).0, "BROKEN", "{}", report::line(&outcome));
    drop(silent);
}

/// Names are unique and have a group; each promise names its source; JUnit text is well-formed where reasons hold
/// bytes and quotes.
#[test]
fn catalogue_and_reports() {
    let mut names: Vec<_> = catalogue().iter().map(|check| check.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "no name twice");
    assert!(catalogue().iter().all(|check| check.name.contains('/') && !check.source.is_empty()));
    let finding = protocol_tests::conform::Finding::Fail("\"<&\u{1b}".to_owned());
    let outcome = protocol_tests::conform::run::Outcome {
        check: check("messages/version-1"),
        result: Err(finding),
        took: std::time::Duration::ZERO,
    };
    assert!(report::junit(std::slice::from_ref(&outcome)).contains("message=\"&quot;&lt;&amp;?\""));
    assert_eq!(report::json(&[outcome])[0]["result"], "fail");
}
