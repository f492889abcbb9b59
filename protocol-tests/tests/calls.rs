//! Each line of the tables that the programs publish is used by the test that it names, or kept for what no
//! test brings about: compared with what `scripts/soak calls` saw the test programs use, which is kept in
//! `protocol-tests/calls`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use protocol_tests::calls::{Found, find};
use protocol_tests::confinement::Table;

/// Test programs that have used a line, by role and line.
type Record = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

const PROGRAMS: [&str; 1] = ["volt-netd"];

fn record_of(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("calls").join(program).with_extension("json")
}

/// What traces below `directory` say: `PROGRAM/TEST/RUN/trace.NUMBER`.
fn made_of(table: &Table, directory: &Path) -> Record {
    let entries = |path: &Path| {
        let entries = std::fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    let mut record = Record::new();
    let mut beyond = BTreeSet::new();
    for test in entries(directory) {
        let name = test.file_name().and_then(|name| name.to_str()).expect("a test's name").to_owned();
        let mut found = Found::default();
        for run in entries(&test) {
            find(table, &run, &mut found).unwrap_or_else(|error| panic!("{}: {error}", run.display()));
        }
        for (role, line) in found.used {
            record.entry(role).or_default().entry(line).or_default().insert(name.clone());
        }
        beyond.extend(found.beyond.into_iter().map(|call| (name.clone(), call)));
    }
    assert!(beyond.is_empty(), "calls that end the process: {beyond:#?}");
    record
}

/// What is wrong with the classes of a table's lines.
fn wrong(table: &Table, record: &Record) -> Vec<String> {
    let users = |line: &str| -> BTreeSet<&str> {
        record.values().filter_map(|lines| lines.get(line)).flatten().map(String::as_str).collect()
    };
    let mut wrong = BTreeSet::new();
    let mut lines = BTreeSet::new();
    for role in table.roles() {
        for line in table.lines(role) {
            let (name, users) = (line.name(), users(&line.name()));
            let also = || users.iter().copied().collect::<Vec<_>>().join(", ");
            match line.call["seen"].as_str() {
                Some(test) if !users.contains(test) => {
                    wrong.insert(format!("{name}: {test} does not use it; used by: {}", also()));
                }
                None if !users.is_empty() => {
                    wrong.insert(format!("{name}: is kept, and used by {}", also()));
                }
                _ => {}
            }
            lines.insert((role.to_owned(), name));
        }
    }
    for (role, of_role) in record {
        for line in of_role.keys().filter(|line| !lines.contains(&(role.clone(), (*line).clone()))) {
            wrong.insert(format!("{role}: {line} was used and is not in the table: run scripts/soak calls"));
        }
    }
    wrong.into_iter().collect()
}

#[test]
fn every_line_is_used_or_kept() {
    for program in PROGRAMS {
        let (table, path) = (Table::of(program), record_of(program));
        if let Some(traces) = std::env::var_os("VOLT_TRACES") {
            let record = made_of(&table, &Path::new(&traces).join(program));
            let text = serde_json::to_string_pretty(&record).expect("JSON");
            std::fs::write(&path, text + "\n").expect("the record");
        }
        let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let record: Record = serde_json::from_slice(&text).expect("a record");
        let wrong = wrong(&table, &record);
        assert!(wrong.is_empty(), "{program}:\n{}", wrong.join("\n"));
    }
}
