//! The log on disk: which timeline a position belongs to, and where the last whole record ends. Read only.
//!
//! Why not ask the server alone: it does not say on which timeline the record lies that it replayed last (the control file's
//! timeline is that of the last checkpoint, and the header of the page that holds a fork keeps the old number), nor whether it has
//! read everything on disk. So both are taken from the files, record by record with their checksums.

use mainstay_model::{Lineage, Lsn, Position, Timeline};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const PAGE: u64 = 8192;
const SHORT_HEADER: u64 = 24;
const LONG_HEADER: u64 = 40;
const RECORD_HEADER: usize = 24;
const FLAG_CONTINUES: u16 = 1;
const FLAG_LONG: u16 = 2;

/// Name of a timeline's history file.
pub(crate) fn history_name(timeline: Timeline) -> String {
    format!("{:08X}.history", timeline.0)
}

/// What a history file says; `None`: nothing (a placeholder).
pub(crate) fn parse_history(text: &str) -> Option<Lineage> {
    let mut path = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let mut words = line.split_whitespace();
        let (Some(timeline), Some(lsn)) = (words.next(), words.next()) else { continue };
        path.push(Position { timeline: Timeline(timeline.parse().ok()?), lsn: lsn.parse().ok()? });
    }
    (!path.is_empty()).then_some(Lineage(path))
}

/// One record of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// Its first byte.
    pub(crate) start: u64,
    /// The byte after it, as the server counts (aligned; a log switch reaches to the end of its segment).
    pub(crate) end: u64,
}

/// A directory of log files, read along the path of one timeline.
pub(crate) struct Wal {
    dir: PathBuf,
    segment: u64,
    /// Segment files by number and timeline.
    files: BTreeMap<(u64, u32), ()>,
    /// Timelines with a real history, and 1.
    lineages: BTreeMap<u32, Lineage>,
    /// The timelines to read along, newest first, each with its first byte.
    chain: Vec<(u32, u64)>,
    open: Option<((u64, u32), File)>,
}

impl Wal {
    /// Lists `pg_wal` of this data directory.
    pub(crate) fn list(data_dir: &Path) -> Result<Wal, String> {
        let dir = data_dir.join("pg_wal");
        let say = |error: std::io::Error| format!("{}: {error}", dir.display());
        let mut names = Vec::new();
        let mut lineages = BTreeMap::from([(1, Lineage::default())]);
        let mut segment = None;
        for entry in std::fs::read_dir(&dir).map_err(say)? {
            let entry = entry.map_err(say)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(timeline) = name.strip_suffix(".history").and_then(|n| u32::from_str_radix(n, 16).ok()) {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                lineages.extend(parse_history(&text).map(|lineage| (timeline, lineage)));
            } else if let Some(parts) = segment_parts(&name) {
                segment = segment.or_else(|| entry.metadata().ok().map(|is| is.len()).filter(|n| n.is_power_of_two()));
                names.push(parts);
            }
        }
        let segment = segment.unwrap_or(16 * 1024 * 1024).max(1024 * 1024);
        let per_id = 0x1_0000_0000 / segment;
        let files = names.into_iter().map(|(timeline, high, low)| ((high * per_id + low, timeline), ())).collect();
        Ok(Wal { dir, segment, files, lineages, chain: vec![(1, 0)], open: None })
    }

    /// The path that led to a timeline.
    pub(crate) fn lineage(&self, timeline: Timeline) -> Option<&Lineage> {
        self.lineages.get(&timeline.0)
    }

    /// Where a timeline begins.
    fn begins(&self, timeline: u32) -> Option<u64> {
        Some(self.lineages.get(&timeline)?.0.last().map_or(0, |left| left.lsn.0))
    }

    /// The timeline of the record that ends at `end`, given that the server replayed up to there.
    ///
    /// The server reads each segment from the file of the newest timeline of its path that has one, so the record came from the newest
    /// timeline T with a file that covers byte `end − 1`, unless T only begins at or after `end` (then the file was copied or begun
    /// to be streamed, and the record lies on an older one). A history alone does not count: a log that diverged may have received it.
    pub(crate) fn timeline_of(&self, end: Lsn) -> Option<Timeline> {
        let segment = end.0.checked_sub(1)? / self.segment;
        let with_file = self.files.range((segment, 0)..=(segment, u32::MAX)).rev();
        let mut newest = with_file.map(|((_, timeline), ())| *timeline);
        newest.find(|timeline| self.begins(*timeline).is_some_and(|begins| end.0 > begins)).map(Timeline)
    }

