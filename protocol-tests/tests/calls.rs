//! Each line of the published tables is used by the test that it names, or is kept for cases that no test
//! covers. The test compares the tables with `protocol-tests/calls`, where `scripts/soak --calls` records the
//! lines that the test programs use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use protocol_tests::calls::{Found, Lists};
use protocol_tests::confinement::table::Table;
use protocol_tests::daemon;

/// Test programs that have used a line, by role and line.
type Record = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

const PROGRAMS: [&str; 2] = ["volt-netd", "volt-vmm"];

fn record_of(program: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("calls").join(program).with_extension("tsv")
}

/// Formats one line for each line of the table: role, line and tests, separated by tabs.
fn text(record: &Record) -> String {
    let mut text = String::new();
    for (role, lines) in record {
        for (line, tests) in lines {
            let tests: Vec<_> = tests.iter().map(String::as_str).collect();
            text += &format!("{role}\t{line}\t{}\n", tests.join(" "));
        }
    }
    text
}

fn parse(text: &str) -> Record {
    let mut record = Record::new();
    for line in text.lines() {
        let [role, line, tests] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let tests = tests.split(' ').map(str::to_owned).collect();
        record.entry(role.to_owned()).or_default().insert(line.to_owned(), tests);
    }
    record
}

/// Reads the traces in `directory`: `PROGRAM/TEST/RUN/trace.NUMBER`.
fn made_of(program: &str, table: &Table, directory: &Path) -> Record {
    let entries = |path: &Path| {
        let entries = std::fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    let lists = Lists::new(program, table);
    let mut record = Record::new();
    let mut beyond = BTreeSet::new();
    for test in entries(directory) {
        let name = test.file_name().and_then(|name| name.to_str()).expect("a test's name").to_owned();
        let mut found = Found::default();
        for run in entries(&test) {
            lists.find(&run, &mut found).unwrap_or_else(|error| panic!("{}: {error}", run.display()));
        }
        for (role, line) in found.used {
            record.entry(role).or_default().entry(line).or_default().insert(name.clone());
        }
        beyond.extend(found.beyond.into_iter().map(|call| (name.clone(), call)));
    }
    assert!(beyond.is_empty(), "calls that end the process: {beyond:#?}");
    record
}

/// Returns the wrong classes of a table's lines; some lines belong to other programs too.
fn wrong(table: &Table, own: &Record, all: &[Record]) -> Vec<String> {
    let users = |line: &str| -> BTreeSet<&str> {
        let records = all.iter().flat_map(BTreeMap::values);
        records.filter_map(|lines| lines.get(line)).flatten().map(String::as_str).collect()
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
                    wrong.insert(format!("{name}: is marked as kept, but used by {}", also()));
                }
                _ => {}
            }
            lines.insert((role.to_owned(), name));
        }
    }
    for (role, of_role) in own {
        for line in of_role.keys().filter(|line| !lines.contains(&(role.clone(), (*line).clone()))) {
            wrong
                .insert(format!("{role}: {line} was used but is not in the table: run scripts/soak --calls"));
        }
    }
    wrong.into_iter().collect()
}

#[test]
fn every_line_is_used_or_kept() {
    let tables = PROGRAMS.map(|program| Table::of(&daemon::program(program)));
    let records: Vec<Record> = PROGRAMS
        .iter()
        .zip(&tables)
        .map(|(program, table)| {
            let path = record_of(program);
            let traces = std::env::var_os("VOLT_TRACES").map(|traces| Path::new(&traces).join(program));
            // Possibly only one of them was traced again.
            if let Some(traces) = traces.filter(|traces| traces.exists()) {
                let record = made_of(program, table, &traces);
                std::fs::write(&path, text(&record)).expect("the record");
            }
            let text = std::fs::read_to_string(&path);
            parse(&text.unwrap_or_else(|error| panic!("{}: {error}", path.display())))
        })
        .collect();
    let wrong: Vec<_> =
        tables.iter().zip(&records).flat_map(|(table, own)| wrong(table, own, &records)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
