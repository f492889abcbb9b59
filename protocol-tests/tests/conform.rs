//! Calibration of volt-conform: volt-netd fails no check, and each broken back-end is caught by the check
//! that names its fault, which the unbroken back-end passes.

use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};

use protocol_tests::backend::fault::Fault;
use protocol_tests::backend::{Backend, Script};
use protocol_tests::conform::frontend::{self, Stage};
use protocol_tests::conform::random::session;
use protocol_tests::conform::run::{Outcome, Subject, Target, Wire};
use protocol_tests::conform::{Check, Finding, Level, catalogue, report};
use protocol_tests::daemon::program;
use protocol_tests::front_peer::FrontFault;
use protocol_tests::rig::namespace;

/// Its tables are compared with the results of a run.
const BENCHMARKS: &str = include_str!("../../docs/benchmarks.md");

fn check(name: &str) -> &'static Check {
    let found = catalogue().into_iter().find(|check| check.name == name);
    found.unwrap_or_else(|| panic!("no check {name}"))
}

/// One of the echoing back-ends.
fn peer(kind: &str) -> Subject {
    let command = format!("{} {{socket}} {kind}", program("conform-peer").display());
    Subject::new(Target::Command(command), Wire::Echo)
}

/// Number of faulty peers at a time: most of a fault's time is waiting.
const WAITING: usize = 16;
/// Number of working daemons and guests at a time.
const WORKING: usize = 4;

/// Calls `what` with each of `items`, at most `at_a_time` at once.
fn with_each<T: Sync>(at_a_time: usize, items: &[T], what: impl Fn(&T) + Sync) {
    with_each_on(at_a_time, items, || (), |(), item| what(item));
}

/// Like `with_each`, with a resource made once for each worker.
fn with_each_on<T: Sync, P>(
    at_a_time: usize,
    items: &[T],
    place: impl Fn() -> P + Sync,
    what: impl Fn(&mut P, &T) + Sync,
) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..at_a_time {
            scope.spawn(|| {
                let mut place = place();
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    what(&mut place, item);
                }
            });
        }
    });
}

