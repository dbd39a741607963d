//! The log's files: their names, what their first page must say, and the path of timelines through them.

use crate::objects::Key;
use crate::repository::VaultError;
use mainstay_model::position::RESERVED;
use mainstay_model::{Lineage, Lsn, Position, SystemId, Timeline};
use std::fmt;

/// The first page of a segment has the long header.
const FLAG_LONG: u16 = 2;

/// A file of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogFile {
    /// A whole segment: its timeline and number.
    Segment(Timeline, u64),
    /// The last segment of a timeline that was left in its middle.
    Partial(Timeline, u64),
    /// Where a timeline comes from.
    History(Timeline),
}

/// How long segments are; a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentSize(pub u64);

impl SegmentSize {
    fn per_id(self) -> u64 {
        0x1_0000_0000 / self.0.clamp(1 << 20, 1 << 30)
    }
    /// The segment that holds this byte.
    #[must_use]
    pub fn holding(self, lsn: Lsn) -> u64 {
        lsn.0 / self.0.max(1)
    }
    /// The last segment that a log which ends before this byte needs.
    #[must_use]
    pub fn before(self, lsn: Lsn) -> u64 {
        lsn.0.saturating_sub(1) / self.0.max(1)
    }
    /// A segment's name.
    #[must_use]
    pub fn name(self, timeline: Timeline, number: u64) -> String {
        format!("{:08X}{:08X}{:08X}", timeline.0, number / self.per_id(), number % self.per_id())
    }
    /// A file's name.
    #[must_use]
    pub fn file_name(self, file: LogFile) -> String {
        match file {
            LogFile::Segment(timeline, number) => self.name(timeline, number),
            LogFile::Partial(timeline, number) => format!("{}.partial", self.name(timeline, number)),
            LogFile::History(timeline) => format!("{:08X}.history", timeline.0),
        }
    }
    /// What a name stands for; `None`: not a file of the log that the archive keeps.
    #[must_use]
    pub fn parse(self, name: &str) -> Option<LogFile> {
        let number = |text: &str| {
            let fits = text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b));
            fits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
        };
        if let Some(stem) = name.strip_suffix(".history") {
            return number(stem).map(|timeline| LogFile::History(Timeline(timeline)));
        }
        let (stem, partial) = name.strip_suffix(".partial").map_or((name, false), |stem| (stem, true));
        let (timeline, high, low) = (number(stem.get(..8)?)?, number(stem.get(8..16)?)?, number(stem.get(16..)?)?);
        let segment = u64::from(high) * self.per_id() + u64::from(low);
        let fits = u64::from(low) < self.per_id();
        let timeline = Timeline(timeline);
        fits.then_some(if partial { LogFile::Partial(timeline, segment) } else { LogFile::Segment(timeline, segment) })
    }
    /// Where a file lies in a repository.
    pub fn key(self, system: SystemId, file: LogFile) -> Result<Key, VaultError> {
        let (LogFile::Segment(timeline, _) | LogFile::Partial(timeline, _) | LogFile::History(timeline)) = file;
        Ok(Key::new(format!("log/{system}/{:08X}/{}", timeline.0, self.file_name(file)))?)
    }
}

impl fmt::Display for SegmentSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

/// Does a segment's first page say that it is this segment of this database?
pub(crate) fn check_segment(
    bytes: &[u8],
    system: SystemId,
    size: SegmentSize,
    timeline: Timeline,
    number: u64,
) -> Result<(), String> {
    let array = |at: usize| bytes.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()).map(u64::from_le_bytes);
    let word = |at: usize| bytes.get(at..at + 4).and_then(|b| <[u8; 4]>::try_from(b).ok()).map(u32::from_le_bytes);
    if bytes.len() as u64 != size.0 {
        return Err(format!("it has {} bytes, a segment has {}", bytes.len(), size.0));
    }
    let flags = word(0).unwrap_or(0) >> 16;
    if flags as u16 & FLAG_LONG == 0 {
        return Err("it does not begin as a segment does".into());
    }
    if array(24) != Some(system.0) {
        return Err(format!("it is of the database {}, not {system}", array(24).unwrap_or(0)));
    }
    if array(8) != Some(number.wrapping_mul(size.0)) {
        return Err(format!("it begins at {}", Lsn(array(8).unwrap_or(0))));
    }
    // The segment that holds a fork begins with pages of the timeline before.
    match word(4) {
        Some(is) if is >= 1 && is <= timeline.0 => Ok(()),
        is => Err(format!("its first page is of timeline {}", is.unwrap_or(0))),
    }
}

