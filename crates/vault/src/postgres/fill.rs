//! Carries a plan out: takes the directories, writes files and log, and hands them over.
//!
//! A directory above may belong to the servers' user, who can put a link in the place of what is being filled at any time. So the directories are
//! opened once, checked again when they are taken, and reached through what was opened from then on, never by their names.

use crate::hex;
use crate::objects::Key;
use crate::postgres::content::{Content, PastCache};
use crate::postgres::delta::{self, Mark, copy_at};
use crate::postgres::fetch::{Packs, fetch};
use crate::postgres::follow;
use crate::postgres::hand::{Taken, hand_over, take_below};
use crate::postgres::log::{LogFile, SegmentSize, check_segment};
use crate::postgres::manifest::{Extent, Manifest, NO_FILE};
use crate::postgres::pages;
use crate::postgres::restore::{Destination, LOG_DIR, Plan, Restored, tablespace_beside};
use crate::postgres::walk::CONTROL;
use crate::repository::{Repository, VaultError};
use mainstay_model::Timeline;
use rustix::fs::{Advice, Mode, OFlags};
use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The directories that are written into.
#[derive(Clone, Debug)]
struct Places {
    data: PathBuf,
    /// Tablespaces', by number.
    spaces: BTreeMap<u32, PathBuf>,
}

impl Places {
    /// As they are named.
    fn named(base: &Manifest, to: &Destination) -> Places {
        let space = |number: &u32| {
            let place = to.tablespaces.get(number).cloned();
            (*number, place.unwrap_or_else(|| tablespace_beside(&to.data, *number)))
        };
        Places { data: to.data.clone(), spaces: base.tablespaces.keys().map(space).collect() }
    }

    fn all(&self) -> Vec<PathBuf> {
        [&self.data].into_iter().chain(self.spaces.values()).cloned().collect()
    }

    /// The same directories, wherever their names lead by now.
    fn held(&self, taken: &Taken) -> Places {
        let spaces = self.spaces.iter().map(|(number, place)| (*number, taken.at(place)));
        Places { data: taken.at(&self.data), spaces: spaces.collect() }
    }

    /// Where a path of the manifest lies. What is in a tablespace is not reached through its link, which names the directory.
    fn path(&self, name: &str) -> Result<PathBuf, VaultError> {
        let name = safe(name)?;
        let inside = name.strip_prefix("pg_tblspc/").map(|rest| rest.split_once('/').unwrap_or((rest, "")));
        let space = inside.and_then(|(number, rest)| Some((self.spaces.get(&number.parse().ok()?)?, rest)));
        Ok(match space {
            Some((space, "")) => space.clone(),
            Some((space, rest)) => space.join(rest),
            None => self.data.join(name),
        })
    }

    /// Whether it may be written there.
    fn refuse(&self, base: &Manifest, delta: bool, mark: &Mark) -> Result<(), VaultError> {
        let occupied = |top: &&PathBuf| std::fs::read_dir(top).is_ok_and(|mut entries| entries.next().is_some());
        let all = self.all();
        if let Some(top) = all.iter().find(occupied).filter(|_| !delta) {
            return Err(VaultError::Impossible(format!(
                "{} is not empty; restore into an empty directory, or ask for a delta restore",
                top.display()
            )));
        }
        if !delta {
            return Ok(());
        }
        if occupied(&&self.data) {
            let is = copy_at(&self.data)?;
            if is != base.system {
                let says = format!("{} is a copy of the database {is}, not of {}", self.data.display(), base.system);
                return Err(VaultError::Impossible(says));
            }
        }
        mark.check_spaces(&self.data, Mark::read(&self.data)?.as_ref(), &self.spaces)
    }
}

struct Work<'a> {
    repository: &'a Repository,
    packs: Packs<'a>,
    base: &'a Manifest,
    to: &'a Destination,
    /// What links to the tablespaces say.
    named: Places,
    /// Where is written.
    held: Places,
    past_cache: PastCache,
    written: Mutex<Restored>,
}