/// Returns the results of all checks of a back-end, in their order.
fn outcomes(subject: &Subject, checks: &[&'static Check]) -> Vec<Outcome> {
    let outcomes = Mutex::new(Vec::new());
    with_each(WORKING, checks, |check| {
        let outcome = subject.run(check);
        outcomes.lock().expect("no panic").push(outcome);
    });
    let mut outcomes = outcomes.into_inner().expect("no panic");
    outcomes.sort_by_key(|outcome| checks.iter().position(|check| check.name == outcome.check.name));
    outcomes
}

/// Every fault is caught by its checks, and the back-end without it passes them.
#[test]
fn every_fault_is_caught() {
    let peers: Vec<_> = Fault::ALL.iter().map(|fault| (fault, peer(fault.name()))).collect();
    let checks = peers
        .iter()
        .flat_map(|(fault, peer)| fault.caught_by().split(", ").map(move |name| (*fault, peer, check(name))));
    with_each(WAITING, &checks.collect::<Vec<_>>(), |(fault, peer, check)| {
        let parent = scripted().iter().find(|outcome| outcome.check.name == check.name).expect("an outcome");
        assert!(parent.result.is_ok(), "{}: without fault: {}", fault.name(), report::line(parent));
        let broken = peer.run(check);
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

/// Every fault of a front-end is caught by its checks; the front-end without fault passes all checks; each
/// check fails on a known front-end.
#[test]
fn every_fault_of_a_front_end_is_caught() {
    with_each(WAITING, &frontend::catalogue(), |check| {
        let outcome = frontend::run(check, &mut front_stage("scripted"));
        assert!(outcome.result.is_ok(), "without fault: {}", report::line(&outcome));
    });
    let checks: Vec<_> = FrontFault::ALL
        .iter()
        .flat_map(|fault| fault.caught_by().split(", ").map(move |name| (fault, front_check(name))))
        .collect();
    with_each(WAITING, &checks, |(fault, check)| {
        let broken = frontend::run(check, &mut front_stage(fault.name()));
        assert!(report::is_bad(&broken), "{}: not caught: {}", fault.name(), report::line(&broken));
        eprintln!("{:<20} {}", fault.name(), report::line(&broken));
    });
    let known = |name: &str| checks.iter().any(|(_, check)| check.name == name);
    let never: Vec<_> =
        frontend::catalogue().into_iter().map(|check| check.name).filter(|name| !known(name)).collect();
    assert!(never.is_empty(), "no known front-end fails these checks: {never:?}");
}

/// volt-vmm with an echoing guest fails no check. It reports that it needs protocol features.
#[test]
fn volt_vmm_passes() {
    if let Err(error) = std::fs::File::options().read(true).write(true).open("/dev/kvm") {
        eprintln!("SKIP volt_vmm_passes: /dev/kvm: {error}");
        return;
    }
    let vmm = program("volt-vmm");
    let command = format!(
        "{} --kernel {{guest}} --transport mmio --mem 16M --serial none --net-socket {{socket}}",
        vmm.display()
    );
    let outcomes = Mutex::new(Vec::new());
    // The checks in which the front-end waits come last and take longest.
    let checks: Vec<_> = frontend::catalogue().into_iter().rev().collect();
    let stage = || Stage::new(&command, false).expect("a directory");
    with_each_on(WORKING, &checks, stage, |stage, check| {
        let outcome = frontend::run(check, stage);
        outcomes.lock().expect("no panic").push(outcome);
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

/// volt-netd passes every check, and offers all tested features: with one pair all checks but those of
/// several pairs and of the control queue, and with two pairs those.
#[test]
fn volt_netd_passes() {
    if namespace("volt_netd_passes").is_none() {
        return;
    }
    let command = format!("{} --tap tap0 --socket {{socket}}", program("volt-netd").display());
    let of_several =
        |check: &&Check| check.name.starts_with("queues/") || check.name == "migration/control-status";
    let (several, one): (Vec<_>, Vec<_>) = catalogue().into_iter().partition(of_several);
    let tap = Subject::new(Target::Command(command.clone()), Wire::Tap("tap0".to_owned()));
    let mut all = outcomes(&tap, &one);
    let two = Target::Command(format!("{command} --queues 2"));
    all.extend(outcomes(&Subject::new(two, Wire::MultiQueueTap("tap0".to_owned())), &several));
    let bad: Vec<_> = all.iter().filter(|outcome| outcome.result.is_err()).map(report::line).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// Listens on both kinds of sockets in `directory`, and returns every frame of every daemon.
fn echo_peers(directory: &Path) {
    let listener = UnixListener::bind(directory.join("stream")).expect("a socket");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut back = stream.try_clone().expect("a descriptor");
                let _ = std::io::copy(&mut stream, &mut back);
            });
        }
    });
    let socket = UnixDatagram::bind(directory.join("dgram")).expect("a socket");
    std::thread::spawn(move || {
        let mut frame = vec![0; 1 << 17];
        while let Ok((len, from)) = socket.recv_from(&mut frame) {
            // A daemon that has ended.
            let _ = from.as_pathname().map(|path| socket.send_to(&frame[..len], path));
        }
    });
}

/// Returns the checks for a port without a virtio-net header: those of one pair, except those of offloads,
/// which expect on the wire what the device completes and cuts.
fn without_header() -> Vec<&'static Check> {
    let left_out = |check: &&Check| {
        let group = ["queues/", "offloads/"].iter().any(|group| check.name.starts_with(group));
        group || check.name == "migration/control-status"
    };
    catalogue().into_iter().filter(|check| !left_out(check)).collect()
}

/// By AF_XDP on a veth, volt-netd passes every check but two: one sends frames that exceed the MTU, and one
/// leaves a checksum to the interface, of which a veth tells nothing by AF_XDP.
#[test]
fn volt_netd_passes_by_xdp() {
    if !rustix::process::geteuid().is_root() || namespace("volt_netd_passes_by_xdp").is_none() {
        return eprintln!("SKIP volt_netd_passes_by_xdp: not root, or no namespace");
    }
    let command = format!("{} --xdp tap0 --control none --socket {{socket}}", program("volt-netd").display());
    let cannot = ["rings/jumbo", "rings/headers-not-stale"];
    let checks: Vec<_> = without_header().into_iter().filter(|check| !cannot.contains(&check.name)).collect();
    let all = outcomes(&Subject::new(Target::Command(command), Wire::Veth("tap0".to_owned())), &checks);
    let bad: Vec<_> = all.iter().filter(|outcome| outcome.result.is_err()).map(report::line).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

/// With a peer that returns its frames, volt-netd passes every check of one pair, except those of offloads.
#[test]
fn volt_netd_passes_on_peers() {
    let directory = tempfile::tempdir().expect("a directory");
    echo_peers(directory.path());
    let one = without_header();
    for port in ["--stream {peer}/stream", "--dgram {peer}/dgram,local={socket}.own"] {
        let port = port.replace("{peer}", &directory.path().display().to_string());
        let netd = program("volt-netd");
        let command = format!("{} {port} --control none --socket {{socket}}", netd.display());
        let all = outcomes(&Subject::new(Target::Command(command), Wire::Echo), &one);
        let bad: Vec<_> = all.iter().filter(|outcome| outcome.result.is_err()).map(report::line).collect();
        assert!(bad.is_empty(), "{port}:\n{}", bad.join("\n"));
    }
}

/// The calibration table of docs/benchmarks.md has the results of the two echoing back-ends, group by group.
#[test]
fn benchmarks_have_the_calibration() {
    let checks = catalogue();
    let columns = [of_crate(), scripted()];
    let mut groups: Vec<_> = checks.iter().filter_map(|check| check.name.split('/').next()).collect();
    groups.sort_unstable();
    groups.dedup();
    let mut lacking = Vec::new();
    for group in groups.into_iter().chain(["all"]) {
        let counts = columns.map(|outcomes| {
            let mine =
                |outcome: &&Outcome| group == "all" || outcome.check.name.split('/').next() == Some(group);
            let count = |wanted: fn(&Outcome) -> bool| {
                outcomes.iter().filter(mine).filter(|outcome| wanted(outcome)).count()
            };
            let [passed, bad] = [count(|outcome| outcome.result.is_ok()), count(report::is_bad)];
            let total = outcomes.iter().filter(mine).count();
            (total, format!("{passed} / {bad} / {}", total - passed - bad))
        });
        let [(total, crates), (_, scripted)] = counts;
        let row = format!("| {group} | {total} | {total} / 0 / 0 | {crates} | {scripted} |");
        if !BENCHMARKS.contains(&row) {
            lacking.push(row);
        }
    }
    let bad = columns.iter().copied().flatten().filter(|outcome| report::is_bad(outcome)).map(report::line);
    assert!(lacking.is_empty(), "should be:\n{}\n{}", lacking.join("\n"), bad.collect::<Vec<_>>().join("\n"));
}

/// docs/benchmarks.md gives the level and the reason of each failure of the crate's back-end, and no others.
#[test]
fn benchmarks_explain_the_failures_of_the_crate() {
    let table = BENCHMARKS.split("What the crate's back-end does not pass:").nth(1).expect("a table");
    let rows = table.lines().skip_while(|line| !line.contains('/')).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let mut explained: Vec<_> = cells
        .flat_map(|cells| cells[1].split(", ").map(|name| format!("{} {name}", cells[2])).collect::<Vec<_>>())
        .collect();
    let bad = of_crate().iter().filter(|outcome| report::is_bad(outcome));
    let mut failed: Vec<_> =
        bad.map(|outcome| format!("{} {}", outcome.check.level.text(), outcome.check.name)).collect();
    explained.sort_unstable();
    failed.sort_unstable();
    assert_eq!(explained, failed);
}

/// Every check of back-ends fails on some back-end: on a broken one, or on one of the two correct ones.
#[test]
fn every_check_can_fail() {
    let known: Vec<_> = Fault::ALL.iter().flat_map(|fault| fault.caught_by().split(", ")).collect();
    let failed = [complaints(of_crate()), complaints(scripted())].concat();
    let never: Vec<_> = catalogue().into_iter().map(|check| check.name).collect();
    let never: Vec<_> = never.iter().filter(|name| !known.contains(name) && !failed.contains(name)).collect();
    assert!(never.is_empty(), "no known back-end fails these checks: {never:?}");
}

/// A hundred random sessions follow their model; the model rejects faulty back-ends.
#[test]
fn random_sessions() {
    let play = |subject: &Subject| subject.with(|bench| (1..=100).try_for_each(|seed| session(bench, seed)));
    assert_eq!(play(&peer("scripted")), Ok(()));
    let faults = ["base-off-by-one", "repeats", "base-zero", "stops-at-wrap", "double-completion"];
    with_each(WAITING, &faults, |fault| {
        assert!(play(&peer(fault)).is_err(), "{fault} is not noticed");
    });
    if namespace("random_sessions").is_some() {
        let command = format!("{} --tap tap0 --socket {{socket}}", program("volt-netd").display());
        let subject = Subject::new(Target::Command(command), Wire::Tap("tap0".to_owned()));
        assert_eq!(play(&subject), Ok(()));
    }
}

/// A silent back-end and one that does not start are results, not errors of the tool.
#[test]
fn a_dead_back_end_is_a_result() {
    let version_1 = |target| {
        let outcome = Subject::new(target, Wire::Unseen).run(check("messages/version-1"));
        (report::words(&outcome).0, report::line(&outcome))
    };
    let (word, line) = version_1(Target::Command("false {socket}".to_owned()));
    assert!(word == "DIED" && line.contains("exit status: 1"), "{line}");
    let (word, line) = version_1(Target::Command("sleep 60; : {socket}".to_owned()));
    assert_eq!(word, "BROKEN", "{line}");
    let dir = tempfile::tempdir().expect("a directory");
    let silent = std::os::unix::net::UnixListener::bind(dir.path().join("s")).expect("a listener");
    let (word, line) = version_1(Target::Socket(dir.path().join("s")));
    assert_eq!(word, "BROKEN", "{line}");
    drop(silent);
}

/// Returns the results of all checks of the back-end on `vhost-user-backend`.
fn of_crate() -> &'static [Outcome] {
    static ALL: OnceLock<Vec<Outcome>> = OnceLock::new();
    ALL.get_or_init(|| outcomes(&peer("crate"), &catalogue()))
}

/// Returns the results of all checks of the scripted back-end.
fn scripted() -> &'static [Outcome] {
    static ALL: OnceLock<Vec<Outcome>> = OnceLock::new();
    ALL.get_or_init(|| outcomes(&peer("scripted"), &catalogue()))
}

/// Returns the failures of a back-end, without their times.
fn complaints(outcomes: &[Outcome]) -> Vec<&'static str> {
    outcomes.iter().filter(|outcome| report::is_bad(outcome)).map(|outcome| outcome.check.name).collect()
}

