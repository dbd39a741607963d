//! A moment as addresses of buckets name it: ISO 8601 with its zone. Absent: words such as `yesterday`, for an address means the same whenever it is read.

/// A moment, and how it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moment {
    text: String,
    micros: i64,
}

impl Moment {
    /// From `2026-11-28T10:00:00Z`: fractions of a second may follow it, and `+HH:MM` or `-HH:MM` may stand for the `Z`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Moment> {
        let (date, rest) = text.split_once('T')?;
        let (time, offset) = match rest.strip_suffix('Z') {
            Some(time) => (time, 0),
            None => zone(rest)?,
        };
        let date: Vec<&str> = date.split('-').collect();
        let [year, month, day] = date[..] else { return None };
        let (year, month, day) = (number(year, 4)?, number(month, 2)?, number(day, 2)?);
        let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
        let time: Vec<&str> = time.split(':').collect();
        let [hour, minute, second] = time[..] else { return None };
        let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
        let fits = (1970..=9998).contains(&year) && day >= 1 && hour < 24 && minute < 60 && second < 60;
        if !fits || day > length(year, month)? || fraction.is_empty() || fraction.len() > 9 {
            return None;
        }
        let fraction = number(fraction, fraction.len())? * 1_000_000 / 10i64.pow(u32::try_from(fraction.len()).ok()?);
        let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset;
        Some(Moment { text: text.to_owned(), micros: seconds * 1_000_000 + fraction })
    }

    /// As it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Microseconds since 1970.
    #[must_use]
    pub fn micros(&self) -> i64 {
        self.micros
    }
}

/// A number of exactly so many digits.
fn number(text: &str, digits: usize) -> Option<i64> {
    (text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// What stands before a zone, and the seconds that it is ahead.
fn zone(text: &str) -> Option<(&str, i64)> {
    let at = text.rfind(['+', '-'])?;
    let (time, zone) = (text.get(..at)?, text.get(at + 1..)?);
    let (hours, minutes) = zone.split_once(':')?;
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    let ahead = hours * 3600 + minutes * 60;
    (hours < 24 && minutes < 60).then_some((time, if text.get(at..=at)? == "+" { ahead } else { -ahead }))
}

/// The days of a month.
fn length(year: i64, month: i64) -> Option<i64> {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 => Some(if leap { 29 } else { 28 }),
        4 | 6 | 9 | 11 => Some(30),
        1..=12 => Some(31),
        _ => None,
    }
}

/// Days since 1970.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March here, so that leap days end one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_what_names_none_is_refused() {
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-28T10:00:00Z", 1_795_860_000_000_000),
            ("2026-11-28T12:00:00+02:00", 1_795_860_000_000_000),
            ("2026-11-28T04:30:00-05:30", 1_795_860_000_000_000),
            ("2026-11-28T10:00:00.5Z", 1_795_860_000_500_000),
            ("2026-11-28T10:00:00.000001Z", 1_795_860_000_000_001),
            ("2024-02-29T23:59:59Z", 1_709_251_199_000_000),
            ("2000-03-01T00:00:00Z", 951_868_800_000_000),
        ] {
            let moment = Moment::parse(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((moment.micros(), moment.text()), (micros, text));
        }
        for bad in [
            "",
            "yesterday",
            "2026-11-28",
            "2026-11-28T10:00Z",
            "2026-11-28T10:00:00",
            "2026-11-28 10:00:00Z",
            "2026-11-31T10:00:00Z",
            "2025-02-29T10:00:00Z",
            "2026-13-01T10:00:00Z",
            "2026-00-01T10:00:00Z",
            "2026-11-28T24:00:00Z",
            "2026-11-28T10:00:60Z",
            "2026-11-28T10:00:00.Z",
            "2026-11-28T10:00:00.0000000001Z",
            "2026-11-28T10:00:00+0200",
            "2026-11-28T10:00:00+2:00",
            "2026-1-28T10:00:00Z",
            "+026-11-28T10:00:00Z",
            "2026-11-28T10:00:00ZZ",
            "2026-11-28T10:00:é0Z",
        ] {
            assert_eq!(Moment::parse(bad), None, "{bad}");
        }
    }
}