/// Does it: files, log, `backup_label`, `recovery.signal`. The server is not started.
pub fn restore(repository: &Repository, plan: &Plan, to: &Destination) -> Result<Restored, VaultError> {
    to.watch.total.store(plan.bytes(), Ordering::Relaxed);
    let named = Places::named(&plan.base, to);
    let taken = take(&plan.base, to, &named)?;
    let held = named.held(&taken);
    let packs = Packs::new(repository);
    let work = Work {
        repository,
        packs,
        base: &plan.base,
        to,
        named,
        held,
        past_cache: PastCache::new(),
        written: Mutex::default(),
    };
    let done = work.prepare().and_then(|()| work.fill(plan, &taken));
    done.map_err(|error| taken.named(error))
}

/// Can a copy lie there? Its server hands the path of its log to a shell, from a directory of its own.
///
/// # Errors
/// When it can not, with the reason.
pub fn check_path(data: &Path) -> Result<(), VaultError> {
    let text = data.display().to_string();
    if !data.is_absolute() || text.chars().any(|c| matches!(c, '\'' | '%' | '\\') || c.is_control()) {
        let says = format!("{text:?} can not be restored into: take an absolute path without ', % and \\");
        return Err(VaultError::Impossible(says));
    }
    Ok(())
}

/// The directories, in nobody else's reach and marked: empty ones, or an old copy.
fn take(base: &Manifest, to: &Destination, named: &Places) -> Result<Taken, VaultError> {
    check_path(&to.data)?;
    let mark = Mark::of(base, named.spaces.clone());
    // Before anything is taken from a server that may run there, and once more when nobody else can change it.
    named.refuse(base, to.delta, &mark)?;
    let taken = Taken::all(&named.all())?;
    let held = named.held(&taken);
    // Without a mark nothing was changed, on a full disk, say.
    if let Err(refused) = held.refuse(base, to.delta, &mark).and_then(|()| mark.write(&held.data)) {
        let refused = taken.named(refused);
        taken.give_back();
        return Err(refused);
    }
    Ok(taken)
}

