//! Lines fit a screen beside another: 110 columns at most, as rustfmt's `max_width` has it for code. rustfmt
//! leaves comments and strings alone, and does not see scripts.

use std::fs;
use std::path::{Path, PathBuf};

use super::relative;
use protocol_tests::lab::repository;

const COLUMNS: usize = 110;

/// Folders with build results, downloads and fuzzing inputs.
const SKIPPED: [&str; 4] = ["target", "artifacts", "corpus", "guest"];

/// Files below `folder` that are `wanted`.
pub(super) fn files(folder: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy();
        let skipped =
            SKIPPED.contains(&&*name) && !in_scripts(&path) || name.starts_with('.') && name != ".ci";
        if path.is_dir() && !skipped {
            files(&path, wanted, found);
        } else if path.is_file() && wanted(&path) {
            found.push(path);
        }
    }
}

fn in_scripts(path: &Path) -> bool {
    path.starts_with(repository().join("scripts"))
}

/// Rust sources, TOML files, pages and scripts.
fn is_ours(path: &Path) -> bool {
    let name = path.to_string_lossy();
    in_scripts(path) || [".rs", ".toml", ".md", "run"].iter().any(|end| name.ends_with(end))
}

/// The numbers of the lines that are too long. A table in a comment or a page cannot be broken.
fn too_long(text: &str) -> Vec<usize> {
    let is_table =
        |line: &str| line.trim_start().trim_start_matches(['/', '!', '#']).trim_start().starts_with('|');
    let lines = text.lines().zip(1..);
    lines
        .filter(|(line, _)| line.chars().count() > COLUMNS && !is_table(line))
        .map(|(_, number)| number)
        .collect()
}

#[test]
fn lines_have_110_columns_at_most() {
    let mut found = Vec::new();
    files(&repository(), &is_ours, &mut found);
    assert!(found.len() > 100, "only {} files were found", found.len());
    found.sort();
    let mut said = String::new();
    for path in found {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for line in too_long(&text) {
            said += &format!("{}:{line}\n", relative(&path));
        }
    }
    let count = said.lines().count();
    assert!(said.is_empty(), "{said}{count} lines have more than {COLUMNS} columns: break them there");
}

#[test]
fn a_line_is_measured_in_characters_and_a_table_is_let_be() {
    let (just, over) = ("ä".repeat(COLUMNS), "ä".repeat(COLUMNS + 1));
    assert_eq!(too_long(&format!("{just}\n{over}\n\n    // {over}\n{just}")), [2, 4]);
    assert_eq!(too_long(&format!("//! | {over} |\n    /// | {over} |\n")), Vec::<usize>::new());
}
