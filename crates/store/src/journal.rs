//! The member's durable memory: one append-only file that begins with a snapshot.
//!
//! ```text
//! journal-<generation>   frame frame frame …
//! frame                  magic u32 │ length u32 │ sequence u64 │ CRC-32 of the three and the payload │ payload
//! payload                records: kind u8 │ length u32 │ bytes
//! ```
//!
//! One frame per fsync, so a crash can tear the last frame only. On opening, a bad last frame is cut off: nobody was ever told of
//! it. A bad frame *followed by a good one* is no torn tail but damage to what was acknowledged: the member refuses to start.
//! A checkpoint writes a new file (snapshot, vote, kept entries), syncs it, renames it, syncs the directory, removes the old one.
//!
//! Absent: reading while running (the mirror holds the same in memory), retrying after a failed write or fsync (what is on the
//! disk is then unknown, so the member must stop).

use crate::codec::{In, Malformed, Out};
use raft::eraftpb::{Entry, HardState, Snapshot};
use rustix::fs::{FlockOperation, flock};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const MAGIC: u32 = 0x4d73_4a31;
const HEADER: usize = 20;
/// Far above what a batch or a checkpoint holds; guards against reading a wild length.
const PAYLOAD_MAX: usize = 256 * 1024 * 1024;

const COPY: u8 = 1;
const HARD: u8 = 2;
const ENTRY: u8 = 3;
const SNAPSHOT: u8 = 4;
const TRIMMED: u8 = 5;
const OWNER: u8 = 6;

/// Makes a file's data durable; replaced in tests by disks that fail or stall.
pub(crate) type Sync = Arc<dyn Fn(&File) -> io::Result<()> + Send + std::marker::Sync>;

/// Why a journal cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("{what} {path}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("{0} is in use by another process: is another agent of this node running?")]
    InUse(PathBuf),
    #[error("{path} is damaged at byte {at}, before records that were acknowledged")]
    Damaged { path: PathBuf, at: u64 },
}

/// Everything that the journal says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Contents {
    /// This directory's own random number.
    pub(crate) copy: u64,
    /// Which store it is a part of: 0 is the one that a cluster begins with.
    pub(crate) group: u64,
    /// Whose it is; empty: written by a version that did not say.
    pub(crate) owner: String,
    pub(crate) hard: HardState,
    pub(crate) snapshot: Snapshot,
    /// Index and term of the entry before the first in `entries`.
    pub(crate) trimmed: (u64, u64),
    pub(crate) entries: Vec<Entry>,
}

/// Collects records for one frame.
#[derive(Default)]
pub(crate) struct Records(Out);

impl Records {
    fn add(&mut self, kind: u8, bytes: &[u8]) {
        self.0 = std::mem::take(&mut self.0).u8(kind).bytes(bytes);
    }
    // Writing a message to memory fails only if a required field is missing; proto3 has none.
    fn add_message(&mut self, kind: u8, message: &impl protobuf::Message) {
        let bytes = message.write_to_bytes().unwrap_or_default();
        self.add(kind, &bytes);
    }
    pub(crate) fn hard(&mut self, hard: &HardState) {
        self.add_message(HARD, hard);
    }
    pub(crate) fn entry(&mut self, entry: &Entry) {
        self.add_message(ENTRY, entry);
    }
    /// Everything, as the head of a new file.
    pub(crate) fn checkpoint(contents: &Contents) -> Self {
        let mut records = Self::default();
        records.add(COPY, &Out::default().u64(contents.copy).0);
        records.add(OWNER, &Out::default().u64(contents.group).bytes(contents.owner.as_bytes()).0);
        records.add_message(SNAPSHOT, &contents.snapshot);
        records.add(TRIMMED, &Out::default().u64(contents.trimmed.0).u64(contents.trimmed.1).0);
        records.hard(&contents.hard);
        for entry in &contents.entries {
            records.entry(entry);
        }
        records
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0.0.is_empty()
    }
    pub(crate) fn append(&mut self, other: &Records) {
        self.0.0.extend_from_slice(&other.0.0);
    }
}

