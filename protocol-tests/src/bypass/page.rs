//! The lines of the page `docs/reference/bypass-book.md`: what is tried, what happens, and which test tries
//! it.

use std::collections::BTreeSet;
use std::fs;

use crate::lab::repository;

/// A line of the page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its name: a letter and a number.
    pub name: String,
    /// What happens, with reasons as inline code.
    pub result: String,
    /// The test function.
    pub test: String,
}

impl Line {
    /// Whether frames of this line may be refused for this reason.
    pub fn has_reason(&self, reason: &str) -> bool {
        self.result.split('`').skip(1).step_by(2).any(|code| code == reason)
    }
}

/// Returns the lines of the page: rows of four cells whose first one is a name.
///
/// # Panics
/// If the page cannot be read.
pub fn lines() -> Vec<Line> {
    let text = fs::read_to_string(repository().join("docs/reference/bypass-book.md")).expect("the page");
    text.lines().filter_map(line).collect()
}

fn line(row: &str) -> Option<Line> {
    let cells: Vec<_> = row.strip_prefix('|')?.strip_suffix('|')?.split('|').map(str::trim).collect();
    let [name, _, result, test] = cells[..] else { return None };
    let test = test.strip_prefix('`')?.strip_suffix('`')?;
    Some(Line { name: name.to_owned(), result: result.to_owned(), test: test.to_owned() })
}

/// The lines of one test, and those that it has tried.
#[derive(Debug)]
pub struct Tried {
    test: &'static str,
    lines: Vec<Line>,
    tried: BTreeSet<String>,
}

impl Tried {
    /// Returns the lines of a test.
    ///
    /// # Panics
    /// If the page has none.
    pub fn new(test: &'static str) -> Tried {
        let lines: Vec<_> = lines().into_iter().filter(|line| line.test == test).collect();
        assert!(!lines.is_empty(), "the page has no line for the test {test}");
        Tried { test, lines, tried: BTreeSet::new() }
    }

    /// Notes that the line is tried that `what` begins with, and returns it.
    ///
    /// # Panics
    /// If the page has no such line for this test.
    pub fn line(&mut self, what: &str) -> &Line {
        let name = what.split(' ').next().unwrap_or_default();
        let found = self.lines.iter().find(|line| line.name == name);
        let line = found.unwrap_or_else(|| panic!("the page has no line {name} for the test {}", self.test));
        self.tried.insert(name.to_owned());
        line
    }

    /// Checks that all lines were tried.
    ///
    /// # Panics
    /// If one was not.
    pub fn all(&self) {
        for line in &self.lines {
            assert!(self.tried.contains(&line.name), "{} does not try the line {}", self.test, line.name);
        }
    }
}
