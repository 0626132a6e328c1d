//! Text for terminals, logs and records: times, and strings that somebody else chose.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// `text` without octets that move a cursor, change a colour or turn the direction of writing.
///
/// Names, labels and files' contents come from outside. C0, DEL and C1 controls, line and paragraph separators and the
/// bidirectional controls become `\u{…}`.
pub fn clean(text: &str) -> String {
    if text.bytes().all(|octet| (0x20..0x7f).contains(&octet)) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if moves_cursor(c) {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

fn moves_cursor(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// RFC 3339 in UTC with nanoseconds, as protojson writes a Timestamp: `2026-11-21T04:27:15.000000001Z`.
pub fn rfc3339(time: SystemTime) -> String {
    let (year, month, day, seconds, nanos) = civil(time);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// The time of day in UTC to milliseconds: `04:27:15.123`.
pub fn time_of_day(time: SystemTime) -> String {
    let (_, _, _, seconds, nanos) = civil(time);
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, nanos / 1_000_000)
}

/// Year, month, day, second of the day, nanosecond; UTC. A time before 1970 counts as 1970.
fn civil(time: SystemTime) -> (u64, u64, u64, u64, u32) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // Days since 0000-03-01, so that the leap day is a year's last (H. Hinnant, "chrono-compatible low-level date algorithms").
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day, seconds, since.subsec_nanos())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[track_caller]
    fn at(seconds: u64, nanos: u32, text: &str) {
        assert_eq!(rfc3339(UNIX_EPOCH + Duration::new(seconds, nanos)), text);
    }

    #[test]
    fn times_are_written_as_rfc_3339() {
        at(0, 0, "1970-01-01T00:00:00.000000000Z");
        at(951_782_399, 999_999_999, "2000-02-28T23:59:59.999999999Z");
        at(951_782_400, 0, "2000-02-29T00:00:00.000000000Z");
        at(951_868_800, 1, "2000-03-01T00:00:00.000000001Z");
        at(1_709_164_800, 0, "2024-02-29T00:00:00.000000000Z");
        at(1_795_235_235, 120_000_000, "2026-11-21T04:27:15.120000000Z");
        at(4_107_542_400, 0, "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn the_time_of_day_has_milliseconds() {
        assert_eq!(time_of_day(UNIX_EPOCH + Duration::new(86_399, 999_999_999)), "23:59:59.999");
    }

    #[test]
    fn control_characters_are_spelt_out_and_letters_stay() {
        assert_eq!(clean("pay\u{1b}[31m\u{7f}\u{9b}\u{202e}\r\n"), "pay\\u{1b}[31m\\u{7f}\\u{9b}\\u{202e}\\u{d}\\u{a}");
        assert_eq!(clean("größe-漢字.example"), "größe-漢字.example");
    }
}