impl Work<'_> {
    /// All but the taking.
    fn fill(&self, plan: &Plan, taken: &Taken) -> Result<Restored, VaultError> {
        let control = self.base.files.iter().position(|file| file.path == CONTROL);
        let of_control = |extent: &Extent| extent.pieces.iter().any(|piece| Some(piece.0 as usize) == control);
        let (last, mut first): (Vec<&Extent>, Vec<&Extent>) =
            self.base.extents.iter().partition(|extent| of_control(extent));
        // File by file: threads that write into one wait for each other.
        first.sort_by_key(|extent| extent.pieces.first().map(|piece| (piece.0, piece.1)));
        self.in_threads(&first, Content::new, |content, extent| self.extent(extent, content))?;
        self.in_threads(&plan.log, || (), |(), segment| self.segment(*segment))?;
        self.histories(plan)?;
        self.cut()?;
        let label = hex::decode(&self.base.backup_label).unwrap_or_default();
        self.write_new("backup_label", &label)?;
        match &self.to.follows {
            Some(mark) => {
                self.write_new(follow::MARK, mark)?;
                self.write_new(follow::SIGNAL, b"")?;
            }
            None if !self.to.standby => self.write_new("recovery.signal", b"")?,
            None => {}
        }
        self.sync()?;
        for extent in last {
            self.wanted()?;
            self.extent(extent, &mut Content::new())?;
        }
        self.cut_one(control)?;
        self.sync()?;
        self.wanted()?;
        taken.check_in_place()?;
        delta::remove(&self.held.data)?;
        if let Some(owner) = self.to.owner {
            // The data directory last: before, nobody comes to the rest.
            self.held.spaces.values().chain([&self.held.data]).try_for_each(|top| hand_over(top, owner))?;
        }
        self.sync()?;
        let mut done = *self.written.lock().unwrap_or_else(PoisonError::into_inner);
        done.log = plan.log.len();
        Ok(done)
    }

    fn directory(&self, path: &Path, mode: u32) -> Result<(), VaultError> {
        let made = DirBuilder::new().recursive(true).mode(mode).create(path);
        made.map_err(|e| VaultError::file(path, e))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|e| VaultError::file(path, e))
    }

    /// Makes the start of an old copy impossible before anything else of it is touched; then there is room for every file.
    fn prepare(&self) -> Result<(), VaultError> {
        let data = &self.held.data;
        delta::end_of_control(data)?;
        if self.to.delta {
            self.held.all().iter().try_for_each(|top| take_below(top))?;
            delta::clear(self.base, (data, ""))?;
            for (number, space) in &self.held.spaces {
                delta::clear(self.base, (space, &format!("pg_tblspc/{number}")))?;
            }
        }
        for (path, mode) in &self.base.directories {
            self.directory(&self.held.path(path)?, *mode)?;
        }
        for number in self.base.tablespaces.keys() {
            self.link(*number)?;
        }
        self.directory(&data.join("pg_wal/archive_status"), 0o700)?;
        self.directory(&data.join(self.log_dir()), 0o700)
    }

    fn log_dir(&self) -> &'static str {
        if self.to.standby { "pg_wal" } else { LOG_DIR }
    }

    fn link(&self, number: u32) -> Result<(), VaultError> {
        let Some(target) = self.named.spaces.get(&number) else { return Ok(()) };
        self.directory(&self.held.data.join("pg_tblspc"), 0o700)?;
        let link = self.held.data.join(format!("pg_tblspc/{number}"));
        match symlink(target, &link) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(VaultError::file(&link, error)),
            _ => Ok(()),
        }
    }

    fn open(&self, number: u32) -> Result<(File, PathBuf), VaultError> {
        let (path, mode) = self.file(number)?;
        let opened = open(&path, mode, OFlags::empty()).map_err(|e| VaultError::file(&path, e))?;
        Ok((opened, path))
    }

    /// Where a file of the manifest is written, and its mode.
    fn file(&self, number: u32) -> Result<(PathBuf, u32), VaultError> {
        let unknown =
            || VaultError::Damaged(format!("the manifest of {} names a file that it does not have", self.base.label));
        let file = self.base.files.get(number as usize).filter(|file| !file.path.is_empty()).ok_or_else(unknown)?;
        Ok((self.held.path(&file.path)?, file.mode))
    }

    fn count(&self, written: u64, kept: u64) {
        let mut all = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        all.written += written;
        all.kept += kept;
        self.to.watch.done.fetch_add(written + kept, Ordering::Relaxed);
    }

    /// Do the files hold this extent already, by its fingerprints?
    fn there(&self, extent: &Extent) -> Result<bool, VaultError> {
        let mut map = Vec::new();
        for (number, at, len) in &extent.pieces {
            if *number == NO_FILE {
                return Ok(false);
            }
            let (file, path) = self.open(*number)?;
            let mut content = vec![0; *len as usize];
            if file.metadata().map_err(|e| VaultError::file(&path, e))?.len() < at + u64::from(*len) {
                return Ok(false);
            }
            file.read_exact_at(&mut content, *at).map_err(|e| VaultError::file(&path, e))?;
            pages::fingerprints(&content, &mut map);
        }
        Ok(pages::sum(&map) == extent.sum)
    }

    fn extent(&self, extent: &Extent, content: &mut Content) -> Result<(), VaultError> {
        let ours = extent.pieces.iter().filter(|piece| piece.0 != NO_FILE);
        let size: u64 = ours.map(|piece| u64::from(piece.2)).sum();
        if self.to.delta && self.there(extent)? {
            self.count(0, size);
            return Ok(());
        }
        fetch(&self.packs, self.base, extent, content)?;
        let (mut written, mut rest): (u64, &[u8]) = (0, content);
        for (number, at, len) in &extent.pieces {
            let short = || VaultError::Damaged(format!("an extent of the backup {} is too short", self.base.label));
            let (piece, after) = rest.split_at_checked(*len as usize).ok_or_else(short)?;
            if *number != NO_FILE {
                written += self.piece(*number, piece, *at)?;
            }
            rest = after;
        }
        self.count(written, size - written);
        Ok(())
    }

    /// Says how much of it was not there and is written.
    fn piece(&self, number: u32, piece: &[u8], at: u64) -> Result<u64, VaultError> {
        if !self.to.delta {
            let (path, mode) = self.file(number)?;
            let wrote = self.past_cache.write(piece, at, |flags| open(&path, mode, flags));
            if wrote.map_err(|e| VaultError::file(&path, e))? {
                return Ok(piece.len() as u64);
            }
        }
        let (file, path) = self.open(number)?;
        let parts = if self.to.delta { differing(&file, piece, at) } else { vec![(0, piece)] };
        let mut written = 0;
        for (from, part) in parts {
            file.write_all_at(part, at + from).map_err(|e| VaultError::file(&path, e))?;
            written += part.len() as u64;
        }
        // Let the disk begin while the next parts are read; what can not be begun is written at the end.
        let _ = rustix::fs::fadvise(&file, at, NonZeroU64::new(piece.len() as u64), Advice::DontNeed);
        Ok(written)
    }

    fn segment(&self, (timeline, number): (Timeline, u64)) -> Result<(), VaultError> {
        let size = SegmentSize(self.base.server.segment_size);
        let key = size.key(self.base.system, LogFile::Segment(timeline, number))?;
        let content = self.log_file(&key, |content| {
            check_segment(content, self.base.system, size, timeline, number)
                .map_err(|says| VaultError::Damaged(format!("{key}: {says}")))
        })?;
        self.to.watch.done.fetch_add(content.len() as u64, Ordering::Relaxed);
        self.write_new(&format!("{}/{}", self.log_dir(), key.last()), &content)
    }

    fn histories(&self, plan: &Plan) -> Result<(), VaultError> {
        let size = SegmentSize(self.base.server.segment_size);
        let all = plan.path.0.iter().map(|fork| fork.timeline).chain([plan.timeline]);
        for timeline in all.filter(|timeline| timeline.0 > 1) {
            let key = size.key(self.base.system, LogFile::History(timeline))?;
            let content = match self.log_file(&key, |_| Ok(())) {
                // Recovery reads the history of its own timeline, which tells the whole path, and where it ends it goes on with the history of the timeline
                // that it is on then. A primary that was cloned has no earlier ones to bring than that of its backup.
                Err(error) if error.is_missing() && timeline < self.base.start.timeline => continue,
                found => found?,
            };
            self.write_new(&format!("{}/{}", self.log_dir(), key.last()), &content)?;
        }
        Ok(())
    }

    /// A file of the log, from another repository where this one's is damaged or gone.
    fn log_file(&self, key: &Key, check: impl Fn(&[u8]) -> Result<(), VaultError>) -> Result<Vec<u8>, VaultError> {
        let (content, healed) = self.to.elsewhere.get(self.repository, key, check)?;
        if healed {
            self.written.lock().unwrap_or_else(PoisonError::into_inner).healed += 1;
        }
        Ok(content)
    }

    fn write_new(&self, name: &str, content: &[u8]) -> Result<(), VaultError> {
        let path = self.held.data.join(name);
        std::fs::write(&path, content).map_err(|e| VaultError::file(&path, e))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(|e| VaultError::file(&path, e))
    }

    /// Gives every file the size that it had.
    fn cut(&self) -> Result<(), VaultError> {
        (0..self.base.files.len())
            .filter(|at| self.base.files.get(*at).is_some_and(|file| file.path != CONTROL))
            .try_for_each(|at| self.cut_one(Some(at)))
    }

    fn cut_one(&self, at: Option<usize>) -> Result<(), VaultError> {
        let Some((number, file)) = at.and_then(|at| Some((at, self.base.files.get(at)?))) else { return Ok(()) };
        if file.path.is_empty() {
            return Ok(());
        }
        let (open, path) = self.open(u32::try_from(number).unwrap_or(u32::MAX))?;
        open.set_len(file.size).map_err(|e| VaultError::file(&path, e))
    }

    /// Everything written is on the disk.
    fn sync(&self) -> Result<(), VaultError> {
        let flush = |place: &PathBuf| {
            let dir = rustix::fs::open(place, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            dir.and_then(rustix::fs::syncfs).map_err(|e| VaultError::file(place, e.into()))
        };
        self.to.watch.flushing.store(true, Ordering::Relaxed);
        let done = self.held.all().iter().try_for_each(flush);
        self.to.watch.flushing.store(false, Ordering::Relaxed);
        done
    }

    /// Whoever asked still waits for it.
    fn wanted(&self) -> Result<(), VaultError> {
        if self.to.watch.stop.load(Ordering::Relaxed) {
            return Err(VaultError::Impossible("the restore was ended before it was done".into()));
        }
        Ok(())
    }

    /// Does something with each of `all`, in several threads. Each has something of its own, from `begin`.
    fn in_threads<Each: Sync, Own>(
        &self,
        all: &[Each],
        begin: impl Fn() -> Own + Sync,
        one: impl Fn(&mut Own, &Each) -> Result<(), VaultError> + Sync,
    ) -> Result<(), VaultError> {
        let threads = self.to.threads.clamp(1, 16);
        let (shares, stop, failed) = (Shares::of(all.len(), threads), AtomicBool::new(false), Mutex::new(None));
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (shares, stop, failed, begin, one) = (&shares, &stop, &failed, &begin, &one);
                scope.spawn(move || {
                    let mut own = begin();
                    while let Some(each) = shares.next(thread).and_then(|at| all.get(at)) {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        if let Err(error) = self.wanted().and_then(|()| one(&mut own, each)) {
                            stop.store(true, Ordering::Relaxed);
                            failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        }
                    }
                });
            }
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Who does what: each thread a run of its own, and who is done half of what another one has most left of.
struct Shares(Mutex<Vec<Range<usize>>>);

impl Shares {
    fn of(count: usize, threads: usize) -> Shares {
        let border = |thread: usize| count * thread / threads.max(1);
        Shares(Mutex::new((0..threads).map(|thread| border(thread)..border(thread + 1)).collect()))
    }

    fn next(&self, thread: usize) -> Option<usize> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.get(thread)?.is_empty() {
            let most = all.iter_mut().max_by_key(|share| share.len())?;
            let middle = most.start + most.len() / 2;
            let half = middle..most.end;
            most.end = middle;
            *all.get_mut(thread)? = half;
        }
        all.get_mut(thread)?.next()
    }
}