    /// Reads along the path of `timeline` from now on.
    pub(crate) fn follow(&mut self, timeline: Timeline) -> Result<(), String> {
        let lineage =
            self.lineages.get(&timeline.0).ok_or_else(|| format!("timeline {timeline} has no history file"))?;
        let mut chain = Vec::new();
        let mut begins = 0;
        for left in &lineage.0 {
            chain.push((left.timeline.0, begins));
            begins = left.lsn.0;
        }
        chain.push((timeline.0, begins));
        chain.reverse();
        self.chain = chain;
        self.open = None;
        Ok(())
    }

    /// The newest timeline here on whose path a log stands that has reached `at`.
    pub(crate) fn newest_through(&self, at: Position) -> Timeline {
        let through = |(timeline, lineage): &(&u32, &Lineage)| {
            lineage.contains(at, Timeline(**timeline), Lsn(u64::MAX)) || **timeline == at.timeline.0
        };
        self.lineages.iter().filter(through).map(|(timeline, _)| Timeline(*timeline)).max().unwrap_or(at.timeline)
    }

    /// The page at this address along the path followed. From the file of the newest timeline that has one for its segment, as the server
    /// reads it; but a server that goes over to a timeline streams its first segment from that segment's first byte on into a file of its
    /// own. Cut in between, that file ends before the fork, although everything up to there is in the older timeline's. So a page that the
    /// newer file has not is the older one's, as far as the fork.
    fn page(&mut self, address: u64) -> Option<Vec<u8>> {
        let segment = address / self.segment;
        let mut ends = u64::MAX;
        for (timeline, begins) in self.chain.clone() {
            if begins / self.segment > segment || !self.files.contains_key(&(segment, timeline)) {
                continue;
            }
            if let Some(mut bytes) = self.page_of(timeline, address) {
                let common = usize::try_from(ends - address).map_or(bytes.len(), |common| common.min(bytes.len()));
                bytes[common..].fill(0);
                return Some(bytes);
            }
            if begins <= address {
                return None;
            }
            ends = ends.min(begins);
        }
        None
    }

    fn page_of(&mut self, timeline: u32, address: u64) -> Option<Vec<u8>> {
        let key = (address / self.segment, timeline);
        if self.open.as_ref().is_none_or(|(open, _)| *open != key) {
            let per_id = 0x1_0000_0000 / self.segment;
            let name = format!("{timeline:08X}{:08X}{:08X}", key.0 / per_id, key.0 % per_id);
            self.open = Some((key, File::open(self.dir.join(name)).ok()?));
        }
        let mut bytes = vec![0; PAGE as usize];
        self.open.as_ref()?.1.read_exact_at(&mut bytes, address % self.segment).ok()?;
        let fits = number(&bytes, 8, 8) == address && number(&bytes, 0, 2) & 0xFF00 == 0xD100;
        fits.then_some(bytes)
    }

    /// Reads the record at `at`; `None`: there is no whole one. `previous`: where the record before it starts, if known.
    pub(crate) fn record(&mut self, at: u64, previous: Option<u64>) -> Option<Record> {
        let mut page_at = at - at % PAGE;
        let mut page = self.page(page_at)?;
        let start = if at == page_at { at + header_length(&page) } else { at };
        if at == page_at && flags(&page) & FLAG_CONTINUES != 0 || start - page_at < header_length(&page) {
            return None;
        }
        let total = usize::try_from(number(&page, (start - page_at) as usize, 4)).ok()?;
        if !(RECORD_HEADER..1 << 30).contains(&total) {
            return None;
        }
        let mut head = Vec::with_capacity(RECORD_HEADER);
        let mut sum = 0;
        let mut left = total;
        let mut offset = (start - page_at) as usize;
        loop {
            let here = left.min(PAGE as usize - offset);
            let bytes = &page[offset..offset + here];
            let of_head = here.min(RECORD_HEADER - head.len());
            head.extend_from_slice(&bytes[..of_head]);
            sum = crc32c::crc32c_append(sum, &bytes[of_head..]);
            left -= here;
            offset += here;
            if left == 0 {
                break;
            }
            page_at += PAGE;
            page = self.page(page_at)?;
            let goes_on = flags(&page) & FLAG_CONTINUES != 0 && number(&page, 16, 4) == left as u64;
            if !goes_on {
                return None;
            }
            offset = header_length(&page) as usize;
        }
        let before = number(&head, 8, 8);
        let sound = crc32c::crc32c_append(sum, &head[..20]) == number(&head, 20, 4) as u32;
        if !sound || previous.map_or(before >= start, |previous| before != previous) {
            return None;
        }
        let end = (page_at + offset as u64).next_multiple_of(8);
        let is_switch = head[17] == 0 && head[16] & 0xF0 == 0x40;
        Some(Record { start, end: if is_switch { end.next_multiple_of(self.segment) } else { end } })
    }