/// A back-end that ends after one connection fails one more check than the same back-end that continues. So
/// does one that stays and accepts no second connection.
#[test]
fn one_connection_is_one_complaint() {
    const ITS_OWN: &str = "messages/second-connection";
    let once = outcomes(&peer("one-connection"), &catalogue());
    let others: Vec<_> = complaints(&once).into_iter().filter(|name| *name != ITS_OWN).collect();
    let lines: Vec<_> = once.iter().filter(|outcome| report::is_bad(outcome)).map(report::line).collect();
    assert_eq!(others, complaints(scripted()), "{}", lines.join("\n"));
    assert_eq!(lines.len(), others.len() + 1, "{}", lines.join("\n"));
    let own = once.iter().find(|outcome| outcome.check.name == ITS_OWN).map(report::line);
    assert!(own.as_deref().is_some_and(|line| line.contains("exit status: 0")), "{own:?}");

    let several = ["messages/half-and-gone", "states/resumed", "states/wrong-base", "hostile/loop", ITS_OWN];
    let deaf = outcomes(&peer("deaf"), &several.map(check));
    assert_eq!(complaints(&deaf), [ITS_OWN]);
}

/// Behaviour that the specifications permit, or only advise against, fails no must: features that differ
/// between two connections, an accepted base, unrequested calls, reordered frames, emptied disabled rings,
/// rings that wait for a kick.
#[test]
fn what_is_permitted_fails_no_must() {
    let permitted =
        ["features-change", "believes-base", "calls-always", "swaps", "discards-disabled", "starts-by-kick"];
    let must: Vec<_> = catalogue().into_iter().filter(|check| check.level == Level::Must).collect();
    with_each(WORKING, &permitted, |name| {
        let subject = peer(name);
        let outcomes: Vec<_> = must.iter().map(|check| subject.run(check)).collect();
        let bad: Vec<_> =
            outcomes.iter().filter(|outcome| report::is_bad(outcome)).map(report::line).collect();
        assert!(bad.is_empty(), "{name}:\n{}", bad.join("\n"));
    });
}