fn open(path: &Path, mode: u32, flags: OFlags) -> std::io::Result<File> {
    let flags = (OFlags::NOFOLLOW | flags).bits().cast_signed();
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(mode).custom_flags(flags).open(path)
}

/// The parts of a piece that a file does not hold at its place, by pages: where each begins in the piece.
fn differing<'p>(file: &File, piece: &'p [u8], at: u64) -> Vec<(u64, &'p [u8])> {
    let mut there = vec![0; piece.len()];
    if file.read_exact_at(&mut there, at).is_err() {
        return vec![(0, piece)];
    }
    let pages = piece.chunks(pages::PAGE).zip(there.chunks(pages::PAGE)).enumerate();
    let other = pages.filter(|(_, (wanted, is))| wanted != is);
    other.map(|(number, (wanted, _))| ((number * pages::PAGE) as u64, wanted)).collect()
}

/// A path of a manifest must stay below its directory.
fn safe(path: &str) -> Result<&str, VaultError> {
    let fits = !path.starts_with('/') && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    fits.then_some(path).ok_or_else(|| VaultError::Damaged(format!("a manifest names the path {path:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_done_once_by_whoever_has_time_and_neighbours_by_one() {
        for (count, threads) in [(0, 2), (1, 2), (5, 1), (7, 3), (100, 4), (3, 16)] {
            let shares = Shares::of(count, threads);
            let mut all: Vec<usize> = std::iter::from_fn(|| shares.next(threads - 1)).collect();
            all.sort_unstable();
            assert_eq!(all, (0..count).collect::<Vec<_>>(), "one does everything: {count} of {threads}");
            assert!((0..threads).all(|thread| shares.next(thread).is_none()));
        }
        let shares = Shares::of(8, 2);
        let next = |thread| shares.next(thread).unwrap();
        assert_eq!([next(0), next(1), next(0), next(1)], [0, 4, 1, 5]);
        assert_eq!([next(1), next(1)], [6, 7]);
        assert_eq!([next(1), next(0)], [3, 2], "half of what is left");
    }
}
