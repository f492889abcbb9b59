//! The catalogue of volt-conform: names, sources.

use std::time::Duration;

use protocol_tests::conform::run::Outcome;
use protocol_tests::conform::sections::titles;
use protocol_tests::conform::{Finding, Level, catalogue, frontend, report};

/// Each check names its source: an existing section, or software that depends on the behaviour.
#[test]
fn each_check_names_its_section() {
    for check in catalogue().into_iter().chain(frontend::catalogue()) {
        let titles = titles(check.source);
        let titles = titles.unwrap_or_else(|bad| panic!("{}: no such section: {bad}", check.name));
        let elsewhere = check.source.starts_with("unix(7)") || check.level == Level::Robust;
        assert!(!titles.is_empty() || elsewhere, "{}: {} is no section", check.name, check.source);
        assert!(!check.source.is_empty() && !check.promise.is_empty(), "{}", check.name);
    }
    for wrong in ["virtio 1.2, 2.7.99", "vhost-user, Ring state", "virtio 1.1, 2.6", "vhost-user: Header"] {
        assert!(titles(wrong).is_err(), "{wrong}");
    }
}

/// Names are unique and have a group; each promise names its source; JUnit text is well-formed even if
/// reasons contain bytes and quotes.
#[test]
fn catalogue_and_reports() {
    let mut names: Vec<_> =
        catalogue().iter().chain(&frontend::catalogue()).map(|check| check.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "no name twice");
    assert!(catalogue().iter().all(|check| check.name.contains('/') && !check.source.is_empty()));
    let finding = Finding::Fail("\"<&\u{1b}".to_owned());
    let outcome = Outcome { check: catalogue()[0], result: Err(finding), took: Duration::ZERO };
    assert!(report::junit(std::slice::from_ref(&outcome)).contains("message=\"&quot;&lt;&amp;?\""));
    assert_eq!(report::json(&[outcome])["checks"][0]["result"], "fail");
}
