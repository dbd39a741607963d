//! The archive of the log: owned by the primary of the newest term, never overwritten, healed of gaps from whatever a server still has.
//!
//! The owner sweeps its `pg_wal`: every whole segment on its own path of timelines that the repository does not hold goes there. A new
//! primary sweeps the same way, so what the old one did not bring is brought from the new one's files, which are the same up to the fork.
//! A deposed primary is refused by the term that stands in the repository; what it managed to write before lies on its timeline before
//! the fork, or under a name that no restore of the new path asks for.

use crate::Header;
use crate::objects::{Committed, Key};
use crate::postgres::log::{LogFile, SegmentSize, check_segment, owner, parse_history, segments};
use crate::repository::{Repository, VaultError, sum_of};
use mainstay_model::{Lineage, Position, SystemId, Term, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The archive in the hands of its owner.
pub struct Archive {
    repository: Repository,
    system: SystemId,
    size: SegmentSize,
    term: Term,
    by: String,
    /// Compared with the repository in this process's life.
    known: BTreeSet<LogFile>,
}

/// What one sweep did.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Files brought to the repository.
    pub pushed: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
    /// Files that are damaged here: one sentence each. Conflicts are told by [`Archive::conflicts`].
    pub problems: Vec<String>,
    /// It ended before everything was brought.
    pub more: bool,
}

/// So many files are brought by one sweep: what is done is told in between, and servers let go of it.
pub const SWEEP_MAX: usize = 32;

/// Files brought at once, each whole in memory; of a log with larger segments than these (bytes), one.
const THREADS: usize = 2;
const LARGE: u64 = 64 << 20;

/// What one thread of a sweep did.
#[derive(Default)]
struct Brought {
    sweep: Sweep,
    known: BTreeSet<LogFile>,
    failed: Option<VaultError>,
}

/// What an archive holds of one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Its files.
    pub files: BTreeSet<LogFile>,
}

fn damaged(name: &str, says: &str) -> VaultError {
    VaultError::Damaged(format!("{name}: {says}"))
}

/// A file of the log, if it was still this one after it was read. The server gives an old file a later one's name before it writes
/// into it: what still has its name has its content.
fn read_settled(path: &Path) -> std::io::Result<Option<Vec<u8>>> {
    let gone = |error: std::io::Error| if error.kind() == std::io::ErrorKind::NotFound { Ok(None) } else { Err(error) };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return gone(error),
    };
    let mut content = Vec::new();
    file.read_to_end(&mut content)?;
    let (read, now) = (file.metadata()?.ino(), std::fs::metadata(path).map(|metadata| metadata.ino()));
    match now {
        Ok(now) => Ok((now == read).then_some(content)),
        Err(error) => gone(error),
    }
}

impl Held {
    /// Asks the repository.
    pub fn list(repository: &Repository, system: SystemId, size: SegmentSize) -> Result<Held, VaultError> {
        let entries = repository.objects().list(&format!("log/{system}/"))?;
        Ok(Held { files: entries.iter().filter_map(|entry| size.parse(entry.key.last())).collect() })
    }
    /// The timelines of which there is anything.
    #[must_use]
    pub fn timelines(&self) -> BTreeSet<Timeline> {
        let of = |file: &LogFile| match *file {
            LogFile::Segment(timeline, _) | LogFile::Partial(timeline, _) | LogFile::History(timeline) => timeline,
        };
        self.files.iter().map(of).collect()
    }
    /// Those of these segments that are not there.
    #[must_use]
    pub fn missing(&self, wanted: &[(Timeline, u64)]) -> Vec<(Timeline, u64)> {
        let absent =
            |(timeline, number): &&(Timeline, u64)| !self.files.contains(&LogFile::Segment(*timeline, *number));
        wanted.iter().filter(absent).copied().collect()
    }
    /// The last segment of a timeline.
    #[must_use]
    pub fn last(&self, timeline: Timeline) -> Option<u64> {
        let numbers = self.files.iter().filter_map(|file| match file {
            LogFile::Segment(is, number) if *is == timeline => Some(*number),
            _ => None,
        });
        numbers.max()
    }
}

/// The path that leads to a timeline, from its history file in the repository.
pub fn lineage(
    repository: &Repository,
    system: SystemId,
    size: SegmentSize,
    timeline: Timeline,
) -> Result<Lineage, VaultError> {
    if timeline.0 <= 1 {
        return Ok(Lineage::default());
    }
    let key = size.key(system, LogFile::History(timeline))?;
    let (_, text) = repository.get(&key)?;
    let parsed = parse_history(&String::from_utf8_lossy(&text)).map_err(|says| damaged(key.as_str(), &says))?;
    parsed.ok_or_else(|| damaged(key.as_str(), "it names no timeline"))
}