/// Checks that start one ring of a pair have twins that start both; a back-end that starts with the pair
/// passes the twins.
#[test]
fn twins_start_the_pair() {
    let subject = peer("pair-only");
    for (alone, pair) in [
        ("states/enable-first", "states/enable-first-pair"),
        ("states/disabled-receive", "states/disabled-pair"),
    ] {
        let [alone, pair] = [alone, pair].map(|name| subject.run(check(name)));
        assert!(
            report::is_bad(&alone) && pair.result.is_ok(),
            "{}\n{}",
            report::line(&alone),
            report::line(&pair)
        );
    }
}

/// A back-end that already listens cannot be restarted: checks that need a restart do not fail.
#[test]
fn one_connection_of_a_socket_is_one_complaint() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = Script { echo: true, fault: Some(Fault::OneConnection), ..Script::full() };
    let backend = Backend::listen(&dir.path().join("s"), script).expect("a listener");
    let subject = Subject::new(Target::Socket(dir.path().join("s")), Wire::Echo);
    let names = ["messages/version-1", "messages/second-connection", "states/resumed"];
    let words = names.map(|name| report::words(&subject.run(check(name))).0);
    assert_eq!(words, ["no access", "BROKEN", "no access"]);
    drop(backend);
}

/// --tap creates the TAP for a command in its namespace; a back-end elsewhere would never serve it.
#[test]
fn a_tap_is_for_a_command() {
    let mut conform = Command::new(program("volt-conform"));
    let output = conform.args(["backend", "--socket", "s", "--tap", "tap0"]).output().expect("volt-conform");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("'--socket <PATH>' cannot be used with") && said.contains("--tap"), "{said}");
}

/// The death of a back-end is reported with its signal or status, in every form of the results.
#[test]
fn a_back_end_that_dies_says_how() {
    let deaths = [
        ("aborts", "signal: 6 (SIGABRT)"),
        ("segfaults", "signal: 11 (SIGSEGV)"),
        ("exits", "exit status: 3"),
    ];
    with_each(WAITING, &deaths, |(name, how)| {
        let fault = Fault::named(name).expect("a fault");
        let outcome = peer(name).run(check(fault.caught_by().split(", ").next().expect("a check")));
        let line = report::line(&outcome);
        assert!(line.starts_with("DIED ") && line.contains(how), "{name}: {line}");
        let json = report::json(std::slice::from_ref(&outcome));
        assert!(json["checks"][0]["ended"].as_str().is_some_and(|ended| ended.starts_with(how)), "{json:#}");
        assert_eq!(json["checks"][0]["result"], "died");
        assert_eq!(json["summary"][0]["died"], 1);
        let junit = report::junit(&[outcome]);
        assert!(junit.contains("errors=\"1\"") && junit.contains(how), "{junit}");
    });
}