impl Contents {
    /// Nobody has added this member yet, and it has voted for nobody.
    pub(crate) fn is_nobodys(&self) -> bool {
        self.snapshot.data.is_empty() && self.entries.is_empty() && self.hard.vote == 0
    }

    fn read(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        let mut input = In(payload);
        while !input.0.is_empty() {
            let kind = input.u8()?;
            let bytes = input.bytes()?;
            self.record(kind, bytes)?;
        }
        Ok(())
    }

    fn record(&mut self, kind: u8, bytes: &[u8]) -> Result<(), Malformed> {
        let mut input = In(bytes);
        match kind {
            COPY => self.copy = input.u64()?,
            OWNER => (self.group, self.owner) = (input.u64()?, input.text()?),
            HARD => self.hard = parse(bytes)?,
            SNAPSHOT => {
                self.snapshot = parse(bytes)?;
                self.entries.clear();
            }
            TRIMMED => self.trimmed = (input.u64()?, input.u64()?),
            ENTRY => self.entry(parse(bytes)?)?,
            _ => return Err(Malformed),
        }
        Ok(())
    }

    /// A later entry of the same index replaces the earlier one and all after it.
    fn entry(&mut self, entry: Entry) -> Result<(), Malformed> {
        let position = entry.index.checked_sub(self.trimmed.0 + 1).ok_or(Malformed)?;
        let position = usize::try_from(position).map_err(|_| Malformed)?;
        if position > self.entries.len() {
            return Err(Malformed);
        }
        self.entries.truncate(position);
        self.entries.push(entry);
        Ok(())
    }
}

fn parse<M: protobuf::Message>(bytes: &[u8]) -> Result<M, Malformed> {
    M::parse_from_bytes(bytes).map_err(|_| Malformed)
}

/// The open journal.
pub(crate) struct Journal {
    dir: PathBuf,
    file: File,
    path: PathBuf,
    generation: u64,
    sequence: u64,
    sync: Sync,
    /// Held until the journal is dropped: two processes on one directory would write over each other.
    _lock: File,
}

impl Journal {
    /// Opens the journal in `dir`, or begins one with what `first` returns.
    pub(crate) fn open(
        dir: &Path,
        sync: Sync,
        first: impl FnOnce() -> Contents,
    ) -> Result<(Self, Contents), OpenError> {
        std::fs::create_dir_all(dir).map_err(io_error("cannot create", dir))?;
        let lock = lock(dir)?;
        let generations = generations(dir)?;
        let Some(&generation) = generations.last() else {
            let contents = first();
            let (file, path) =
                begin_file(dir, 1, &Records::checkpoint(&contents), &sync).map_err(io_error("cannot begin", dir))?;
            let journal = Self { dir: dir.to_owned(), file, path, generation: 1, sequence: 1, sync, _lock: lock };
            return Ok((journal, contents));
        };
        for older in &generations[..generations.len() - 1] {
            let path = file_path(dir, *older);
            std::fs::remove_file(&path).map_err(io_error("cannot remove", &path))?;
        }
        let path = file_path(dir, generation);
        let (file, contents, sequence) = recover(&path, &sync)?;
        let journal = Self { dir: dir.to_owned(), file, path, generation, sequence, sync, _lock: lock };
        Ok((journal, contents))
    }

    /// Appends one frame and makes it durable.
    pub(crate) fn append(&mut self, records: &Records) -> io::Result<()> {
        self.sequence += 1;
        self.file.write_all(&frame(self.sequence, &records.0.0))?;
        (self.sync)(&self.file)
    }

    /// Begins a new file with these records and gives the old one up.
    pub(crate) fn checkpoint(&mut self, records: &Records) -> io::Result<()> {
        let generation = self.generation + 1;
        let (file, path) = begin_file(&self.dir, generation, records, &self.sync)?;
        let old = std::mem::replace(&mut self.path, path);
        self.file = file;
        self.generation = generation;
        self.sequence = 1;
        std::fs::remove_file(old)
    }
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { what, path, source }
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
    let lock = open.map_err(io_error("cannot open", &path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(path)),
        Err(error) => Err(io_error("cannot lock", &path)(error.into())),
    }
}