/// Reads segments back: whole, this database's, at this place. Without the secret key the checksum only.
pub fn check_held(
    repository: &Repository,
    system: SystemId,
    size: SegmentSize,
    wanted: &[(Timeline, u64)],
) -> Result<(), VaultError> {
    for (timeline, number) in wanted {
        let key = size.key(system, LogFile::Segment(*timeline, *number))?;
        if repository.readable() {
            let (_, bytes) = repository.get(&key)?;
            check_segment(&bytes, system, size, *timeline, *number).map_err(|says| damaged(key.as_str(), &says))?;
        } else {
            repository.check(&key)?;
        }
    }
    Ok(())
}

impl Archive {
    /// Takes the archive for a term. Refused if a newer term has it.
    pub fn claim(
        repository: Repository,
        system: SystemId,
        size: SegmentSize,
        term: Term,
        by: &str,
    ) -> Result<Archive, VaultError> {
        let archive = Archive { repository, system, size, term, by: by.to_owned(), known: BTreeSet::new() };
        archive.still_ours()?;
        let key = Key::new(format!("terms/{system}/{:020}", term.0))?;
        archive.repository.put(&key, archive.header(), by.as_bytes())?;
        archive.still_ours()?;
        Ok(archive)
    }

    /// Helps the owner of a term: brings what it asks for. Refused as the owner is.
    pub fn assist(repository: Repository, system: SystemId, size: SegmentSize, term: Term, by: &str) -> Archive {
        Archive { repository, system, size, term, by: by.to_owned(), known: BTreeSet::new() }
    }

    /// What was compared with the repository and is there.
    pub(crate) fn known(&self) -> impl Iterator<Item = LogFile> {
        self.known.iter().copied()
    }

    /// What was offered under a name that holds something else, and kept aside: one sentence each.
    pub fn conflicts(&self) -> Result<Vec<String>, VaultError> {
        let kept = self.repository.objects().list(&format!("conflicts/{}/", self.system))?;
        let says = |key: &Key| {
            let name = key.last().rsplit_once('-').map_or(key.last(), |(name, _)| name);
            format!("{name} is in the archive, and was offered with other content too, which is kept as {key}")
        };
        Ok(kept.iter().map(|entry| says(&entry.key)).collect())
    }

    fn header(&self) -> Header {
        Header { term: Some(self.term.0), by: self.by.clone(), ..Header::default() }
    }

    fn still_ours(&self) -> Result<(), VaultError> {
        let terms = self.repository.objects().list(&format!("terms/{}/", self.system))?;
        let newest = terms.iter().filter_map(|entry| entry.key.last().parse::<u64>().ok()).max().unwrap_or(0);
        if newest > self.term.0 { Err(VaultError::Deposed { ours: self.term.0, newer: newest }) } else { Ok(()) }
    }

    /// Brings one file, if the repository does not hold it. `Exists` means that it holds the same.
    pub fn push(&mut self, name: &str, content: &[u8]) -> Result<Committed, VaultError> {
        let not = || VaultError::Impossible(format!("{name} is no file of the log"));
        let file = self.size.parse(name).ok_or_else(not)?;
        let done = self.offer(file, name, content)?;
        self.known.insert(file);
        Ok(done)
    }

    fn offer(&self, file: LogFile, name: &str, content: &[u8]) -> Result<Committed, VaultError> {
        match file {
            LogFile::Segment(timeline, number) | LogFile::Partial(timeline, number) => {
                check_segment(content, self.system, self.size, timeline, number)
                    .map_err(|says| damaged(name, &says))?;
            }
            LogFile::History(_) => {
                let parsed = parse_history(&String::from_utf8_lossy(content)).map_err(|says| damaged(name, &says))?;
                parsed.ok_or_else(|| damaged(name, "it names no timeline"))?;
            }
        }
        self.still_ours()?;
        let key = self.size.key(self.system, file)?;
        let there = match self.repository.check(&key) {
            Ok(header) => Some(header),
            Err(error) if error.is_missing() => None,
            Err(error) => return Err(error),
        };
        let ours = sum_of(content);
        let there = match there {
            Some(header) => header,
            None => match self.repository.put_checked(&key, self.header(), (content, &ours))? {
                Committed::Created => return Ok(Committed::Created),
                Committed::Exists => self.repository.check(&key)?,
            },
        };
        // Somebody has it: the same, or a second log under one name.
        if there.sum.as_ref() == Some(&ours) {
            return Ok(Committed::Exists);
        }
        let short = ours.get(..16).unwrap_or_default();
        let kept = Key::new(format!("conflicts/{}/{name}-{short}", self.system))?;
        self.repository.put(&kept, self.header(), content)?;
        Err(VaultError::Conflict { name: name.to_owned(), kept: kept.to_string() })
    }

