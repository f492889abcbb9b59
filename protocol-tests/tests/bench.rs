//! volt-bench produces figures. Their values are not tested.

use std::path::Path;
use std::process::{Command, Output};

use protocol_tests::daemon::program;
use protocol_tests::rig::namespace;

/// Runs volt-bench, or prints why `test` is skipped.
fn bench(test: &str, arguments: &[&str]) -> Option<Output> {
    namespace(test)?;
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        eprintln!("SKIP {test}: needs two processors");
        return None;
    }
    let output = Command::new(program("volt-bench")).args(arguments).output().expect("volt-bench starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(output)
}

fn results(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

#[test]
fn frames_both_ways_are_measured_beside_their_floor() {
    let dir = tempfile::tempdir().expect("a directory");
    let (json, svg) = (dir.path().join("r.json"), dir.path().join("r.svg"));
    let files = ["--json", json.to_str().expect("a path"), "--svg", svg.to_str().expect("a path")];
    let cases = ["frames", "--rounds", "1", "--probes", "20", "--only", "tx-64", "--only", "rx-65000"];
    let test = "frames_both_ways_are_measured_beside_their_floor";
    let Some(output) = bench(test, &[&cases[..], &files].concat()) else { return };
    let results = results(&json);
    for (number, name) in ["tx-64", "rx-65000"].iter().enumerate() {
        let case = &results["cases"][number];
        assert_eq!(case["case"], *name);
        for figure in ["floor_same_ns", "floor_best_ns", "cpu_ns", "ratio_same", "frames_per_second"] {
            assert!(case[figure]["median"].as_f64().is_some_and(|value| value > 0.0), "{figure} of {case}");
        }
        assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("| {name} |")));
    }
    assert!(results["latency"][0]["p50_us"]["median"].as_f64().is_some_and(|time| time > 0.0));
    assert!(std::fs::read_to_string(svg).expect("a plot").ends_with("</svg>\n"));
}

#[test]
fn a_replaced_daemon_is_found_again_and_its_gap_told() {
    let test = "a_replaced_daemon_is_found_again_and_its_gap_told";
    let arguments = ["continuity", "--events", "1", "--only", "restart", "--only", "hand-over"];
    let Some(output) = bench(test, &arguments) else { return };
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    for row in ["| hand-over | 1 |", "| unsupervised restart | 1 |"] {
        assert!(table.contains(row), "{table}");
    }
}

#[test]
fn migrations_are_measured_with_one_pair_and_with_four() {
    let test = "migrations_are_measured_with_one_pair_and_with_four";
    let Some(output) = bench(test, &["migration", "--rounds", "2"]) else { return };
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    for row in ["| 1 | 2 |", "| 4 | 2 |"] {
        assert!(table.contains(row), "{table}");
    }
}

#[test]
fn a_back_end_without_a_socket_is_wrong_usage() {
    let output = Command::new(program("volt-bench")).args(["frames", "--command", "true"]).output();
    let output = output.expect("volt-bench starts");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("names no {socket}"));
}