pub(crate) fn file_path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("journal-{generation:020}"))
}

/// The finished journal files, oldest first. Unfinished ones are removed.
fn generations(dir: &Path) -> Result<Vec<u64>, OpenError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io_error("cannot list", dir))? {
        let path = entry.map_err(io_error("cannot list", dir))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.ends_with(".new") {
            std::fs::remove_file(&path).map_err(io_error("cannot remove", &path))?;
        } else if let Some(generation) = name.strip_prefix("journal-").and_then(|number| number.parse().ok()) {
            found.push(generation);
        }
    }
    found.sort_unstable();
    Ok(found)
}

fn begin_file(dir: &Path, generation: u64, records: &Records, sync: &Sync) -> io::Result<(File, PathBuf)> {
    let path = file_path(dir, generation);
    let unfinished = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&unfinished)?;
    file.write_all(&frame(1, &records.0.0))?;
    sync(&file)?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    File::open(dir)?.sync_all()?;
    Ok((file, path))
}

fn crc(length: u32, sequence: u64, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&MAGIC.to_be_bytes());
    hasher.update(&length.to_be_bytes());
    hasher.update(&sequence.to_be_bytes());
    hasher.update(payload);
    hasher.finalize()
}

fn frame(sequence: u64, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&MAGIC.to_be_bytes());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&sequence.to_be_bytes());
    frame.extend_from_slice(&crc(length, sequence, payload).to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The frame at the front of `bytes`: sequence and payload.
fn read_frame(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut input = In(bytes);
    if input.u32().ok()? != MAGIC {
        return None;
    }
    let length = input.u32().ok()?;
    let sequence = input.u64().ok()?;
    let expected = input.u32().ok()?;
    if length as usize > PAYLOAD_MAX {
        return None;
    }
    let payload = input.0.get(..length as usize)?;
    (crc(length, sequence, payload) == expected).then_some((sequence, payload))
}

/// Reads a file, cuts a torn tail off, and leaves it open for appending.
fn recover(path: &Path, sync: &Sync) -> Result<(File, Contents, u64), OpenError> {
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io_error("cannot open", path))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(io_error("cannot read", path))?;
    let (contents, sequence, end) =
        replay(&bytes).map_err(|at| OpenError::Damaged { path: path.to_owned(), at: at as u64 })?;
    if end < bytes.len() {
        tracing::warn!(path = %path.display(), torn = bytes.len() - end, "cutting the torn end off the journal");
        file.set_len(end as u64).map_err(io_error("cannot cut", path))?;
    }
    // Also when nothing was cut: what was read may still be on its way to the disk from a killed process.
    sync(&file).map_err(io_error("cannot sync", path))?;
    file.seek(SeekFrom::Start(end as u64)).map_err(io_error("cannot seek in", path))?;
    Ok((file, contents, sequence))
}

/// Contents, last sequence and end of the good part; or where the damage is.
fn replay(bytes: &[u8]) -> Result<(Contents, u64, usize), usize> {
    let mut contents = Contents::default();
    let (mut at, mut last) = (0, 0);
    while at < bytes.len() {
        match read_frame(&bytes[at..]) {
            Some((sequence, payload)) if sequence == last + 1 => {
                contents.read(payload).map_err(|_| at)?;
                last = sequence;
                at += HEADER + payload.len();
            }
            _ => break,
        }
    }
    if last == 0 || good_frame_after(&bytes[at..], last) {
        return Err(at);
    }
    Ok((contents, last, at))
}

