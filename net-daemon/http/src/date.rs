//! The time of day, as an answer's head has it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds.
const DAY: u64 = 24 * 60 * 60;
/// From that of 1 January 1970 on.
const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
/// Each with its days in a year that is no leap year.
const MONTHS: [(&str, u64); 12] = [
    ("Jan", 31),
    ("Feb", 28),
    ("Mar", 31),
    ("Apr", 30),
    ("May", 31),
    ("Jun", 30),
    ("Jul", 31),
    ("Aug", 31),
    ("Sep", 30),
    ("Oct", 31),
    ("Nov", 30),
    ("Dec", 31),
];

/// `time` as an IMF-fixdate (RFC 9110, section 5.6.7), like `Sun, 06 Nov 1994 08:49:37 GMT`. A clock from
/// before 1970 counts as 1970.
pub(crate) fn imf_fixdate(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, second) = (seconds / DAY, seconds % DAY);
    let (year, month, day) = civil(days);
    let weekday = WEEKDAYS[(days % 7) as usize];
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    format!("{weekday}, {day:02} {month} {year:04} {hours:02}:{minutes:02}:{seconds:02} GMT")
}

/// Year, month and day, `days` after 1 January 1970. A step for each year: the system's clock ends in 2262.
fn civil(mut days: u64) -> (u64, &'static str, u64) {
    let mut year = 1970;
    while days >= 365 + leap_days(year) {
        days -= 365 + leap_days(year);
        year += 1;
    }
    for (month, length) in MONTHS {
        let length = if month == "Feb" { length + leap_days(year) } else { length };
        if days < length {
            return (year, month, days + 1);
        }
        days -= length;
    }
    unreachable!("the months of a year have its days")
}

/// 1 in a leap year, otherwise 0.
fn leap_days(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    u64::from(leap)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT"),
            (1_735_689_599, "Tue, 31 Dec 2024 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
        ] {
            assert_eq!(imf_fixdate(UNIX_EPOCH + Duration::from_secs(seconds)), date);
        }
        assert_eq!(imf_fixdate(UNIX_EPOCH - Duration::from_secs(1)), "Thu, 01 Jan 1970 00:00:00 GMT");
    }

    /// Over four centuries, after which the calendar repeats.
    #[test]
    fn a_day_follows_the_other() {
        let mut before = civil(0);
        for days in 1..146_097 {
            let (year, month, day) = civil(days);
            let next_day = year == before.0 && month == before.1 && day == before.2 + 1;
            let next_month = year == before.0 && month != before.1 && day == 1;
            let next_year = year == before.0 + 1 && (month, day, before.1, before.2) == ("Jan", 1, "Dec", 31);
            assert!(next_day || next_month || next_year, "{before:?}, {:?}", (year, month, day));
            before = (year, month, day);
        }
    }
}
