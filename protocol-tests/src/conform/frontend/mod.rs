//! Checks of a front-end: a scripted back-end behaves, dies, hangs or lies, and the front-end must handle it.
//!
//! One front-end serves many checks. Each check plays one or several back-ends at the front-end's socket and
//! disconnects. The front-end reconnects and meets the next check. One that does not is restarted for each
//! check.

mod conversation;
mod losses;
mod requests;
mod stage;
mod traffic;

pub use stage::Stage;

use super::run::Outcome;
use super::{Check, Finding};
use std::time::Instant;

/// Declares checks of front-ends: name, level, needs, source, promise, script.
macro_rules! front_checks {
    ($($name:literal, $level:ident, $needs:ident, $source:literal, $promise:literal, $run:expr;)*) => {
        pub(super) const CHECKS: &[$crate::conform::Check] = &[$($crate::conform::Check {
            name: $name,
            promise: $promise,
            source: $source,
            level: $crate::conform::Level::$level,
            needs: $crate::conform::Needs::$needs,
            run: $crate::conform::Script::Backend($run),
        }),*];
    };
}
use front_checks;

/// Returns all checks of front-ends, group by group.
pub fn catalogue() -> Vec<&'static Check> {
    [conversation::CHECKS, traffic::CHECKS, requests::CHECKS, losses::CHECKS].into_iter().flatten().collect()
}

/// Runs a check on the front-end of `stage`.
pub fn run(check: &'static Check, stage: &mut Stage) -> Outcome {
    let start = Instant::now();
    let result = match check.run {
        super::Script::Backend(script) => script(stage),
        super::Script::Frontend(_) => Err(Finding::NoAccess("it tests back-ends".to_owned())),
    };
    Outcome { check, result: stage.verdict(result), took: start.elapsed() }
}
