//! The archive in the hands of a term's primary: what it brings, how far the archive reaches without a hole, and which holes no server can fill.

use crate::postgres::archive::{Archive, Held};
use crate::postgres::log::{LogFile, SegmentSize, owner, parse_history};
use crate::repository::{Repository, VaultError};
use mainstay_model::{Lineage, Lsn, Position, SystemId, Term, Timeline};
use std::collections::BTreeSet;
use std::path::Path;

/// The archive of one term.
pub struct Owner {
    repository: Repository,
    system: SystemId,
    archive: Archive,
    size: SegmentSize,
    term: Term,
    held: Held,
    /// How far the archive was known to reach before, until the first sweep knows this server's path.
    reached: Option<Position>,
    /// The first segment that is not known to be there.
    next: Option<u64>,
    /// Holes before it: first and last segment.
    gaps: Vec<(u64, u64)>,
}

/// How the archive stands after a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Up to here it holds the log without a hole.
    pub reached: Option<Position>,
    /// Files that this sweep brought.
    pub pushed: usize,
    /// What conflicts or is damaged.
    pub problems: Vec<String>,
    /// Holes that this server can not fill. First and last segment.
    pub gaps: Vec<(String, String)>,
    /// Not everything has been brought yet.
    pub more: bool,
}

/// How long the segments of this log are, by the files that are there; `None`: there are none.
pub fn segment_size(pg_wal: &Path) -> Result<Option<SegmentSize>, VaultError> {
    for entry in std::fs::read_dir(pg_wal).map_err(|e| VaultError::file(pg_wal, e))? {
        let entry = entry.map_err(|e| VaultError::file(pg_wal, e))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.len() != 24 || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            continue;
        }
        // One that is being made is shorter, and has another name.
        if let Ok(metadata) = entry.metadata()
            && metadata.len().is_power_of_two()
            && (1 << 20..=1 << 30).contains(&metadata.len())
        {
            return Ok(Some(SegmentSize(metadata.len())));
        }
    }
    Ok(None)
}

/// The path to a server's timeline, by the history file in its own log.
pub(crate) fn path_to(pg_wal: &Path, end: Position) -> Result<Lineage, VaultError> {
    if end.timeline.0 <= 1 {
        return Ok(Lineage::default());
    }
    let file = pg_wal.join(format!("{:08X}.history", end.timeline.0));
    let text = std::fs::read_to_string(&file).map_err(|e| VaultError::file(&file, e))?;
    let damaged = |says: &str| VaultError::Damaged(format!("{}: {says}", file.display()));
    parse_history(&text).map_err(|says| damaged(&says))?.ok_or_else(|| damaged("it names no timeline"))
}

/// How far a server's log and the one that reaches to `at` are the same: what an earlier primary archived beyond the place where its
/// timeline was left is no part of this one. `None`: nothing is known.
pub(crate) fn on_path(at: Position, timeline: Timeline, left: &Lineage) -> Option<Lsn> {
    if at.timeline == timeline {
        return Some(at.lsn);
    }
    let fork = left.0.iter().find(|fork| fork.timeline == at.timeline).or_else(|| left.0.first())?;
    Some(at.lsn.min(fork.lsn))
}

impl Owner {
    /// Takes the archive for a term. `reached`: how far it was known to reach before, but for these `gaps`.
    pub fn claim(
        repository: Repository,
        (system, size): (SystemId, SegmentSize),
        (term, by): (Term, &str),
        (reached, gaps): (Option<Position>, &[(String, String)]),
    ) -> Result<Owner, VaultError> {
        let archive = Archive::claim(repository.clone(), system, size, term, by)?;
        let held = Held::list(&repository, system, size)?;
        Ok(Owner { repository, system, archive, size, term, held, reached, next: None, gaps: numbers(size, gaps) })
    }

