//! The log's files as a server leaves them when it is killed, made byte by byte.

use super::*;

const SEGMENT: u64 = 1024 * 1024;
/// The segment that the tests fill.
const FIRST: u64 = 4 * SEGMENT;

/// A segment of one timeline that is being written.
struct Segment {
    timeline: u32,
    bytes: Vec<u8>,
    previous: u64,
    at: u64,
}

impl Segment {
    fn new(timeline: u32) -> Segment {
        Segment { timeline, bytes: Vec::new(), previous: FIRST - 32, at: FIRST }
    }

    /// Goes on on a newer timeline where this one has come to.
    fn fork(&self, timeline: u32) -> Segment {
        Segment { timeline, bytes: self.bytes.clone(), ..*self }
    }

    /// A page header, if the next byte is a page's first; `rest`: so much of a record goes on there.
    fn header(&mut self, rest: u32) {
        if !self.at.is_multiple_of(PAGE) {
            return;
        }
        let long = self.at.is_multiple_of(SEGMENT);
        let flags = if rest > 0 { FLAG_CONTINUES } else { 0 } | if long { FLAG_LONG } else { 0 };
        self.bytes.extend(0xD110_u16.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(self.timeline.to_le_bytes());
        self.bytes.extend(self.at.to_le_bytes());
        self.bytes.extend(rest.to_le_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(if long { vec![7; 16] } else { Vec::new() });
        self.at = FIRST + self.bytes.len() as u64;
    }

    /// One record of this many bytes; gives where it begins and where the next one does.
    fn record(&mut self, length: usize) -> (u64, u64) {
        let mut record = vec![0; length];
        record[..4].copy_from_slice(&(length as u32).to_le_bytes());
        record[8..16].copy_from_slice(&self.previous.to_le_bytes());
        let seed = self.at as usize + self.timeline as usize;
        record[RECORD_HEADER..].iter_mut().enumerate().for_each(|(at, byte)| *byte = (seed + at) as u8);
        let sum = crc32c::crc32c_append(crc32c::crc32c(&record[RECORD_HEADER..]), &record[..20]);
        record[20..24].copy_from_slice(&sum.to_le_bytes());
        let mut start = None;
        let mut rest = &record[..];
        while !rest.is_empty() {
            self.header(if start.is_some() { rest.len() as u32 } else { 0 });
            start.get_or_insert(self.at);
            let here = rest.len().min((PAGE - self.at % PAGE) as usize);
            self.bytes.extend(&rest[..here]);
            self.at += here as u64;
            rest = &rest[here..];
        }
        while !self.at.is_multiple_of(8) {
            self.bytes.push(0);
            self.at += 1;
        }
        self.previous = start.unwrap();
        (self.previous, self.at)
    }

    /// Records until this far into the segment.
    fn fill(&mut self, upto: u64) {
        for number in 0.. {
            if self.at >= FIRST + upto {
                return;
            }
            self.record(40 + number % 7 * 1000);
        }
    }

    /// As a file of which only the first bytes were written.
    fn write(&self, dir: &Path, upto: usize) {
        let mut bytes = self.bytes[..upto.min(self.bytes.len())].to_vec();
        bytes.resize(SEGMENT as usize, 0);
        let name = format!("{:08X}{:08X}{:08X}", self.timeline, 0, FIRST / SEGMENT);
        std::fs::write(dir.join("pg_wal").join(name), bytes).unwrap();
    }
}

/// A data directory with the history of timeline 2, which leaves timeline 1 at `fork`.
fn directory(fork: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("pg_wal")).unwrap();
    let history = format!("1\t{}\tno recovery target specified\n", Lsn(fork));
    std::fs::write(dir.path().join("pg_wal/00000002.history"), history).unwrap();
    dir
}

fn along(dir: &Path, timeline: u32) -> Wal {
    let mut wal = Wal::list(dir).unwrap();
    wal.follow(Timeline(timeline)).unwrap();
    wal
}

#[test]
fn the_end_before_a_fork_is_found_although_the_newer_timelines_file_was_only_begun() {
    for fork_at in [300_000, 300_032, 40 * PAGE] {
        let mut old = Segment::new(1);
        old.fill(fork_at);
        let fork = old.at;
        let mut new = old.fork(2);
        let (dir, first) = (directory(fork), FIRST + LONG_HEADER);
        // What the old timeline's primary wrote after the fork must not be read along the new one.
        old.fill(fork_at + 50_000);
        new.fill(fork_at + 50_000);
        old.write(dir.path(), usize::MAX);
        for begun in [0, PAGE as usize, 128 * 1024, fork_at as usize / PAGE as usize * PAGE as usize] {
            new.write(dir.path(), begun);
            let mut wal = along(dir.path(), 2);
            assert_eq!(wal.timeline_of(Lsn(fork)), Some(Timeline(1)));
            assert_eq!(wal.is_end(Lsn(fork)), Ok(true), "fork at {fork_at}, begun to {begun}");
            assert_eq!(wal.walk(first).unwrap().end, fork, "fork at {fork_at}, begun to {begun}");
        }
        new.write(dir.path(), usize::MAX);
        let mut wal = along(dir.path(), 2);
        assert_eq!(wal.is_end(Lsn(fork)), Ok(false), "a whole record of the new timeline follows");
        assert_eq!(wal.walk(first).unwrap().end, new.at);
        assert_eq!(wal.timeline_of(Lsn(new.at)), Some(Timeline(2)));
    }
}

#[test]
fn the_end_of_one_timeline_is_where_no_whole_record_follows() {
    let mut only = Segment::new(1);
    only.fill(200_000);
    let end = only.at;
    let (start, after) = only.record(20_000);
    let dir = directory(1);
    for begun in [start, start + 100, after - 8] {
        only.write(dir.path(), (begun - FIRST) as usize);
        let mut wal = along(dir.path(), 1);
        assert_eq!(wal.is_end(Lsn(end)), Ok(true), "torn at {begun}");
        assert_eq!(wal.walk(FIRST + LONG_HEADER).unwrap().end, end);
    }
    only.write(dir.path(), usize::MAX);
    let mut wal = along(dir.path(), 1);
    assert_eq!(wal.is_end(Lsn(end)), Ok(false));
    assert_eq!(wal.last_before(after), Some(Record { start, end: after }));
    assert!(wal.is_end(Lsn(end + 8)).is_err(), "the middle of a record is no end");
}
