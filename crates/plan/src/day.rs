//! Calendar days. PURE: today comes in as an argument.

use mainstay_model::requirements::Window;
use std::fmt;

/// A day, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(i64);

impl Day {
    /// This date; days beyond a month's end run on into the next one.
    #[must_use]
    pub fn of(year: i64, month: i64, day: i64) -> Day {
        // The year begins in March, so that a leap day is its last.
        let shifted = if month <= 2 { year - 1 } else { year };
        let era = shifted.div_euclid(400);
        let in_era = shifted - era * 400;
        let in_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        Day(era * 146_097 + in_era * 365 + in_era / 4 - in_era / 100 + in_year - 719_468)
    }

    /// Year, month, day.
    #[must_use]
    pub fn date(self) -> (i64, i64, i64) {
        let days = self.0 + 719_468;
        let era = days.div_euclid(146_097);
        let in_era = days - era * 146_097;
        let year = (in_era - in_era / 1460 + in_era / 36_524 - in_era / 146_096) / 365;
        let in_year = in_era - (365 * year + year / 4 - year / 100);
        let shifted = (5 * in_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        (year + era * 400 + i64::from(month <= 2), month, in_year - (153 * shifted + 2) / 5 + 1)
    }

    /// So many days later.
    #[must_use]
    pub const fn plus(self, days: i64) -> Day {
        Day(self.0 + days)
    }

    /// 0 is Monday.
    #[must_use]
    pub const fn weekday(self) -> i64 {
        (self.0 + 3).rem_euclid(7)
    }

    /// The first day from this one on that has a maintenance window.
    #[must_use]
    pub fn window(self, window: Window) -> Day {
        window.day.map_or(self, |day| self.plus((i64::from(day) - self.weekday()).rem_euclid(7)))
    }

    /// The second Thursday of the month: on those of February, May, August and November PostgreSQL brings minor versions.
    #[must_use]
    pub fn second_thursday(year: i64, month: i64) -> Day {
        let first = Day::of(year, month, 1);
        first.plus((3 - first.weekday()).rem_euclid(7) + 7)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.date();
        write!(f, "{year:04}-{month:02}-{day:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::Day;
    use mainstay_model::requirements::Window;

    #[test]
    fn dates_and_weekdays() {
        for (date, days, weekday) in [((1970, 1, 1), 0, 3), ((2000, 2, 29), 11_016, 1), ((2026, 11, 27), 20_784, 4)] {
            let day = Day::of(date.0, date.1, date.2);
            assert_eq!((day, day.date(), day.weekday()), (Day(days), date, weekday));
        }
        assert_eq!(Day::of(2026, 12, 31).plus(1).to_string(), "2027-01-01");
        let mut day = Day::of(1999, 12, 1);
        for _ in 0..2000 {
            let (year, month, date) = day.date();
            assert_eq!(Day::of(year, month, date), day);
            day = day.plus(1);
        }
    }

    #[test]
    fn windows_and_releases() {
        let sunday = Window::parse("sun 02:00-04:00").unwrap();
        assert_eq!(Day::of(2026, 11, 27).window(sunday).to_string(), "2026-11-29");
        assert_eq!(Day::of(2026, 11, 29).window(sunday).to_string(), "2026-11-29");
        assert_eq!(Day::second_thursday(2026, 11).to_string(), "2026-11-12");
        assert_eq!(Day::second_thursday(2027, 2).to_string(), "2027-02-11");
    }
}
