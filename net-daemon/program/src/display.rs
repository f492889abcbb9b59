//! Text output of `ctl`: aligned columns, and numbers with units.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;

/// A table with columns as wide as their widest cells.
#[derive(Debug, Default)]
pub struct Table {
    head: Vec<Column>,
    rows: Vec<Vec<String>>,
}

/// A column's title and alignment.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    title: &'static str,
    right: bool,
}

/// A left-aligned column, for words.
pub const fn left(title: &'static str) -> Column {
    Column { title, right: false }
}

/// A right-aligned column, for numbers.
pub const fn right(title: &'static str) -> Column {
    Column { title, right: true }
}

impl Table {
    /// Creates a table with these columns. Prints no line of titles if all are empty.
    pub fn new(head: impl IntoIterator<Item = Column>) -> Table {
        Table { head: head.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Returns whether the table has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// Writes a line for the titles and one for each row. Each ends with a line feed.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles: Vec<_> = self.head.iter().map(|column| column.title.to_owned()).collect();
        let titled = titles.iter().any(|title| !title.is_empty());
        let rows: Vec<_> = titled.then_some(&titles).into_iter().chain(&self.rows).collect();
        let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or_default();
        let widths: Vec<_> = (0..self.head.len()).map(width).collect();
        for row in rows {
            let cells = row.iter().zip(&self.head).zip(&widths).map(|((cell, column), width)| {
                if column.right { format!("{cell:>width$}") } else { format!("{cell:width$}") }
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Formats a number with a comma between groups of three digits: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a number of things: `1 restart`, `2 restarts`.
pub fn of(number: u64, thing: &str) -> String {
    format!("{} {thing}{}", count(number), if number == 1 { "" } else { "s" })
}

/// Formats an amount of memory: `512 B`, `1.5 KiB`, `40 GiB`.
pub fn bytes(number: u64) -> String {
    scaled(number as f64, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"])
}

/// Formats a bit rate: `942 Mbit/s`.
pub fn bits_per_second(rate: f64) -> String {
    scaled(rate, 1000.0, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

/// Formats a rate of things: `81,274`, and with one decimal below ten: `0.5`.
pub fn per_second(rate: f64) -> String {
    let tenths = (rate * 10.0).round() / 10.0;
    if tenths > 0.0 && tenths < 10.0 { format!("{tenths:.1}") } else { count(rate.round() as u64) }
}

/// Formats a duration with its two largest units: `12 s`, `3 min 5 s`, `4 d 2 h`.
pub fn time(seconds: u64) -> String {
    let units = [(86400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let largest = units.iter().position(|(size, _)| seconds >= *size).unwrap_or(units.len() - 1);
    let (size, name) = units[largest];
    let rest = units.get(largest + 1).map(|(next, name)| (seconds % size / next, name));
    match rest {
        Some((rest, next)) if rest > 0 => format!("{} {name} {rest} {next}", seconds / size),
        _ => format!("{} {name}", seconds / size),
    }
}

/// Formats a time in milliseconds since 1970: `2026-01-31T23:59:00.250Z`.
pub fn clock(milliseconds: u64) -> String {
    let time = i64::try_from(milliseconds).ok().and_then(|time| Timestamp::from_millisecond(time).ok());
    time.map_or_else(|| "-".to_owned(), |time| format!("{time:.3}"))
}

/// Formats a number with one decimal, unless that is zero or the number is 100 or more.
fn scaled(mut number: f64, step: f64, units: &[&str]) -> String {
    let mut units = units.iter();
    let mut unit = units.next().unwrap_or(&"");
    // A number that would be rounded up to the next unit uses that unit.
    while number >= step - 0.5
        && let Some(next) = units.next()
    {
        (number, unit) = (number / step, next);
    }
    let digits = usize::from(number < 99.95 && (number * 10.0).round() % 10.0 != 0.0);
    format!("{number:.digits$} {unit}")
}

/// Returns the rate at which a counter has grown from `before` in this time; `None` for a new counter, or one
/// that has started again.
pub fn rate(now: u64, before: Option<u64>, time: Duration) -> Option<f64> {
    let grown = now.checked_sub(before?)?;
    (!time.is_zero()).then(|| grown as f64 / time.as_secs_f64())
}

/// Formats a rate with `show`; a dash for `None`.
pub fn or_dash(rate: Option<f64>, show: fn(f64) -> String) -> String {
    rate.map_or_else(|| "-".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        let sizes = [0, 1023, 1024, 1536, 512 << 20, (1 << 30) - 1, 150 << 30, u64::MAX];
        let texts = ["0 B", "1023 B", "1 KiB", "1.5 KiB", "512 MiB", "1 GiB", "150 GiB", "16 EiB"];
        assert_eq!(sizes.map(bytes), texts);
        let rates = [0.0, 12.34, 999.4, 941_512_000.0, 1e9, 2.5e16];
        let texts = ["0 bit/s", "12.3 bit/s", "999 bit/s", "942 Mbit/s", "1 Gbit/s", "25000 Tbit/s"];
        assert_eq!(rates.map(bits_per_second), texts);
        assert_eq!([0.0, 0.04, 0.5, 9.96, 81_274.4].map(per_second), ["0", "0", "0.5", "10", "81,274"]);
        let times = [0, 59, 60, 185, 3600, 3661, 90_000, 86_400 * 400];
        let texts = ["0 s", "59 s", "1 min", "3 min 5 s", "1 h", "1 h 1 min", "1 d 1 h", "400 d"];
        assert_eq!(times.map(time), texts);
        assert_eq!(clock(1_769_904_000_250), "2026-02-01T00:00:00.250Z");
        assert_eq!(clock(u64::MAX), "-");
        assert_eq!((of(1, "restart"), of(2, "restart")), ("1 restart".into(), "2 restarts".into()));
    }

    #[test]
    fn a_counter_that_starts_again_has_no_rate() {
        let second = Duration::from_secs(2);
        assert_eq!(rate(30, Some(10), second), Some(10.0));
        assert_eq!(rate(30, Some(30), second), Some(0.0));
        assert_eq!(rate(5, Some(10), second), None);
        assert_eq!(rate(5, None, second), None);
        assert_eq!(rate(5, Some(1), Duration::ZERO), None);
        assert_eq!(or_dash(None, per_second), "-");
    }

    #[test]
    fn cells_stand_below_each_other() {
        let mut table = Table::new([left("kind"), right("frames"), left("why")]);
        table.row(["rx", "1,234", "too long"].map(str::to_owned));
        table.row(["control", "0", ""].map(str::to_owned));
        assert_eq!(table.to_string(), "kind     frames  why\nrx        1,234  too long\ncontrol       0\n");
        let mut facts = Table::new([left(""), left("")]);
        facts.row(["sandbox", "on"].map(str::to_owned));
        assert_eq!(facts.to_string(), "sandbox  on\n");
    }
}