    /// Of which term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.term
    }

    /// How long its segments are.
    #[must_use]
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// Brings what is whole up to `end`, which is flushed.
    pub fn sweep(&mut self, pg_wal: &Path, end: Position) -> Result<Standing, VaultError> {
        let left = path_to(pg_wal, end)?;
        let swept = self.archive.sweep(pg_wal, end, &left)?;
        // Also those that somebody else brought since the claim.
        self.held.files.extend(self.archive.known());
        let mut problems = self.archive.conflicts()?;
        problems.extend(swept.problems);
        let mut standing = Standing { pushed: swept.pushed.len(), problems, more: swept.more, ..Standing::default() };
        if !self.gaps.is_empty() {
            // Another server may have brought what is missing.
            self.held = Held::list(&self.repository, self.system, self.size)?;
        }
        if let Some(reached) = self.reached.take() {
            self.next = on_path(reached, end.timeline, &left).map(|lsn| self.size.holding(lsn));
        }
        self.advance((end, &left), &mut standing);
        Ok(standing)
    }

    /// Moves on over what is there. What is missing although it was swept is on this server no more.
    fn advance(&mut self, (end, left): (Position, &Lineage), standing: &mut Standing) {
        let last = self.size.holding(end.lsn);
        let there = |number: u64| {
            let timeline = owner(self.size, number, end.timeline, left);
            self.held.files.contains(&LogFile::Segment(timeline, number))
        };
        let on_path: BTreeSet<u64> = (self.first(left, end)..last).filter(|number| there(*number)).collect();
        let Some(mut next) = self.next.or_else(|| on_path.first().copied()) else { return };
        let name = |number: u64| self.size.name(owner(self.size, number, end.timeline, left), number);
        let mut gaps: Vec<(u64, u64)> = self.gaps.iter().flat_map(|gap| missing(*gap, there)).collect();
        while next < last {
            if there(next) {
                next += 1;
                continue;
            }
            // What is still to be brought is no hole yet.
            if standing.more {
                break;
            }
            // One that was damaged here may yet come; only what lies before others that are there is a hole.
            let Some(after) = on_path.range(next..).next().copied() else { break };
            gaps.push((next, after - 1));
            next = after;
        }
        standing.gaps = gaps.iter().map(|(first, last)| (name(*first), name(*last))).collect();
        self.gaps = gaps;
        self.next = Some(next);
        let timeline = owner(self.size, next.saturating_sub(1), end.timeline, left);
        standing.reached = Some(Position { timeline, lsn: Lsn(next * self.size.0) });
    }

    /// The oldest segment that the archive holds on this path.
    fn first(&self, left: &Lineage, end: Position) -> u64 {
        let on = |timeline| timeline == end.timeline || left.0.iter().any(|fork| fork.timeline == timeline);
        let numbers = self.held.files.iter().filter_map(|file| match file {
            LogFile::Segment(timeline, number) if on(*timeline) => Some(*number),
            _ => None,
        });
        numbers.min().unwrap_or(u64::MAX)
    }
}

/// Gaps by their segments' numbers.
fn numbers(size: SegmentSize, gaps: &[(String, String)]) -> Vec<(u64, u64)> {
    let number = |name: &str| match size.parse(name)? {
        LogFile::Segment(_, number) => Some(number),
        _ => None,
    };
    gaps.iter().filter_map(|(first, last)| Some((number(first)?, number(last)?))).collect()
}

/// What is left of a gap. A gap is told by its ends only, so one that was made up is not walked for ever.
fn missing((first, last): (u64, u64), there: impl Fn(u64) -> bool) -> Vec<(u64, u64)> {
    let mut left: Vec<(u64, u64)> = Vec::new();
    for number in (first..=last.min(first.saturating_add(GAP_MAX))).filter(|number| !there(*number)) {
        match left.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ => left.push((number, number)),
        }
    }
    left
}

/// Segments: a tebibyte of log.
const GAP_MAX: u64 = 1 << 16;

/// A replica brings what the owner of a term misses and can not fill from its own files. `end`: how far this server's log is flushed, on the
/// owner's own timeline, so that it is the same log. Returns how many files were brought.
pub fn assist(
    repository: Repository,
    (system, size): (SystemId, SegmentSize),
    (term, by): (Term, &str),
    (pg_wal, end): (&Path, Position),
    gaps: &[(String, String)],
) -> Result<usize, VaultError> {
    let (left, gaps) = (path_to(pg_wal, end)?, numbers(size, gaps));
    let wanted = |file: &LogFile| match file {
        LogFile::Segment(timeline, number) => {
            *timeline == owner(size, *number, end.timeline, &left)
                && gaps.iter().any(|(first, last)| (first..=last).contains(&number))
        }
        _ => false,
    };
    let mut archive = Archive::assist(repository, system, size, term, by);
    Ok(archive.bring(pg_wal, (end, &left), wanted)?.pushed.len())
}