/// Is there a whole frame of this file behind the bad place?
fn good_frame_after(bytes: &[u8], last: u64) -> bool {
    let magic = MAGIC.to_be_bytes();
    bytes
        .windows(4)
        .enumerate()
        .any(|(at, window)| window == magic && read_frame(&bytes[at..]).is_some_and(|(sequence, _)| sequence > last))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sync() -> Sync {
        Arc::new(File::sync_data)
    }

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![7; 50].into(), ..Entry::default() }
    }

    fn batch(entries: &[Entry]) -> Records {
        let mut records = Records::default();
        for entry in entries {
            records.entry(entry);
        }
        records
    }

    fn first() -> Contents {
        Contents { copy: 42, trimmed: (1, 1), ..Contents::default() }
    }

    fn only_file(dir: &Path) -> PathBuf {
        file_path(dir, *generations(dir).unwrap().last().unwrap())
    }

    #[test]
    fn comes_back_as_written_and_a_conflicting_tail_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), sync(), first).unwrap();
        journal.append(&batch(&[entry(2, 1), entry(3, 1), entry(4, 1)])).unwrap();
        journal.append(&batch(&[entry(3, 2)])).unwrap();
        drop(journal);
        let (_, contents) = Journal::open(dir.path(), sync(), Contents::default).unwrap();
        assert_eq!(contents.copy, 42);
        assert_eq!(contents.entries, vec![entry(2, 1), entry(3, 2)]);
    }

    #[test]
    fn every_torn_tail_gives_the_state_before_the_last_append() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), sync(), first).unwrap();
        journal.append(&batch(&[entry(2, 1)])).unwrap();
        let path = only_file(dir.path());
        let good = std::fs::metadata(&path).unwrap().len();
        journal.append(&batch(&[entry(3, 1), entry(4, 1)])).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for end in usize::try_from(good).unwrap()..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            let (mut journal, contents) = Journal::open(dir.path(), sync(), Contents::default).unwrap();
            assert_eq!(contents.entries, vec![entry(2, 1)], "cut at {end}");
            // The place can be written again, and what is written there is found.
            journal.append(&batch(&[entry(3, 2)])).unwrap();
            drop(journal);
            let (_, contents) = Journal::open(dir.path(), sync(), Contents::default).unwrap();
            assert_eq!(contents.entries, vec![entry(2, 1), entry(3, 2)], "cut at {end}");
        }
        // Pages of one write may reach the disk in any order: zeros at its beginning are a torn tail too.
        let mut holed = whole.clone();
        holed[usize::try_from(good).unwrap()..][..HEADER + 5].fill(0);
        std::fs::write(&path, &holed).unwrap();
        let (_, contents) = Journal::open(dir.path(), sync(), Contents::default).unwrap();
        assert_eq!(contents.entries, vec![entry(2, 1)]);
    }

    #[test]
    fn damage_before_the_tail_is_refused_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), sync(), first).unwrap();
        let path = only_file(dir.path());
        let head = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
        journal.append(&batch(&[entry(2, 1)])).unwrap();
        let second = usize::try_from(std::fs::metadata(&path).unwrap().len()).unwrap();
        journal.append(&batch(&[entry(3, 1)])).unwrap();
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..second {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, &bytes).unwrap();
            let opened = Journal::open(dir.path(), sync(), Contents::default);
            let expected = if at < head { 0 } else { head as u64 };
            assert!(matches!(opened, Err(OpenError::Damaged { at: found, .. }) if found == expected), "byte {at}");
        }
    }

    #[test]
    fn a_checkpoint_replaces_the_file_and_an_unfinished_one_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, contents) = Journal::open(dir.path(), sync(), first).unwrap();
        journal.append(&batch(&[entry(2, 1), entry(3, 1)])).unwrap();
        let kept = Contents { trimmed: (2, 1), entries: vec![entry(3, 1)], ..contents };
        journal.checkpoint(&Records::checkpoint(&kept)).unwrap();
        journal.append(&batch(&[entry(4, 1)])).unwrap();
        drop(journal);
        std::fs::write(dir.path().join("journal-00000000000000000009.new"), b"half").unwrap();
        let (_, contents) = Journal::open(dir.path(), sync(), Contents::default).unwrap();
        assert_eq!((contents.trimmed, contents.entries), ((2, 1), vec![entry(3, 1), entry(4, 1)]));
        assert_eq!(generations(dir.path()).unwrap(), vec![2]);
    }

    #[test]
    fn one_process_per_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = Journal::open(dir.path(), sync(), first).unwrap();
        assert!(matches!(Journal::open(dir.path(), sync(), first), Err(OpenError::InUse(_))));
        drop(held);
        Journal::open(dir.path(), sync(), first).unwrap();
    }
}
