//! Tests of policies as a whole.

use super::*;

mod decisions;
mod examples;
mod model;
mod texts;

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

/// Returns the answer's reason, or `allowed`.
fn answer(policy: &Policy, question: &str) -> &'static str {
    let question = question.parse().unwrap_or_else(|error| panic!("{question}: {error}"));
    match policy.decide(&question) {
        Ok(()) => "allowed",
        Err(reason) => reason.name(),
    }
}

#[track_caller]
fn assert_answers(policy: &Policy, answers: &[(&str, &str)]) {
    for (question, expected) in answers {
        let question: &str = question;
        assert_eq!(
            answer(policy, question),
            *expected,
            "{question}: {}",
            policy.explain(&question.parse().unwrap())
        );
    }
}