    /// Which of the files in a `pg_wal` are whole and lie on the path of a log that ends at `end`.
    fn of_path(&self, dir: &Path, end: Position, left: &Lineage) -> Result<Vec<LogFile>, VaultError> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(|e| VaultError::file(dir, e))? {
            let entry = entry.map_err(|e| VaultError::file(dir, e))?;
            let Some(file) = self.size.parse(&entry.file_name().to_string_lossy()) else { continue };
            let until = |timeline| {
                let fork = left.0.iter().find(|fork| fork.timeline == timeline).map(|fork| fork.lsn);
                fork.or((timeline == end.timeline).then_some(end.lsn))
            };
            let wanted = match file {
                LogFile::Segment(timeline, number) => {
                    until(timeline).is_some_and(|lsn| number.saturating_add(1).saturating_mul(self.size.0) <= lsn.0)
                }
                LogFile::Partial(timeline, _) => timeline != end.timeline && until(timeline).is_some(),
                LogFile::History(timeline) => until(timeline).is_some(),
            };
            if wanted {
                files.push(file);
            }
        }
        // Histories first: a timeline whose past is not known can not be restored.
        files.sort_by_key(|file| (!matches!(file, LogFile::History(_)), *file));
        Ok(files)
    }

    /// Brings what a `pg_wal` has and the repository has not. `end` is how far the log is flushed, `left` the path of its timeline.
    /// One damaged or conflicting file does not keep the others back (they would fill the disk); a repository out of reach does.
    pub fn sweep(&mut self, pg_wal: &Path, end: Position, left: &Lineage) -> Result<Sweep, VaultError> {
        self.bring(pg_wal, (end, left), |_| true)
    }

    /// The same for some files only.
    pub(crate) fn bring(
        &mut self,
        pg_wal: &Path,
        (end, left): (Position, &Lineage),
        wanted: impl Fn(&LogFile) -> bool,
    ) -> Result<Sweep, VaultError> {
        let mut files = self.of_path(pg_wal, end, left)?;
        files.retain(|file| !self.known.contains(file) && wanted(file));
        let histories = files.partition_point(|file| matches!(file, LogFile::History(_)));
        let (first, rest) = files.split_at(histories);
        let threads = if self.size.0 > LARGE { 1 } else { THREADS };
        let (slots, mut sweep, mut failed) = (AtomicUsize::new(0), Sweep::default(), None);
        for (files, threads) in [(first, 1), (rest, threads)] {
            if failed.is_some() {
                break;
            }
            let turn = AtomicUsize::new(0);
            let brought = std::thread::scope(|scope| {
                let work = || self.some(pg_wal, files, &turn, &slots);
                // The last of them is this thread.
                let others: Vec<_> = (1..threads.min(files.len())).map(|_| scope.spawn(work)).collect();
                let mut all = vec![work()];
                let broken = || VaultError::Server("a thread of the archive ended by a mistake of this program".into());
                let lost = |_| Brought { failed: Some(broken()), ..Brought::default() };
                all.extend(others.into_iter().map(|other| other.join().unwrap_or_else(lost)));
                all
            });
            for mut one in brought {
                self.known.append(&mut one.known);
                sweep.pushed.append(&mut one.sweep.pushed);
                sweep.problems.append(&mut one.sweep.problems);
                sweep.bytes += one.sweep.bytes;
                sweep.more |= one.sweep.more;
                failed = failed.or(one.failed);
            }
        }
        sweep.pushed.sort_by_key(|name| {
            let file = self.size.parse(name);
            (!matches!(file, Some(LogFile::History(_))), file)
        });
        sweep.problems.sort();
        failed.map_or(Ok(sweep), Err)
    }

    /// Brings files as long as there are any, and room in this sweep.
    fn some(&self, pg_wal: &Path, files: &[LogFile], turn: &AtomicUsize, slots: &AtomicUsize) -> Brought {
        let mut brought = Brought::default();
        while let Some(file) = files.get(turn.fetch_add(1, Ordering::Relaxed)) {
            if slots.fetch_add(1, Ordering::Relaxed) >= SWEEP_MAX {
                brought.sweep.more = true;
                return brought;
            }
            match self.one(pg_wal, *file, &mut brought) {
                Ok(true) => {}
                Ok(false) => drop(slots.fetch_sub(1, Ordering::Relaxed)),
                Err(error) => {
                    // Nobody else begins another.
                    turn.store(files.len(), Ordering::Relaxed);
                    brought.failed = Some(error);
                    return brought;
                }
            }
        }
        brought
    }

    /// Brings one; `false`: there was nothing to bring.
    fn one(&self, pg_wal: &Path, file: LogFile, brought: &mut Brought) -> Result<bool, VaultError> {
        let name = self.size.file_name(file);
        let path = pg_wal.join(&name);
        // The server recycled it meanwhile: if nobody brought it, it is a gap.
        let Some(content) = read_settled(&path).map_err(|e| VaultError::file(&path, e))? else { return Ok(false) };
        match self.offer(file, &name, &content) {
            Ok(done) => {
                brought.known.insert(file);
                if done == Committed::Created {
                    brought.sweep.bytes += content.len() as u64;
                    brought.sweep.pushed.push(name);
                }
                Ok(done == Committed::Created)
            }
            // What was offered is kept in the repository: that is told for as long as it lies there.
            Err(VaultError::Conflict { .. }) => Ok(false),
            Err(error @ VaultError::Damaged(_)) => {
                brought.sweep.problems.push(error.to_string());
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// The holes in the log between two positions: each as first and last segment that is missing.
pub fn gaps(
    repository: &Repository,
    system: SystemId,
    size: SegmentSize,
    from: Position,
    to: Position,
) -> Result<Vec<(String, String)>, VaultError> {
    let left = lineage(repository, system, size, to.timeline)?;
    let wanted = segments(size, from, to, &left).map_err(VaultError::Impossible)?;
    let mut holes: BTreeMap<u64, u64> = BTreeMap::new();
    for (_, number) in Held::list(repository, system, size)?.missing(&wanted) {
        match holes.last_entry() {
            Some(mut entry) if *entry.get() + 1 == number => *entry.get_mut() = number,
            _ => drop(holes.insert(number, number)),
        }
    }
    let name = |number: u64| size.name(owner(size, number, to.timeline, &left), number);
    Ok(holes.into_iter().map(|(first, last)| (name(first), name(last))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::{Fault, Memory};
    use mainstay_model::Lsn;
    use std::sync::Arc;

    const SIZE: SegmentSize = SegmentSize(1 << 20);
    const SYSTEM: SystemId = SystemId(77);

    fn segment(timeline: u32, number: u64, fill: u8) -> Vec<u8> {
        let mut bytes = vec![fill; 1 << 20];
        bytes[0..4].copy_from_slice(&0x0002_d110u32.to_le_bytes());
        bytes[4..8].copy_from_slice(&timeline.to_le_bytes());
        bytes[8..16].copy_from_slice(&(number << 20).to_le_bytes());
        bytes[24..32].copy_from_slice(&SYSTEM.0.to_le_bytes());
        bytes
    }

    fn repository() -> (Memory, Repository) {
        let memory = Memory::default();
        let repository = Repository::create(Arc::new(memory.clone()), &[]).unwrap();
        (memory, repository)
    }

    fn claim(repository: &Repository, term: u64) -> Result<Archive, VaultError> {
        Archive::claim(repository.clone(), SYSTEM, SIZE, Term(term), "n1")
    }

    #[test]
    fn p16_the_same_again_is_fine_and_other_content_is_kept_aside_and_never_overwrites() {
        let (_, repository) = repository();
        let (mut one, mut two) = (claim(&repository, 3).unwrap(), claim(&repository, 3).unwrap());
        let name = SIZE.name(Timeline(1), 5);
        assert_eq!(one.push(&name, &segment(1, 5, 1)).unwrap(), Committed::Created);
        assert_eq!(two.push(&name, &segment(1, 5, 1)).unwrap(), Committed::Exists);
        let error = two.push(&name, &segment(1, 5, 2)).unwrap_err();
        let VaultError::Conflict { kept, .. } = error else { panic!("{error}") };
        assert_eq!(repository.get(&Key::new(kept).unwrap()).unwrap().1, segment(1, 5, 2));
        let key = SIZE.key(SYSTEM, LogFile::Segment(Timeline(1), 5)).unwrap();
        let (header, content) = repository.get(&key).unwrap();
        assert!(content == segment(1, 5, 1) && header.term == Some(3));
    }

    #[test]
    fn p16_a_deposed_primary_neither_adds_nor_takes_the_archive_back() {
        let (_, repository) = repository();
        let mut old = claim(&repository, 3).unwrap();
        let mut new = claim(&repository, 4).unwrap();
        let name = SIZE.name(Timeline(1), 5);
        assert!(matches!(old.push(&name, &segment(1, 5, 1)), Err(VaultError::Deposed { ours: 3, newer: 4 })));
        assert!(matches!(claim(&repository, 3), Err(VaultError::Deposed { .. })));
        assert!(Held::list(&repository, SYSTEM, SIZE).unwrap().files.is_empty());
        new.push(&name, &segment(1, 5, 1)).unwrap();
    }

    #[test]
    fn p14_what_is_no_segment_of_this_database_at_this_place_is_refused() {
        let (_, repository) = repository();
        let mut archive = claim(&repository, 1).unwrap();
        let mut of_other = segment(1, 5, 0);
        of_other[24] = 1;
        for bad in [segment(1, 6, 0), segment(2, 5, 0), of_other, segment(1, 5, 0)[..8192].to_vec(), vec![0; 1 << 20]] {
            assert!(matches!(archive.push(&SIZE.name(Timeline(1), 5), &bad), Err(VaultError::Damaged(_))));
        }
        assert!(Held::list(&repository, SYSTEM, SIZE).unwrap().files.is_empty());
    }

    #[test]
    fn a_cut_at_any_step_leaves_no_half_segment_and_the_next_try_completes() {
        for steps in 0..6 {
            let (memory, repository) = repository();
            let mut archive = claim(&repository, 1).unwrap();
            let name = SIZE.name(Timeline(1), 5);
            memory.set_fault(Fault::CutAfter(steps));
            let first = archive.push(&name, &segment(1, 5, 9));
            memory.set_fault(Fault::None);
            let held = !Held::list(&repository, SYSTEM, SIZE).unwrap().files.is_empty();
            assert!(held || first.is_err(), "said to be there, and is not");
            archive.push(&name, &segment(1, 5, 9)).unwrap();
            check_held(&repository, SYSTEM, SIZE, &[(Timeline(1), 5)]).unwrap();
        }
    }

    #[test]
    fn p20_after_a_take_over_the_new_primary_heals_the_gap_up_to_the_fork_and_names_what_it_can_not() {
        let (_, repository) = repository();
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        claim(&repository, 1).unwrap().push(&SIZE.name(Timeline(1), 2), &segment(1, 2, 0)).unwrap();
        // Segment 3 is with nobody; 4 is with the new primary only; the fork lies in 5; 7 is not whole; 9 was recycled.
        let fork = Position { timeline: Timeline(1), lsn: Lsn((5 << 20) + 64) };
        for (timeline, number) in [(1, 2), (1, 4), (2, 5), (2, 6), (2, 7)] {
            write(&SIZE.name(Timeline(timeline), number), &segment(timeline, number, 0));
        }
        write(&SIZE.name(Timeline(1), 5), &segment(1, 5, 0));
        write(&SIZE.name(Timeline(2), 9), &segment(1, 2, 0));
        write(&format!("{}.partial", SIZE.name(Timeline(1), 5)), &segment(1, 5, 0));
        write("00000002.history", format!("1\t{}\tno reason\n", fork.lsn).as_bytes());
        write("00000003.history", b"# reserved by mainstay\n");
        let mut archive = claim(&repository, 2).unwrap();
        let end = Position { timeline: Timeline(2), lsn: Lsn((7 << 20) + 8192) };
        let sweep = archive.sweep(dir.path(), end, &Lineage(vec![fork])).unwrap();
        assert_eq!(sweep.problems, Vec::<String>::new());
        let partial = format!("{}.partial", SIZE.name(Timeline(1), 5));
        let names = [
            "00000002.history".to_owned(),
            SIZE.name(Timeline(1), 4),
            SIZE.name(Timeline(2), 5),
            SIZE.name(Timeline(2), 6),
            partial,
        ];
        assert_eq!(sweep.pushed, names);
        assert!(archive.sweep(dir.path(), end, &Lineage(vec![fork])).unwrap().pushed.is_empty());
        let start = Position { timeline: Timeline(1), lsn: Lsn(2 << 20) };
        let end = Position { timeline: Timeline(2), lsn: Lsn(7 << 20) };
        let hole = SIZE.name(Timeline(1), 3);
        assert_eq!(gaps(&repository, SYSTEM, SIZE, start, end).unwrap(), [(hole.clone(), hole)]);
    }
}
