//! The checks of volt-conform judge as they should: volt-netd fails none, and each broken back-end is caught by the
//! check that names its fault, which its unbroken parent passes.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol_tests::backend::fault::Fault;
use protocol_tests::conform::frontend::{self, Stage};
use protocol_tests::conform::random::session;
use protocol_tests::conform::run::{Outcome, Target, Wire, run, with};
use protocol_tests::conform::{Check, Finding, catalogue, report};
use protocol_tests::daemon::program;
use protocol_tests::front_peer::FrontFault;
use protocol_tests::rig::namespace;

fn check(name: &str) -> &'static Check {
    let found = catalogue().into_iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check {name}"))
}

fn peer(kind: &str) -> Target {
    Target::Command(format!("{} {{socket}} {kind}", program("conform-peer").display()))
}

/// Does `what` with each of `items`, several at a time: most of the time of a fault passes in waiting for what it keeps back.
fn with_each<T: Sync>(items: &[T], what: impl Fn(&T) + Sync) {
    const AT_A_TIME: usize = 6;
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    what(item);
                }
            });
        }
    });
}

/// Every fault is caught by its check, and the back-end without it passes that check.
#[test]
fn every_fault_is_caught() {
    with_each(Fault::ALL, |fault| {
        let check = check(fault.caught_by());
        let parent = run(check, &peer("scripted"), &Wire::Echo);
        assert!(parent.result.is_ok(), "{}: without fault: {}", fault.name(), report::line(&parent));
        let broken = run(check, &peer(fault.name()), &Wire::Echo);
        assert!(report::is_bad(&broken), "{}: not caught: {}", fault.name(), report::line(&broken));
        eprintln!("{:<20} {}", fault.name(), report::line(&broken));
    });
}

fn front_check(name: &str) -> &'static Check {
    let found = frontend::catalogue().into_iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check {name}"))
}

fn front_stage(kind: &str) -> Stage {
    let command = format!("{} frontend {{socket}} {kind}", program("conform-peer").display());
    Stage::new(&command, true).expect("a directory")
}

/// Every fault of a front-end is caught by its check, and the front-end without it passes all checks.
#[test]
fn every_fault_of_a_front_end_is_caught() {
    with_each(&frontend::catalogue(), |check| {
        let outcome = frontend::run(check, &mut front_stage("scripted"));
        assert!(outcome.result.is_ok(), "without fault: {}", report::line(&outcome));
    });
    with_each(FrontFault::ALL, |fault| {
        let broken = frontend::run(front_check(fault.caught_by()), &mut front_stage(fault.name()));
        assert!(report::is_bad(&broken), "{}: not caught: {}", fault.name(), report::line(&broken));
        eprintln!("{:<20} {}", fault.name(), report::line(&broken));
    });
}

/// volt-vmm with a guest that echoes fails no check. It needs protocol features, and says so.
#[test]
fn volt_vmm_passes() {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("SKIP volt_vmm_passes: /dev/kvm: {error}");
        return;
    }
    let vmm = program("volt-vmm");
    let command =
        format!("{} --kernel {{guest}} --mem 16M --serial none --net-socket {{socket}}", vmm.display());
    let outcomes = Mutex::new(Vec::new());
    let checks = frontend::catalogue();
    let parts: Vec<_> = checks.chunks(checks.len().div_ceil(3)).collect();
    with_each(&parts, |checks| {
        let mut stage = Stage::new(&command, false).expect("a directory");
        let here: Vec<_> = checks.iter().map(|check| frontend::run(check, &mut stage)).collect();
        outcomes.lock().expect("no panic").extend(here);
    });
    let outcomes = outcomes.into_inner().expect("no panic");
    assert_eq!(outcomes.len(), checks.len());
    let bad = |outcome: &&Outcome| {
        let known = outcome.check.name == "traffic/without-protocol"
            && matches!(outcome.result, Err(Finding::NotOffered(_)));
        outcome.result.is_err() && !known
    };
    let bad: Vec<_> = outcomes.iter().filter(bad).map(report::line).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
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

/// A hundred random sessions go as their model says; the model is no rubber stamp.
#[test]
fn random_sessions() {
    let play = |target: &Target, wire: &Wire| {
        with(target, wire, |bench| (1..=100).try_for_each(|seed| session(bench, seed)))
    };
    assert_eq!(play(&peer("scripted"), &Wire::Echo), Ok(()));
    for fault in ["base-off-by-one", "repeats", "believes-base", "stops-at-wrap", "double-completion"] {
        assert!(play(&peer(fault), &Wire::Echo).is_err(), "{fault} is not noticed");
    }
    if namespace("random_sessions").is_some() {
        let command = format!("{} --tap tap0 --socket {{socket}}", program("volt-netd").display());
        assert_eq!(play(&Target::Command(command), &Wire::Tap("tap0".to_owned())), Ok(()));
    }
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
    let mut names: Vec<_> =
        catalogue().iter().chain(&frontend::catalogue()).map(|check| check.name).collect();
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
