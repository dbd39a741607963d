//! Times as people type them: `yesterday 14:03`, `14:03`, `2h`, `2026-11-26 14:03`, ISO 8601 with a zone.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// The moment that a text means here, microseconds since 1970. Where TZ names a zone that this host does not know, nobody can tell what a time
/// without a zone means: the library would take it as UTC.
///
/// # Errors
/// When it is no time, one to come, or one of an unknown zone.
pub(crate) fn here(text: &str) -> Result<i64, String> {
    let named = std::env::var_os("TZ").filter(|name| !name.is_empty());
    // Without TZ and without a zone of the host, UTC is what every program shows here.
    let zone = TimeZone::try_system().or_else(|error| if named.is_some() { Err(error) } else { Ok(TimeZone::UTC) });
    in_zone(text, Timestamp::now(), zone.map_err(|_| named.unwrap_or_default().to_string_lossy().into_owned()))
}

/// `zone`: or the name that is no zone's.
fn in_zone(text: &str, now: Timestamp, zone: Result<TimeZone, String>) -> Result<i64, String> {
    match zone {
        Ok(zone) => parse(text, now, &zone),
        // What names its zone, or none, is understood whatever TZ says.
        Err(_) if absolute(text.trim(), now).is_some() => parse(text, now, &TimeZone::UTC),
        Err(name) => Err(format!(
            "{text:?} names no zone, and this host knows none as TZ={name}: correct TZ, install tzdata, or say the zone with the time (2026-11-26T14:03:00Z)"
        )),
    }
}

/// The moment that a text means, microseconds since 1970. Times without a zone are of `zone`, the one that this machine shows.
///
/// # Errors
/// When it is no time, or one to come.
fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<i64, String> {
    let text = text.trim();
    let moment = absolute(text, now).or_else(|| local(text, now, zone));
    let moment = moment.ok_or_else(|| {
        format!("{text:?} is no time: say \"yesterday 14:03\", 14:03, 2h (before now), \"2026-11-26 14:03:00\" or 2026-11-26T14:03:00Z")
    })?;
    if moment > now {
        return Err(format!(
            "{text:?} is still to come: it means {}",
            moment.to_zoned(zone.clone()).strftime("%F %T %Z")
        ));
    }
    Ok(moment.as_microsecond())
}

/// What is the same moment in every zone.
fn absolute(text: &str, now: Timestamp) -> Option<Timestamp> {
    ago(text, now).or_else(|| text.parse().ok()).or_else(|| (text == "now").then_some(now))
}

fn ago(text: &str, now: Timestamp) -> Option<Timestamp> {
    let (at, unit) = text.char_indices().last()?;
    let count: i64 = text.get(..at)?.trim().parse().ok().filter(|count| *count >= 0)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        'w' => 604_800,
        _ => return None,
    };
    now.checked_sub(SignedDuration::from_secs(count.checked_mul(seconds)?)).ok()
}

fn local(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let today = now.to_zoned(zone.clone()).date();
    let yesterday = today.yesterday().ok()?;
    let at = |date: Date, time: Time| Some(date.to_datetime(time).to_zoned(zone.clone()).ok()?.timestamp());
    for (word, date) in [("today", today), ("yesterday", yesterday)] {
        if let Some(rest) = text.strip_prefix(word) {
            let rest = rest.trim();
            return if rest.is_empty() { at(date, Time::midnight()) } else { at(date, time(rest)?) };
        }
    }
    if let Some(time) = time(text) {
        // The last time that it was so late.
        return at(today, time).filter(|moment| *moment <= now).or_else(|| at(yesterday, time));
    }
    // The library would take a date out of more than a date, and forget the rest.
    if let (false, Ok(date)) = (text.contains(':'), text.parse::<Date>()) {
        return at(date, Time::midnight());
    }
    if let Some((date, rest)) = text.split_once([' ', 'T']) {
        return at(date.parse().ok()?, time(rest)?);
    }
    let moment = text.parse::<DateTime>().ok()?.to_zoned(zone.clone()).ok()?;
    Some(moment.timestamp())
}

/// `14:03`, `9:15:30`, `9:15:30.5`.
fn time(text: &str) -> Option<Time> {
    let (hour, rest) = text.trim().split_once(':')?;
    let digits = |part: &str| !part.is_empty() && part.len() <= 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    digits(hour).then(|| format!("{hour:0>2}:{rest}").parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(text: &str) -> Result<String, String> {
        let now: Timestamp = "2026-11-27T09:30:00Z".parse().unwrap();
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        parse(text, now, &zone).map(|micros| Timestamp::from_microsecond(micros).unwrap().to_string())
    }

    #[test]
    fn people_are_understood() {
        let all = [
            ("yesterday 14:03", "2026-11-26T13:03:00Z"),
            ("yesterday", "2026-11-25T23:00:00Z"),
            ("today 9:15:30", "2026-11-27T08:15:30Z"),
            // It is 10:30 here.
            ("10:29", "2026-11-27T09:29:00Z"),
            ("10:31", "2026-11-26T09:31:00Z"),
            ("2h", "2026-11-27T07:30:00Z"),
            ("90s", "2026-11-27T09:28:30Z"),
            ("now", "2026-11-27T09:30:00Z"),
            ("2026-11-26", "2026-11-25T23:00:00Z"),
            ("2026-11-26 14:03", "2026-11-26T13:03:00Z"),
            ("2026-11-26T14:03:00.25", "2026-11-26T13:03:00.25Z"),
            ("2026-11-26T14:03:00Z", "2026-11-26T14:03:00Z"),
            ("2026-11-26T14:03:00+05:00", "2026-11-26T09:03:00Z"),
        ];
        for (text, is) in all {
            assert_eq!(means(text).as_deref(), Ok(is), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_or_still_to_come_is_refused() {
        for text in
            ["", "tomorrow", "25:00", "14", "yesterday noon", "2026-13-01", "-2h", "2026-11-26 25:00", "9999999999999d"]
        {
            assert!(means(text).is_err_and(|why| why.contains("is no time")), "{text}: {:?}", means(text));
        }
        for text in ["2026-11-28", "today 10:31", "2026-11-27T09:30:01Z"] {
            assert!(means(text).is_err_and(|why| why.contains("still to come")), "{text}: {:?}", means(text));
        }
    }

    #[test]
    fn a_zone_that_is_not_known_is_not_taken_as_utc() {
        let now: Timestamp = "2026-11-27T09:30:00Z".parse().unwrap();
        let unknown = |text: &str| in_zone(text, now, Err("Europe/Berlim".into()));
        for text in ["today 09:00", "09:00", "2026-11-26", "2026-11-26 14:03"] {
            assert!(unknown(text).is_err_and(|why| why.contains("TZ=Europe/Berlim")), "{text}");
        }
        for text in ["2h", "now", "2026-11-26T14:03:00Z", "2026-11-26T14:03:00+05:00"] {
            assert_eq!(unknown(text), parse(text, now, &TimeZone::UTC), "{text}");
        }
    }
}