/// The timelines before one, as its history file says; `None`: a placeholder.
pub(crate) fn parse_history(text: &str) -> Result<Option<Lineage>, String> {
    if text.starts_with(RESERVED) {
        return Ok(None);
    }
    let mut path = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with('#')) {
        let bad = || format!("a line of a history file is none: {line:?}");
        let mut words = line.split_whitespace();
        let (Some(timeline), Some(lsn)) = (words.next(), words.next()) else { return Err(bad()) };
        path.push(Position {
            timeline: Timeline(timeline.parse().map_err(|_| bad())?),
            lsn: lsn.parse().map_err(|_| bad())?,
        });
    }
    Ok((!path.is_empty()).then_some(Lineage(path)))
}

/// The segments that lead from one position to another along the path of a timeline: for each number the timeline to take it from.
/// `left` is the path of `end.timeline`. Fails if the start does not lie on that path.
pub(crate) fn segments(
    size: SegmentSize,
    start: Position,
    end: Position,
    left: &Lineage,
) -> Result<Vec<(Timeline, u64)>, String> {
    if !left.contains(start, end.timeline, end.lsn) {
        return Err(format!("{start} does not lie before {end}"));
    }
    let last = size.before(end.lsn).max(size.holding(start.lsn));
    Ok((size.holding(start.lsn)..=last).map(|number| (owner(size, number, end.timeline, left), number)).collect())
}

/// On which timeline the segment of this number is whole: the newest that began before its end.
pub(crate) fn owner(size: SegmentSize, number: u64, timeline: Timeline, left: &Lineage) -> Timeline {
    let end = number.saturating_add(1).saturating_mul(size.0);
    // A timeline that was left inside this segment has it in part only: the next one has it whole.
    left.0.iter().find(|fork| fork.lsn.0 >= end).map_or(timeline, |fork| fork.timeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize(16 << 20);

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline: Timeline(timeline), lsn: Lsn(lsn) }
    }

    #[test]
    fn p18_names_are_read_and_written_and_others_left_alone() {
        for name in [
            "000000010000000000000001",
            "0000000A00000012000000FF",
            "00000002.history",
            "000000010000000000000001.partial",
        ] {
            assert_eq!(SIZE.file_name(SIZE.parse(name).unwrap()), name);
        }
        let not = [
            "000000010000000000000100",
            "00000001",
            "archive_status",
            "00000001000000000000000a",
            "0000000100000000000000010",
            "000000010000000000000001.00000028.backup",
        ];
        for name in not {
            assert_eq!(SIZE.parse(name), None, "{name}");
        }
        assert_eq!(SegmentSize(1 << 20).name(Timeline(1), 4096), "000000010000000100000000");
    }

    #[test]
    fn p14_the_segment_that_holds_a_fork_comes_from_the_new_timeline() {
        let size = 16 << 20;
        let left = Lineage(vec![at(1, 3 * size + 100), at(2, 5 * size)]);
        let found = segments(SIZE, at(1, 2 * size + 40), at(3, 6 * size + 1), &left).unwrap();
        let want: Vec<(Timeline, u64)> = [(1, 2), (2, 3), (2, 4), (3, 5), (3, 6)].map(|(t, n)| (Timeline(t), n)).into();
        assert_eq!(found, want);
        assert!(segments(SIZE, at(1, 4 * size), at(3, 6 * size), &left).is_err(), "left behind by the fork");
        assert_eq!(segments(SIZE, at(3, 6 * size), at(3, 6 * size), &left).unwrap().len(), 1);
    }

    #[test]
    fn p22_a_placeholder_is_no_history() {
        assert_eq!(parse_history("# reserved by mainstay for term 4\n").unwrap(), None);
        assert_eq!(parse_history("1\t0/3000000\tno recovery target specified\n").unwrap().unwrap().0, [at(1, 3 << 24)]);
        assert!(parse_history("one two\n").is_err());
    }
}
