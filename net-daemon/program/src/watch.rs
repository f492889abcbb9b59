//! `ctl status --watch`: queries a status repeatedly, and shows it with the changes.

use std::fmt::Display;
use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use thiserror::Error;

use crate::output;

/// Time to the next query of a program that does not answer.
const RETRY: Duration = Duration::from_millis(100);
/// Moves the cursor to the upper left corner and clears the screen (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

/// Why watching ended.
#[derive(Debug, Error)]
pub enum WatchError<E> {
    /// The program does not answer.
    #[error(transparent)]
    Ask(E),
    /// Standard output cannot be written.
    #[error(transparent)]
    Print(io::Error),
}

/// The last answer.
#[derive(Debug)]
pub struct Before<S> {
    /// The answer.
    pub seen: S,
    /// Its age.
    pub time: Duration,
}

/// Calls `ask` at each `interval`, and prints the text that `show` makes of the answer and the last one: on a
/// terminal in place, otherwise in blocks with an empty line between. Returns when the reader has closed its
/// end.
///
/// # Errors
///
/// There is no first answer, or none for `patience`; standard output cannot be written.
pub fn watch<S, E>(
    interval: Duration,
    patience: Duration,
    mut ask: impl FnMut() -> Result<S, E>,
    show: impl Fn(&S, Option<&Before<S>>) -> String,
) -> Result<(), WatchError<E>> {
    let in_place = io::stdout().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb");
    let (mut seen, mut at) = (ask().map_err(WatchError::Ask)?, Instant::now());
    let mut before = None;
    loop {
        let block = format!("{:.0}  {}", Timestamp::now(), show(&seen, before.as_ref()).trim_end());
        let block: &dyn Display = match before {
            _ if in_place => &format_args!("{CLEAR}{block}"),
            Some(_) => &format_args!("\n{block}"),
            None => &block,
        };
        if !output::print_to_reader(block).map_err(WatchError::Print)? {
            return Ok(());
        }
        thread::sleep(interval.saturating_sub(at.elapsed()));
        let next = ask_within(patience, &mut ask).map_err(WatchError::Ask)?;
        let now = Instant::now();
        before = Some(Before { seen: std::mem::replace(&mut seen, next), time: now - at });
        at = now;
    }
}

/// Retries until there is an answer, at most for `patience`: a program that is being replaced answers a
/// little later.
fn ask_within<S, E>(patience: Duration, ask: &mut impl FnMut() -> Result<S, E>) -> Result<S, E> {
    let start = Instant::now();
    loop {
        match ask() {
            Err(_) if start.elapsed() < patience => thread::sleep(RETRY),
            answer => return answer,
        }
    }
}

/// Parses an interval in seconds, such as `1` or `0.5`.
///
/// # Errors
///
/// A message for the user, if the text is not a number, or the interval is too short or too long.
pub fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=86400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "seconds from 0.1 to 86400, like 1 or 0.5".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_time_of_day() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "-1", "nan", "inf", "1s", "", "86401"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn who_does_not_answer_is_asked_again_for_a_while() {
        let mut asked = 0;
        let mut third_time = || {
            asked += 1;
            if asked < 3 { Err("not yet") } else { Ok(asked) }
        };
        assert_eq!(ask_within(Duration::from_secs(20), &mut third_time), Ok(3));
        assert_eq!(ask_within(Duration::ZERO, &mut || Err::<(), _>("gone")), Err("gone"));
    }
}
