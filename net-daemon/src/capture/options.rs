//! The command line of `volt-netd ctl capture`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use volt_net::capture::CaptureOptions;

/// tcpdump's default snapshot length: longer than any frame.
const WHOLE: u32 = 262_144;

/// Options of `ctl capture`.
#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Output file, or - for standard output [default: -, unless standard output is a terminal]
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,

    /// Capture this queue pair only
    #[arg(long, value_name = "N")]
    pair: Option<usize>,

    /// Maximum number of bytes captured from each frame [default: the whole frame]
    #[arg(long, value_name = "BYTES", default_value_t = WHOLE, hide_default_value = true)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(WHOLE)))]
    snap: u32,

    /// Stop after this number of frames
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) count: Option<u64>,

    /// Stop after this time, for example 10s, 500ms, 2m or 1h
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub(super) time: Option<Duration>,

    /// Direction of the captured frames
    #[arg(long, value_enum, default_value_t = Direction::Both)]
    direction: Direction,
}

/// Direction of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Direction {
    /// Frames to the guest
    Rx,
    /// Frames from the guest
    Tx,
    /// Frames to and from the guest
    Both,
}

impl Options {
    /// Returns the request to the daemon.
    pub(super) fn request(&self) -> CaptureOptions {
        let (rx, tx) = (self.direction != Direction::Tx, self.direction != Direction::Rx);
        CaptureOptions { pair: self.pair, snap: self.snap, rx, tx }
    }
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a time: give a number with ms, s, m or h, like 10s");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let milliseconds = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(milliseconds).filter(|time| *time > 0).map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        for (text, milliseconds) in [("10s", 10_000), ("500ms", 500), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(time(text), Ok(Duration::from_millis(milliseconds)));
        }
        for text in
            ["", "s", "10", "0s", "-1s", "+", "1.5s", "10 s", "10sec", "1d", "ſ", "99999999999999999h"]
        {
            assert!(time(text).unwrap_err().contains(&format!("'{text}' is not a time")), "{text}");
        }
    }
}
