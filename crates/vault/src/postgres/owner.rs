//! The archive in the hands of a term's primary: what it brings, how far the archive reaches without a hole, and which holes no server can fill.

use crate::postgres::archive::{Archive, Held};
use crate::postgres::log::{LogFile, SegmentSize, owner, parse_history};
use crate::repository::{Repository, VaultError};
use mainstay_model::{Lineage, Lsn, Position, SystemId, Term};
use std::collections::BTreeSet;
use std::path::Path;

/// The archive of one term.
pub struct Owner {
    archive: Archive,
    size: SegmentSize,
    term: Term,
    held: Held,
    /// The first segment that is not known to be there.
    next: Option<u64>,
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
    /// Holes that were found: no file of this server can fill them. First and last segment.
    pub gaps: Vec<(String, String)>,
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
fn path_to(pg_wal: &Path, end: Position) -> Result<Lineage, VaultError> {
    if end.timeline.0 <= 1 {
        return Ok(Lineage::default());
    }
    let file = pg_wal.join(format!("{:08X}.history", end.timeline.0));
    let text = std::fs::read_to_string(&file).map_err(|e| VaultError::file(&file, e))?;
    let damaged = |says: &str| VaultError::Damaged(format!("{}: {says}", file.display()));
    parse_history(&text).map_err(|says| damaged(&says))?.ok_or_else(|| damaged("it names no timeline"))
}

impl Owner {
    /// Takes the archive for a term. `reached`: how far it was known to reach before.
    pub fn claim(
        repository: Repository,
        (system, size): (SystemId, SegmentSize),
        (term, by): (Term, &str),
        reached: Option<Lsn>,
    ) -> Result<Owner, VaultError> {
        let archive = Archive::claim(repository.clone(), system, size, term, by)?;
        let held = Held::list(&repository, system, size)?;
        Ok(Owner { archive, size, term, held, next: reached.map(|lsn| size.holding(lsn)) })
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
        self.held.files.extend(swept.pushed.iter().filter_map(|name| self.size.parse(name)));
        let mut standing = Standing { pushed: swept.pushed.len(), problems: swept.problems, ..Standing::default() };
        self.advance(end, &left, &mut standing);
        Ok(standing)
    }

    /// Moves on over what is there. What is missing although it was swept is on this server no more.
    fn advance(&mut self, end: Position, left: &Lineage, standing: &mut Standing) {
        let last = self.size.holding(end.lsn);
        let there = |number: u64| {
            let timeline = owner(self.size, number, end.timeline, left);
            self.held.files.contains(&LogFile::Segment(timeline, number))
        };
        let on_path: BTreeSet<u64> = (self.first(left, end)..last).filter(|number| there(*number)).collect();
        let Some(mut next) = self.next.or_else(|| on_path.first().copied()) else { return };
        let name = |number: u64| self.size.name(owner(self.size, number, end.timeline, left), number);
        while next < last {
            if there(next) {
                next += 1;
                continue;
            }
            // One that was damaged here may yet come; only what lies before others that are there is a hole.
            let Some(after) = on_path.range(next..).next().copied() else { break };
            standing.gaps.push((name(next), name(after - 1)));
            next = after;
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Memory;
    use mainstay_model::Timeline;
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
        assert_eq!(segment_size(dir.path()).unwrap(), Some(SIZE));
        let claim = |term, reached| {
            Owner::claim(repository.clone(), (SystemId(77), SIZE), (Term(term), "n1"), reached).unwrap()
        };
        let mut owner = claim(1, None);
        // The open segment is not brought.
        let first = owner.sweep(dir.path(), end(5)).unwrap();
        assert_eq!((first.pushed, first.gaps.len()), (2, 0));
        let reached = first.reached.unwrap().lsn;
        assert_eq!(reached, Lsn(5 << 20));
        // The next owner finds 5 and 6 gone, and 7 there.
        std::fs::remove_file(dir.path().join(SIZE.name(Timeline(1), 5))).unwrap();
        put(dir.path(), 7);
        let mut next = claim(2, Some(reached));
        let second = next.sweep(dir.path(), end(8)).unwrap();
        let name = |number| SIZE.name(Timeline(1), number);
        assert_eq!(second.gaps, [(name(5), name(6))]);
        assert_eq!(second.reached.unwrap().lsn, Lsn(8 << 20));
        assert!(next.sweep(dir.path(), end(8)).unwrap().gaps.is_empty());
        assert!(matches!(owner.sweep(dir.path(), end(8)), Err(VaultError::Deposed { .. })));
    }
}
