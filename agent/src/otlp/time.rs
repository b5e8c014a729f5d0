//! Time as text.

/// A time as text, without an allocation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Iso8601([u8; 30]);

impl Iso8601 {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII digits and separators are written, so this is never the default.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Unix nanoseconds as ISO 8601 in UTC: `2024-01-09T12:00:00.000000000Z`.
///
/// Days to a date: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
#[must_use]
pub fn iso8601(unix_ns: u64) -> Iso8601 {
    let (seconds, nanos) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, in eras of 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    for (at, digits, value) in [
        (0, 4, year),
        (5, 2, month),
        (8, 2, day),
        (11, 2, second / 3600),
        (14, 2, second / 60 % 60),
        (17, 2, second % 60),
        (20, 9, nanos),
    ] {
        let mut rest = value;
        for place in text[at..at + digits].iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
    Iso8601(text)
}

#[cfg(test)]
mod tests {
    use super::iso8601;

    #[test]
    fn times_are_what_date_says() {
        // `date -u -d @N +%FT%TZ` of GNU coreutils.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_399, "2000-02-28T23:59:59.000000007Z"),
            (951_868_799, "2000-02-29T23:59:59.000000007Z"),
            (1_704_806_400, "2024-01-09T13:20:00.000000007Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000007Z"),
        ] {
            assert_eq!(iso8601(seconds * 1_000_000_000 + 7).as_str(), expected);
        }
    }
}
