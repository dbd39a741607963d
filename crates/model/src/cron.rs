//! When something is to be done, as crontab writes it: minute, hour, day of the month, month, day of the week. Times are UTC.

/// A parsed text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Days of the month and of the week are both named: one of them is enough.
    either: bool,
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const DAY: u64 = 1440;
/// Leap days are up to eight years apart.
const DAYS_MAX: u64 = 366 * 9;

/// The numbers that a field names, as bits.
fn field(text: &str, (low, high): (u32, u32), names: &[&str]) -> Result<u64, String> {
    let number = |word: &str| {
        let named = names.iter().position(|name| *name == word).and_then(|at| u32::try_from(at).ok());
        let number = named.map(|at| at + low).or_else(|| word.parse().ok()).filter(|at| (low..=high).contains(at));
        number.ok_or_else(|| format!("{word:?} is none of {low} to {high}"))
    };
    let mut bits = 0;
    for part in text.split(',') {
        let (range, step) = part.split_once('/').map_or((part, None), |(range, step)| (range, Some(step)));
        let step = step.map_or(Ok(1), |step| step.parse::<u32>().map_err(|_| format!("{step:?} is no step")))?;
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (low, high),
            Some((first, last)) => (number(first)?, number(last)?),
            // A step alone goes on to the end.
            None if step > 1 => (number(range)?, high),
            None => (number(range)?, number(range)?),
        };
        if step == 0 || first > last {
            return Err(format!("{part:?} names nothing"));
        }
        let mut at = first;
        while at <= last {
            bits |= 1u64 << at.min(63);
            at = at.saturating_add(step);
        }
    }
    Ok(bits)
}

/// Year, month and day of a day since 1970.
fn civil(day: u64) -> (u64, u64) {
    // Days since 0000-03-01, so that leap days end a year.
    let shifted = day + 719_468;
    let of_era = shifted % 146_097;
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    (if month < 10 { month + 3 } else { month - 9 }, of_year - (153 * month + 2) / 5 + 1)
}

impl Cron {
    /// Reads a text.
    ///
    /// # Errors
    /// Which field is wrong.
    pub fn parse(text: &str) -> Result<Cron, String> {
        let lower = text.to_ascii_lowercase();
        let fields: Vec<&str> = lower.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("{} fields instead of five: minute hour day month weekday", fields.len()));
        };
        let of = |name: &str, result: Result<u64, String>| result.map_err(|why| format!("the {name}: {why}"));
        let week = of("weekday", field(weekdays, (0, 7), &WEEKDAYS))?;
        let cron = Cron {
            minutes: of("minute", field(minutes, (0, 59), &[]))?,
            hours: of("hour", field(hours, (0, 23), &[]))?,
            days: of("day", field(days, (1, 31), &[]))?,
            months: of("month", field(months, (1, 12), &MONTHS))?,
            // 7 is a Sunday, too.
            weekdays: (week | week >> 7) & 0x7f,
            either: !days.starts_with('*') && !weekdays.starts_with('*'),
        };
        if cron.last_before(DAYS_MAX * DAY).is_none() {
            return Err("there is no such day".to_owned());
        }
        Ok(cron)
    }

    fn on(&self, day: u64) -> bool {
        let (month, of_month) = civil(day);
        let has = |bits: u64, at: u64| bits >> at & 1 == 1;
        // 1970 began on a Thursday.
        let (date, week) = (has(self.days, of_month), has(self.weekdays, (day + 4) % 7));
        has(self.months, month) && if self.either { date || week } else { date && week }
    }

    /// The last time up to this one, both in minutes since 1970.
    #[must_use]
    pub fn last_before(&self, minute: u64) -> Option<u64> {
        let today = minute / DAY;
        for back in 0..=DAYS_MAX.min(today) {
            let day = today - back;
            if !self.on(day) {
                continue;
            }
            let end = if back == 0 { minute % DAY } else { DAY - 1 };
            let at = |of_day: &u64| self.hours >> (of_day / 60) & 1 == 1 && self.minutes >> (of_day % 60) & 1 == 1;
            if let Some(of_day) = (0..=end).rev().find(at) {
                return Some(day * DAY + of_day);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-27 09:30, a Friday.
    const NOW: u64 = 29_929_530;

    fn ago(text: &str) -> u64 {
        NOW - Cron::parse(text).unwrap().last_before(NOW).unwrap()
    }

    #[test]
    fn the_last_time_is_found() {
        let all = [
            ("* * * * *", 0),
            ("30 9 * * *", 0),
            ("31 9 * * *", DAY - 1),
            ("0 2 * * *", 450),
            ("*/20 * * * *", 10),
            ("15/20 * * * *", 15),
            ("0 2 * * 0", 5 * DAY + 450),
            ("0 2 * * sun", 5 * DAY + 450),
            ("0 2 * * 7", 5 * DAY + 450),
            ("0 0 1 * *", 26 * DAY + 570),
            ("0 0 1 1 *", 330 * DAY + 570),
            ("0 0 1,27 nov *", 570),
            ("0 0 1 * mon-tue", 3 * DAY + 570),
        ];
        for (text, minutes) in all {
            assert_eq!(ago(text), minutes, "{text}");
        }
        // 2024-02-29.
        assert_eq!(ago("0 0 29 2 *"), (366 - 60 + 365 + 330) * DAY + 570 + DAY);
    }

    #[test]
    fn what_names_no_time_is_refused() {
        for text in [
            "",
            "* * * *",
            "60 * * * *",
            "* 24 * * *",
            "0 0 0 * *",
            "0 0 31 2 *",
            "a * * * *",
            "5-3 * * * *",
            "*/0 * * * *",
        ] {
            assert!(Cron::parse(text).is_err(), "{text}");
        }
        assert_eq!(Cron::parse("0 25 * * *").unwrap_err(), "the hour: \"25\" is none of 0 to 23");
    }
}
