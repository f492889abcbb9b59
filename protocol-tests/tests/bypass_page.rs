//! The page `docs/reference/bypass-book.md` and the tests of the bypass book: each line has a test, and each
//! test has a line. Whether a test tries all of its lines, it checks itself at its end.

use std::collections::BTreeSet;
use std::fs;

use protocol_tests::bypass::page;
use protocol_tests::lab::repository;

/// This file, whose tests try nothing.
const PAGE: &str = "bypass_page.rs";
/// Fewer lines than this are a page that was not read.
const LEAST: usize = 300;

/// Returns the names of the test functions of the bypass book.
fn functions() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in fs::read_dir(repository().join("protocol-tests/tests")).expect("a folder").flatten() {
        let name = file.file_name().into_string().expect("a plain name");
        if name.starts_with("bypass_") && name != PAGE {
            let text = fs::read_to_string(file.path()).expect("a file");
            let functions = text.split("#[test]\nfn ").skip(1);
            found.extend(functions.map(|rest| rest.split('(').next().unwrap_or_default().to_owned()));
        }
    }
    found
}

#[test]
fn lines_and_tests_belong_together() {
    let lines = page::lines();
    assert!(lines.len() >= LEAST, "only {} lines", lines.len());
    let names: BTreeSet<_> = lines.iter().map(|line| &line.name).collect();
    assert_eq!(names.len(), lines.len(), "a name is there twice");
    let tests: BTreeSet<_> = lines.iter().map(|line| line.test.clone()).collect();
    assert_eq!(tests, functions(), "the page's tests, and those that exist");
}

#[test]
fn lines_say_what_happens() {
    for line in page::lines() {
        let digits = line.name.trim_start_matches(|letter: char| letter.is_ascii_uppercase());
        assert!(digits.parse::<u32>().is_ok() && digits.len() < line.name.len(), "{line:?}");
        let names_reason = line.result.contains('`') || !line.result.contains("refused, ");
        assert!(names_reason, "{} names no reason", line.name);
    }
}
