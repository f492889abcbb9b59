//! The catalogue of volt-conform: names, sources, and what README.md says of the broken peers.

use std::time::Duration;

use protocol_tests::backend::fault::Fault;
use protocol_tests::conform::run::Outcome;
use protocol_tests::conform::sections::titles;
use protocol_tests::conform::{Finding, Level, catalogue, frontend, report};
use protocol_tests::front_peer::FrontFault;

const README: &str = include_str!("../README.md");

/// The tables of broken peers in README.md are those that `conform.rs` goes through: each row, and no other.
#[test]
fn readme_lists_the_broken_peers() {
    let backs = Fault::ALL.iter().map(|fault| (fault.name(), fault.what(), fault.caught_by()));
    let fronts = FrontFault::ALL.iter().map(|fault| (fault.name(), fault.what(), fault.caught_by()));
    for (title, faults) in
        [("## Broken back-ends", backs.collect::<Vec<_>>()), ("## Broken front-ends", fronts.collect())]
    {
        let section = README.split(title).nth(1).expect(title).split("\n## ").next().unwrap_or_default();
        let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
        let wanted: Vec<_> = faults
            .iter()
            .map(|(name, what, check)| {
                let what = what.trim_end_matches('.');
                let first = what.chars().take(1).flat_map(char::to_lowercase);
                // A name in capitals keeps them.
                let capitals =
                    what.chars().nth(1).is_some_and(|second| !second.is_lowercase() && second != ' ');
                let what =
                    if capitals { what.to_owned() } else { first.chain(what.chars().skip(1)).collect() };
                format!("| {name} | {what} | {check} |")
            })
            .collect();
        assert_eq!(rows, wanted, "{title}: the rows should be\n{}\n", wanted.join("\n"));
        let count = format!("**{0} of {0}", wanted.len());
        assert!(section.contains(&count), "{title}: {count}");
    }
}

/// Each check names where its promise is made: a section that exists, or, where no specification says it, who
/// depends on it.
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

/// Names are unique and have a group; each promise names its source; JUnit text is well-formed where reasons
/// hold bytes and quotes.
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