/// The oldest whole segments that this server has given up although the archive misses them from `reached` on; told while the
/// repository is out of reach, when nothing else can tell.
pub fn given_up(pg_wal: &Path, size: SegmentSize, reached: Position, end: Position) -> Option<(String, String)> {
    let left = path_to(pg_wal, end).ok()?;
    let (next, last) = (size.holding(on_path(reached, end.timeline, &left)?), size.holding(end.lsn));
    let files = std::fs::read_dir(pg_wal).ok()?.flatten();
    let names = files.filter_map(|entry| size.parse(&entry.file_name().to_string_lossy()));
    let oldest = names
        .filter_map(|file| match file {
            LogFile::Segment(timeline, number) if timeline == owner(size, number, end.timeline, &left) => Some(number),
            _ => None,
        })
        .filter(|number| (next..=last).contains(number))
        .min()?;
    let name = |number: u64| size.name(owner(size, number, end.timeline, &left), number);
    (oldest > next).then(|| (name(next), name(oldest - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Memory;
    use std::sync::Arc;

    const SIZE: SegmentSize = SegmentSize(1 << 20);

    fn segment(number: u64) -> Vec<u8> {
        let mut bytes = vec![9u8; 1 << 20];
        bytes[0..4].copy_from_slice(&0x0002_d110u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&1u32.to_le_bytes());
        bytes[8..16].copy_from_slice(&(number << 20).to_le_bytes());
        bytes[24..32].copy_from_slice(&77u64.to_le_bytes());
        bytes
    }

    fn put(dir: &Path, number: u64) {
        std::fs::write(dir.join(SIZE.name(Timeline(1), number)), segment(number)).unwrap();
    }

    fn on_first(lsn: u64) -> Position {
        Position { timeline: Timeline(1), lsn: Lsn(lsn) }
    }

    fn end(number: u64) -> Position {
        Position { timeline: Timeline(1), lsn: Lsn((number << 20) + 5) }
    }

    #[test]
    fn it_reaches_as_far_as_there_is_no_hole_and_a_hole_is_told_once() {
        let (dir, memory) = (tempfile::tempdir().unwrap(), Memory::default());
        let repository = Repository::create(Arc::new(memory), &[]).unwrap();
        for number in [3, 4, 5] {
            put(dir.path(), number);
        }
        assert_eq!(
            given_up(dir.path(), SIZE, on_first(1 << 20), end(6)),
            Some((SIZE.name(Timeline(1), 1), SIZE.name(Timeline(1), 2)))
        );
        assert_eq!(given_up(dir.path(), SIZE, on_first(3 << 20), end(6)), None);
        assert_eq!(segment_size(dir.path()).unwrap(), Some(SIZE));
        let claim = |term, reached| {
            Owner::claim(repository.clone(), (SystemId(77), SIZE), (Term(term), "n1"), (reached, &[])).unwrap()
        };
        let mut owner = claim(1, None);
        // The open segment is not brought.
        let first = owner.sweep(dir.path(), end(5)).unwrap();
        assert_eq!((first.pushed, first.gaps.len()), (2, 0));
        let reached = first.reached.unwrap();
        assert_eq!(reached, on_first(5 << 20));
        // The next owner finds 5 and 6 gone, and 7 there.
        std::fs::remove_file(dir.path().join(SIZE.name(Timeline(1), 5))).unwrap();
        put(dir.path(), 7);
        let mut next = claim(2, Some(reached));
        let second = next.sweep(dir.path(), end(8)).unwrap();
        let name = |number| SIZE.name(Timeline(1), number);
        assert_eq!(second.gaps, [(name(5), name(6))]);
        assert_eq!(second.reached.unwrap().lsn, Lsn(8 << 20));
        assert_eq!(next.sweep(dir.path(), end(8)).unwrap().gaps, second.gaps, "it stays until it is filled");
        // A replica has the first of the two, and brings nothing else.
        let replica = tempfile::tempdir().unwrap();
        for number in [5, 8] {
            put(replica.path(), number);
        }
        let help = |term, repository: &Repository| {
            let place = (replica.path(), end(9));
            assist(repository.clone(), (SystemId(77), SIZE), (Term(term), "n2"), place, &second.gaps)
        };
        assert_eq!(help(2, &repository).unwrap(), 1);
        assert!(matches!(help(1, &repository), Err(VaultError::Deposed { .. }) | Ok(0)));
        assert_eq!(next.sweep(dir.path(), end(8)).unwrap().gaps, [(name(6), name(6))]);
        put(replica.path(), 6);
        assert!(matches!(help(1, &repository), Err(VaultError::Deposed { .. })), "asked by one that was deposed");
        assert_eq!(help(2, &repository).unwrap(), 1);
        let gaps = [(name(5), name(6))];
        let mut third =
            Owner::claim(repository.clone(), (SystemId(77), SIZE), (Term(3), "n1"), (Some(reached), &gaps)).unwrap();
        assert!(third.sweep(dir.path(), end(8)).unwrap().gaps.is_empty(), "healed");
        assert!(matches!(owner.sweep(dir.path(), end(8)), Err(VaultError::Deposed { .. })));
    }

    #[test]
    fn what_somebody_else_brought_since_the_claim_is_no_hole() {
        let (dir, memory) = (tempfile::tempdir().unwrap(), Memory::default());
        let repository = Repository::create(Arc::new(memory), &[]).unwrap();
        for number in [3, 4, 5] {
            put(dir.path(), number);
        }
        let whose = (SystemId(77), SIZE);
        let mut owner =
            Owner::claim(repository.clone(), whose, (Term(1), "n1"), (Some(on_first(3 << 20)), &[])).unwrap();
        let mut other = Archive::assist(repository, SystemId(77), SIZE, Term(1), "n2");
        other.push(&SIZE.name(Timeline(1), 4), &segment(4)).unwrap();
        let standing = owner.sweep(dir.path(), end(6)).unwrap();
        assert!(standing.gaps.is_empty() && standing.problems.is_empty(), "{standing:?}");
        assert_eq!((standing.pushed, standing.reached.unwrap().lsn), (2, Lsn(6 << 20)));
    }

    #[test]
    fn what_an_earlier_primary_archived_beyond_the_fork_is_not_taken_for_this_log() {
        let (dir, memory) = (tempfile::tempdir().unwrap(), Memory::default());
        let repository = Repository::create(Arc::new(memory), &[]).unwrap();
        for number in [3, 4, 5, 6, 7] {
            put(dir.path(), number);
        }
        let whose = (SystemId(77), SIZE);
        let mut first = Owner::claim(repository.clone(), whose, (Term(1), "n1"), (None, &[])).unwrap();
        let reached = first.sweep(dir.path(), end(8)).unwrap().reached.unwrap();
        assert_eq!(reached, on_first(8 << 20));
        // The next one left that log within segment 5, and has only the open segment 7 of its own: 5 and 6 are gone.
        let next = tempfile::tempdir().unwrap();
        std::fs::write(next.path().join("00000002.history"), "1\t0/500010\tno recovery target specified\n").unwrap();
        std::fs::write(next.path().join(SIZE.name(Timeline(2), 7)), segment(7)).unwrap();
        let at = |number: u64| Position { timeline: Timeline(2), lsn: Lsn((number << 20) + 5) };
        let lost = Some((SIZE.name(Timeline(2), 5), SIZE.name(Timeline(2), 6)));
        assert_eq!(given_up(next.path(), SIZE, reached, at(8)), lost);
        let mut owner = Owner::claim(repository, whose, (Term(2), "n2"), (Some(reached), &[])).unwrap();
        let standing = owner.sweep(next.path(), at(8)).unwrap();
        assert_eq!(standing.gaps, lost.into_iter().collect::<Vec<_>>());
        assert_eq!(standing.reached, Some(Position { timeline: Timeline(2), lsn: Lsn(8 << 20) }));
    }
}