    /// The record that ends at `end`, found by walking forward from a page where a record begins.
    pub(crate) fn last_before(&mut self, end: u64) -> Option<Record> {
        // A log switch ends far behind its last byte; go back until a page holds a beginning.
        let mut page_at = (end.checked_sub(1)?) / PAGE * PAGE;
        for _ in 0..200_000 {
            if let Some(mut at) = self.first_on(page_at).filter(|at| *at < end) {
                let mut previous = None;
                while let Some(record) = self.record(at, previous) {
                    if record.end >= end {
                        return (record.end == end).then_some(record);
                    }
                    previous = Some(record.start);
                    at = record.end;
                }
                // The first page's walk broke: what lies there does not lead to `end`.
                if previous.is_some() {
                    return None;
                }
            }
            page_at = page_at.checked_sub(PAGE)?;
        }
        None
    }

    fn first_on(&mut self, page_at: u64) -> Option<u64> {
        let page = self.page(page_at)?;
        let header = header_length(&page);
        let rest = if flags(&page) & FLAG_CONTINUES != 0 { number(&page, 16, 4).next_multiple_of(8) } else { 0 };
        let first = header + rest;
        (first < PAGE && number(&page, first as usize, 4) != 0).then_some(page_at + first)
    }

    /// Walks from the record that starts at `at` to the end; gives the last whole record.
    pub(crate) fn walk(&mut self, at: u64) -> Option<Record> {
        let mut last = self.record(at, None)?;
        while let Some(next) = self.record(last.end, Some(last.start)) {
            last = next;
        }
        Some(last)
    }

    /// Is there no whole record at `end`, where the one before ended?
    pub(crate) fn is_end(&mut self, end: Lsn) -> Result<bool, String> {
        let last = self
            .last_before(end.0)
            .ok_or_else(|| format!("no whole record ends at {end} in {}", self.dir.display()))?;
        Ok(self.record(end.0, Some(last.start)).is_none())
    }

    /// Segment files that lie on the path followed, from the one that covers `from` on, oldest first.
    pub(crate) fn segments_from(&self, from: u64) -> Vec<PathBuf> {
        let on_path = |timeline: u32| self.chain.iter().any(|(on, _)| *on == timeline);
        let per_id = 0x1_0000_0000 / self.segment;
        let files = self.files.keys().filter(|(number, timeline)| *number >= from / self.segment && on_path(*timeline));
        files
            .map(|(number, timeline)| {
                self.dir.join(format!("{timeline:08X}{:08X}{:08X}", number / per_id, number % per_id))
            })
            .collect()
    }

    /// Timelines above this one of which there are files.
    pub(crate) fn above(&self, timeline: Timeline) -> Vec<u32> {
        let real = self.lineages.keys().copied();
        let mut all: Vec<u32> = real.chain(self.files.keys().map(|(_, t)| *t)).filter(|t| *t > timeline.0).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

fn segment_parts(name: &str) -> Option<(u32, u64, u64)> {
    if name.len() != 24 || !name.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)) {
        return None;
    }
    let part = |at: usize| u32::from_str_radix(&name[at..at + 8], 16).ok();
    Some((part(0)?, u64::from(part(8)?), u64::from(part(16)?)))
}

/// A little-endian number of `length` bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))
}

fn flags(page: &[u8]) -> u16 {
    number(page, 2, 2) as u16
}

fn header_length(page: &[u8]) -> u64 {
    if flags(page) & FLAG_LONG != 0 { LONG_HEADER } else { SHORT_HEADER }
}

#[cfg(test)]
#[path = "wal_tests.rs"]
mod tests;
