//! Results of checks as a table, as JSON and as JUnit.

use serde_json::{Value, json};

use super::run::Outcome;
use super::{Finding, Level};

/// The words for results in the table.
const WORDS: [&str; 6] = ["pass", "FAIL", "BROKEN", "DIED", "not offered", "no access"];

/// Returns the word for a result and its reason.
pub fn words(outcome: &Outcome) -> (&'static str, String) {
    let word = match &outcome.result {
        Ok(()) => 0,
        Err(Finding::Fail(_)) => 1,
        Err(Finding::Broken(_)) => 2,
        Err(Finding::Died { .. }) => 3,
        Err(Finding::NotOffered(_)) => 4,
        Err(Finding::NoAccess(_)) => 5,
    };
    (WORDS[word], outcome.result.as_ref().err().map(Finding::reason).unwrap_or_default())
}

/// Returns whether a result counts against the back-end.
pub fn is_bad(outcome: &Outcome) -> bool {
    matches!(outcome.result, Err(Finding::Fail(_) | Finding::Broken(_) | Finding::Died { .. }))
}

/// Returns one line of the table.
pub fn line(outcome: &Outcome) -> String {
    let (word, why) = words(outcome);
    let (name, level, took) = (outcome.check.name, outcome.check.level.text(), outcome.took.as_secs_f32());
    format!("{word:<11} {level:<6} {took:>6.2} s  {name:<44} {why}").trim_end().to_owned()
}

/// The results of one group and level.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The group; `all` for the sum.
    pub group: &'static str,
    /// The level.
    pub level: Level,
    /// The number of each result, in the order of [`WORDS`].
    counts: [usize; WORDS.len()],
}

/// Summarizes the results by group, in the order of the checks, and by level, with the sum of each level.
pub fn summary(outcomes: &[Outcome]) -> Vec<Row> {
    let mut groups = Vec::new();
    for group in outcomes.iter().map(|outcome| outcome.check.group()) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    let levels = |group| [Level::Must, Level::Robust].map(|level| (group, level));
    let rows = groups.into_iter().chain(["all"]).flat_map(levels).map(|(group, level)| {
        let mine = |outcome: &&Outcome| {
            outcome.check.level == level && (group == "all" || outcome.check.group() == group)
        };
        let count = |word| outcomes.iter().filter(mine).filter(|outcome| words(outcome).0 == word).count();
        Row { group, level, counts: WORDS.map(count) }
    });
    rows.filter(|row| row.counts.iter().sum::<usize>() > 0).collect()
}

/// Returns the summary as a table with a line of totals.
pub fn summary_text(outcomes: &[Outcome]) -> String {
    let line = |group: &str, level: &str, cells: [String; WORDS.len()]| {
        format!("{group:<13} {level:<7} {}\n", cells.map(|cell| format!("{cell:>11}")).join(" "))
    };
    let mut text = line("group", "level", WORDS.map(str::to_owned));
    for row in summary(outcomes) {
        text += &line(row.group, row.level.text(), row.counts.map(|count| count.to_string()));
    }
    let count = |word: &str| outcomes.iter().filter(|outcome| words(outcome).0 == word).count();
    text + &format!(
        "{} passed, {} failed, {} broken connections, {} died, {} not offered, {} without access",
        count("pass"),
        count("FAIL"),
        count("BROKEN"),
        count("DIED"),
        count("not offered"),
        count("no access")
    )
}

/// Returns `checks`, an array of all results, and `summary`, an array by group and level.
pub fn json(outcomes: &[Outcome]) -> Value {
    let object = |outcome: &Outcome| {
        let (word, why) = words(outcome);
        let check = outcome.check;
        let ended = match &outcome.result {
            Err(Finding::Died { status, .. }) => Some(status.to_string()),
            _ => None,
        };
        json!({
            "name": check.name, "result": word.to_lowercase(), "reason": why, "level": check.level.text(),
            "needs": check.needs.text(), "source": check.source, "seconds": outcome.took.as_secs_f64(),
            "ended": ended,
        })
    };
    let row = |row: Row| {
        let mut object = json!({ "group": row.group, "level": row.level.text() });
        for (word, count) in WORDS.iter().zip(row.counts) {
            object[word.to_lowercase().replace(' ', "_")] = json!(count);
        }
        object
    };
    json!({
        "checks": outcomes.iter().map(object).collect::<Value>(),
        "summary": summary(outcomes).into_iter().map(row).collect::<Value>(),
    })
}

/// Returns all results as a JUnit file. Results without offer or access are skipped; a broken connection is
/// an error.
pub fn junit(outcomes: &[Outcome]) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let count = |word: &str| outcomes.iter().filter(|outcome| words(outcome).0 == word).count();
    text += &format!(
        "<testsuite name=\"volt-conform\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">\n",
        outcomes.len(),
        count("FAIL"),
        count("BROKEN") + count("DIED"),
        count("not offered") + count("no access")
    );
    for outcome in outcomes {
        let (word, why) = words(outcome);
        let element = match word {
            "FAIL" => "failure",
            "BROKEN" | "DIED" => "error",
            _ => "skipped",
        };
        let inner = match outcome.result {
            Ok(()) => String::new(),
            Err(_) => format!("<{element} message=\"{}\"/>", escaped(&why)),
        };
        let (name, took) = (outcome.check.name, outcome.took.as_secs_f64());
        text += &format!("  <testcase name=\"{name}\" time=\"{took:.3}\">{inner}</testcase>\n");
    }
    text + "</testsuite>\n"
}

/// Escapes text for an XML attribute; characters that XML 1.0 cannot contain become `?`.
fn escaped(text: &str) -> String {
    let escape = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '"' => "&quot;".to_owned(),
        c if c.is_control() => "?".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(escape).collect()
}
