//! What came of the checks, as a table, as JSON and as JUnit.

use serde_json::{Value, json};

use super::Finding;
use super::run::Outcome;

/// The word for a result and its reason.
pub fn words(outcome: &Outcome) -> (&'static str, &str) {
    match &outcome.result {
        Ok(()) => ("pass", ""),
        Err(Finding::Fail(why)) => ("FAIL", why),
        Err(Finding::NotOffered(why)) => ("not offered", why),
        Err(Finding::Broken(why)) => ("BROKEN", why),
        Err(Finding::NoAccess(why)) => ("no access", why),
    }
}

/// Whether a result counts against the back-end.
pub fn is_bad(outcome: &Outcome) -> bool {
    matches!(outcome.result, Err(Finding::Fail(_) | Finding::Broken(_)))
}

/// One line of the table.
pub fn line(outcome: &Outcome) -> String {
    let (word, why) = words(outcome);
    let (name, level, took) = (outcome.check.name, outcome.check.level.text(), outcome.took.as_secs_f32());
    format!("{word:<11} {level:<6} {took:>6.2} s  {name:<44} {why}").trim_end().to_owned()
}

/// How many of each result.
pub fn summary(outcomes: &[Outcome]) -> String {
    let count = |word: &str| outcomes.iter().filter(|outcome| words(outcome).0 == word).count();
    format!(
        "{} passed, {} failed, {} broken connections, {} not offered, {} without access",
        count("pass"),
        count("FAIL"),
        count("BROKEN"),
        count("not offered"),
        count("no access")
    )
}

/// All results, as an array of objects.
pub fn json(outcomes: &[Outcome]) -> Value {
    let object = |outcome: &Outcome| {
        let (word, why) = words(outcome);
        let check = outcome.check;
        json!({
            "name": check.name, "result": word.to_lowercase(), "reason": why, "level": check.level.text(),
            "needs": check.needs.text(), "source": check.source, "seconds": outcome.took.as_secs_f64(),
        })
    };
    outcomes.iter().map(object).collect()
}

/// All results as a JUnit file. What was not offered or not reachable is skipped; a broken connection is an error.
pub fn junit(outcomes: &[Outcome]) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let count = |word: &str| outcomes.iter().filter(|outcome| words(outcome).0 == word).count();
    text += &format!(
        "<testsuite name=\"volt-conform\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">\n",
        outcomes.len(),
        count("FAIL"),
        count("BROKEN"),
        count("not offered") + count("no access")
    );
    for outcome in outcomes {
        let (word, why) = words(outcome);
        let element = match word {
            "FAIL" => "failure",
            "BROKEN" => "error",
            _ => "skipped",
        };
        let inner = match outcome.result {
            Ok(()) => String::new(),
            Err(_) => format!("<{element} message=\"{}\"/>", escaped(why)),
        };
        let (name, took) = (outcome.check.name, outcome.took.as_secs_f64());
        text += &format!("  <testcase name=\"{name}\" time=\"{took:.3}\">{inner}</testcase>\n");
    }
    text + "</testsuite>\n"
}

/// Text for an XML attribute; characters that XML 1.0 has no place for become `?`.
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
